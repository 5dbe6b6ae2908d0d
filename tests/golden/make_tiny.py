#!/usr/bin/env python3
"""Makes the tiny models and the training goldens that the C tests compare with (Hugging Face, peft, bitsandbytes, torch).

    python3 tests/golden/make_tiny.py        (versions: scripts/parity/requirements.txt; CPU; deterministic)

tiny_llama/          untied llama, F32, one safetensors file, byte-level tokenizer of 320 words, ChatML template
tiny_tied/           tied llama, BF16, two shards with an index, other head counts and rope theta
tiny_*_logits.*      .json: input_ids of a few sequences; .bin: their logits in order, [tokens, 320] little-endian f32
tiny_train/          rows.jsonl, initial adapter, and for each base (lora: fp32, qlora: NF4 with double quantisation) the loss,
                     gradient norm and learning rate of 20 steps, the first step's gradients, the final adapter
lr_*.json            transformers' get_scheduler factors
adamw.json           a few steps of torch.optim.AdamW on a small vector
"""
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts", "parity"))

import numpy as np  # noqa: E402
import reference  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_scheduler  # noqa: E402

TRAIN = os.path.join(HERE, "tiny_train")
BASE = "tests/golden/tiny_llama"
SETTINGS = {"micro_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "lr_scheduler": "cosine",
            "warmup_steps": 3, "max_steps": 20, "weight_decay": 0.01, "max_grad_norm": 0.5,
            "bnb_4bit_use_double_quant": True}

TEMPLATE = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

CORPUS = [
    "The cat sat on the mat, and the dog sat on the log.",
    "A frozen weight needs no gradient; an adapter needs a small one.",
    "Tokens in, tokens out: the model reads the text from left to right.",
    "What does the word 'harbour' mean? A sheltered port where ships can take on or discharge cargo.",
    "int main(void) { return 0; }  // 12345 67890",
    "système déjà vu, naïve café; Ελληνικά; русский текст; 漢字かな交じり文; 🙂🚀",
]


def tokenizer_files(out):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    t.train_from_iterator(CORPUS * 4, trainer)
    assert t.get_vocab_size() == 320, t.get_vocab_size()
    fast = PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<|im_start|>", eos_token="<|im_end|>",
                                   unk_token="<|endoftext|>", pad_token="<|im_end|>", chat_template=TEMPLATE)
    fast.save_pretrained(out)


def model_files(name, dtype, shard, seed, **kw):
    """Random weights at a scale that makes the logits lively; norms away from 1, so that forgetting one shows."""
    out = os.path.join(HERE, name)
    shutil.rmtree(out, ignore_errors=True)
    config = LlamaConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2, intermediate_size=128,
                         max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=2, **kw)
    m = LlamaForCausalLM(config).to(torch.float32)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in m.named_parameters():
            if "norm" in n:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(torch.randn(p.shape, generator=g) * (0.5 if "embed" in n else 0.08 if "lm_head" in n else 0.15))
        m.to(dtype)
    m.generation_config.eos_token_id = [2, 0]
    m.save_pretrained(out, max_shard_size=shard)
    tokenizer_files(out)
    for f in os.listdir(out):
        os.chmod(os.path.join(out, f), 0o644)
    return out


def logits_golden(name, model, seed):
    g = torch.Generator().manual_seed(seed)
    seqs = [torch.randint(0, 320, (n,), generator=g).tolist() for n in (1, 9, 24)]
    rows = torch.cat([reference.logits(model, s) for s in seqs])
    rows.numpy().astype("<f4").tofile(os.path.join(HERE, name + "_logits.bin"))
    with open(os.path.join(HERE, name + "_logits.json"), "w") as f:
        json.dump({"dtype": "f32", "shape": list(rows.shape), "input_ids": seqs}, f)
        f.write("\n")


def training_rows():
    """Rows of many lengths; most begin with masked tokens, one has a hole, one has every token as a target."""
    g = np.random.default_rng(7)
    rows = []
    for i in range(20 * 2 * 2):
        n = int(g.integers(3, 33))
        # learnable: a walk over the vocabulary from a random start with one of four strides
        start, stride = int(g.integers(0, 320)), int(g.choice([1, 2, 3, 7]))
        ids = [(start + k * stride) % 320 for k in range(n)]
        labels = list(ids)
        masked = int(g.integers(0, n - 1))
        labels[:masked] = [-100] * masked
        if i == 5:
            labels = list(ids)
        if i == 6 and n > 4:
            labels[n // 2] = -100
        rows.append({"input_ids": ids, "labels": labels})
    with open(os.path.join(TRAIN, "rows.jsonl"), "w") as f:
        for r in rows:
            f.write(json.dumps(r) + "\n")
    return rows


def training_golden(name, base, rows, nf4):
    settings = dict(SETTINGS, load_in_4bit=nf4)
    torch.manual_seed(0)
    model = reference.with_adapter(reference.load(base, nf4), os.path.join(TRAIN, "adapter_init"), trainable=True)
    log, first = reference.train(model, rows, settings)
    with open(os.path.join(TRAIN, name + ".json"), "w") as f:
        f.write("{\"settings\": " + json.dumps(settings) + ",\n \"steps\": [\n")
        f.write(",\n".join("  " + json.dumps(s) for s in log) + "\n ]}\n")
    grads = os.path.join(TRAIN, name + "_grad.safetensors")
    save_file(first, grads, metadata={"format": "pt"})
    os.chmod(grads, 0o644)
    reference.save_adapter(model, os.path.join(TRAIN, name + "_final"), BASE)
    print(f"{name}: loss {log[0]['loss']:.4f} -> {log[-1]['loss']:.4f}, "
          f"clipped in {sum(s['grad_norm'] > settings['max_grad_norm'] for s in log)} of {settings['max_steps']} steps")


def schedule_golden():
    for name in ("constant", "constant_with_warmup", "linear", "cosine"):
        cases = []
        for warmup, total in ((0, 10), (3, 20), (1, 5), (10, 100), (7, 7), (0, 1), (12, 8)):
            opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            s = get_scheduler(name, opt, num_warmup_steps=warmup, num_training_steps=total)
            values = []
            for _ in range(total + 2):
                values.append(s.get_last_lr()[0])
                opt.step()
                s.step()
            cases.append({"warmup": warmup, "total": total, "values": values})
        with open(os.path.join(HERE, f"lr_{name}.json"), "w") as f:
            f.write("[" + ",\n ".join(json.dumps(c) for c in cases) + "]\n")


def adamw_golden():
    g = torch.Generator().manual_seed(5)
    cases = []
    for lr, b1, b2, eps, wd in ((1e-3, 0.9, 0.999, 1e-8, 0.0), (2e-2, 0.9, 0.95, 1e-6, 0.1), (1e-3, 0.8, 0.99, 1e-8, 0.01)):
        p = torch.randn(13, generator=g).requires_grad_()
        opt = torch.optim.AdamW([p], lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd)
        case = {"lr": lr, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": wd, "initial": p.tolist(), "steps": []}
        for i in range(6):
            p.grad = torch.randn(13, generator=g) * 10.0 ** (1 - i)
            if i == 3:
                p.grad[4] = 0
            opt.step()
            case["steps"].append({"grad": p.grad.tolist(), "param": p.tolist()})
        cases.append(case)
    with open(os.path.join(HERE, "adamw.json"), "w") as f:
        f.write("[" + ",\n ".join(json.dumps(c) for c in cases) + "]\n")


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.makedirs(TRAIN, exist_ok=True)
    schedule_golden()
    adamw_golden()
    base = model_files("tiny_llama", torch.float32, "10MB", seed=1, num_attention_heads=4, num_key_value_heads=2,
                       rope_theta=10000.0, tie_word_embeddings=False)
    tied = model_files("tiny_tied", torch.bfloat16, "150KB", seed=2, num_attention_heads=2, num_key_value_heads=1,
                       rope_theta=500000.0, tie_word_embeddings=True)
    logits_golden("tiny_llama", reference.load(base), seed=3)
    logits_golden("tiny_tied", reference.load(tied), seed=4)
    logits_golden("tiny_llama_nf4", reference.load(base, nf4=True), seed=3)
    rows = training_rows()
    reference.random_adapter(reference.load(base), os.path.join(TRAIN, "adapter_init"), BASE, r=4, alpha=8, seed=11,
                             a_scale=0.04, b_scale=0.025)
    training_golden("lora", base, rows, nf4=False)
    training_golden("qlora", base, rows, nf4=True)


if __name__ == "__main__":
    sys.exit(main())
