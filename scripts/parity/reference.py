"""What the comparisons take from torch, transformers, peft and bitsandbytes: loading, log-probabilities, training, adapters.

Everything runs in fp32 on the CPU. The training loop is the contract that ./train keeps: the loss of a step is the sum over
its targets divided by their number, one division for the whole accumulation; clipping, AdamW and the schedule are torch's and
transformers' own.
"""
import json
import logging
import os
import shutil
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything compared is local
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", message="Could not find a config file")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, get_scheduler  # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load(path, nf4=False, double_quant=True):
    """A causal LM in fp32, its linear layers in bitsandbytes' NF4 when asked; eager attention, the plainest formula."""
    kw = dict(dtype=torch.float32, attn_implementation="eager")
    if nf4:
        kw["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double_quant,
            bnb_4bit_compute_dtype=torch.float32)
        kw["device_map"] = "cpu"
    model = AutoModelForCausalLM.from_pretrained(path, **kw)
    model.eval()
    if nf4:
        plain_nf4(model)
    return model


def plain_nf4(model):
    """On CPUs with AVX-512 BF16, bitsandbytes repacks the weights at the first forward without gradients and from then on
    multiplies in bfloat16, whatever bnb_4bit_compute_dtype says (logits of a two-layer model move by 3e-2). The reference is
    dequantise, then multiply in fp32: that path is chosen, and proved."""
    import bitsandbytes as bnb
    layers = [(n, l) for n, l in model.named_modules() if isinstance(l, bnb.nn.Linear4bit)]
    assert layers, "nothing was quantised"
    for _, l in layers:
        l.support_avx512bf16_for_cpu = False
    for n, l in layers[:7]:
        w = bnb.functional.dequantize_4bit(l.weight.data, l.weight.quant_state)
        x = torch.randn(5, w.shape[1], generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            got, want = l(x), x @ w.T
        assert w.dtype == torch.float32 and got.dtype == torch.float32, n
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4), (n, (got - want).abs().max().item())


def exact_mean(model, path):
    """Double quantisation subtracts the mean of all block scales before coding them. torch sums that mean in fp32, in an order
    that depends on its build and its threads; an ulp there flips a code here and there, and one flipped code of a sensitive
    block moves this model's logits by 3e-3. Here the mean is summed in double and rounded once, and the rest is
    bitsandbytes' own. Changes a model loaded from path; returns (codes changed, largest step, all codes)."""
    import bitsandbytes as bnb
    exact = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    changed = step = count = 0
    for n, l in model.named_modules():
        if not isinstance(l, bnb.nn.Linear4bit):
            continue
        s = l.weight.quant_state
        absmax = exact[n + ".weight"].reshape(-1, s.blocksize).abs().amax(dim=1)
        before = s.absmax.reshape(-1).long()
        s.offset = absmax.double().mean().float()
        s.absmax, s.state2 = bnb.functional.quantize_blockwise(absmax - s.offset, blocksize=s.state2.blocksize)
        difference = (s.absmax.reshape(-1).long() - before).abs()
        changed += int((difference > 0).sum())
        step = max(step, int(difference.max()))
        count += absmax.numel()
    return changed, step, count


def with_adapter(base, adapter, trainable=False):
    model = PeftModel.from_pretrained(base, adapter, is_trainable=trainable)
    return model.train() if trainable else model.eval()


def random_adapter(base, out, name, r, alpha, seed, a_scale, b_scale):
    """A PEFT directory with both A and B random, so that the first step already has gradients in both."""
    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.copy_(torch.randn(p.shape) * (a_scale if "lora_A" in n else b_scale))
    save_adapter(model, out, name)
    model.unload()


def save_adapter(model, out, name):
    shutil.rmtree(out, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(out)
    os.remove(os.path.join(out, "README.md"))
    path = os.path.join(out, "adapter_config.json")
    with open(path) as f:
        config = json.load(f)
    config["target_modules"] = sorted(config["target_modules"])  # a set: its order changes from run to run
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")
    os.chmod(os.path.join(out, "adapter_model.safetensors"), 0o644)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def logprobs(model, ids):
    """log p(token | those before it) of every token but the first."""
    rows = torch.log_softmax(logits(model, ids)[:-1].double(), dim=-1)
    return rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()


def greedy(model, ids, n):
    """transformers' own greedy generation: the new tokens, the one that ended it included."""
    ids = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n)
    return out[0, ids.shape[1]:].tolist()


def train(model, rows, s):
    """Trains with settings s (the YAML keys of the same names); returns one dict a step, and the first step's gradients."""
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=s["learning_rate"], betas=(0.9, 0.999), eps=1e-8, weight_decay=s["weight_decay"])
    sched = get_scheduler(s["lr_scheduler"], opt, num_warmup_steps=s["warmup_steps"], num_training_steps=s["max_steps"])
    per_step, log, first = s["micro_batch_size"] * s["gradient_accumulation_steps"], [], None
    for step in range(s["max_steps"]):
        group = rows[step * per_step:(step + 1) * per_step]
        targets = sum(sum(l != -100 for l in r["labels"][1:]) for r in group)
        total = 0.0
        opt.zero_grad()
        for r in group:
            ids, labels = torch.tensor([r["input_ids"]]), torch.tensor(r["labels"])
            out = model(input_ids=ids).logits[0]
            loss = torch.nn.functional.cross_entropy(out[:-1], labels[1:], ignore_index=-100, reduction="sum")
            (loss / targets).backward()
            total += loss.item()
        if step == 0:
            first = {n.replace(".default", ""): p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        norm = torch.nn.utils.clip_grad_norm_(params, s["max_grad_norm"]).item()
        log.append({"step": step + 1, "loss": total / targets, "learning_rate": sched.get_last_lr()[0],
                    "grad_norm": norm, "target_tokens": targets, "tokens": sum(len(r["input_ids"]) for r in group)})
        opt.step()
        sched.step()
    return log, first
