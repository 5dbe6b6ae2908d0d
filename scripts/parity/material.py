"""What the comparisons run on: the real model as a Hugging Face directory, mixed text, rows to train on, adapters."""
import json
import os
import random
import shutil

import numpy as np
import torch

import reference

SPECIALS = 17  # SmolLM2's special tokens are ids 0..16


def hf_directory(gguf_path, cache):
    """The GGUF file's weights, dequantised to F32, as a directory that transformers loads. transformers' own reader is used
    for weights and tokenizer, and its un-permutation of q and k is checked against the file itself."""
    out = os.path.join(cache, "parity", "SmolLM2-135M-Instruct-f32")
    done = os.path.join(out, "complete")
    if os.path.exists(done):
        return out
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    shutil.rmtree(out, ignore_errors=True)
    where, name = os.path.split(gguf_path)
    loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    check_row_order(gguf_path, loaded)
    keys = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config" and not k.startswith("_")}
    model = LlamaForCausalLM(LlamaConfig.from_dict(keys))
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(out)
    open(done, "w").close()
    return out


def check_row_order(gguf_path, model):
    from gguf import GGUFReader
    from gguf.quants import dequantize
    tensors = {t.name: t for t in GGUFReader(gguf_path).tensors}
    c, state = model.config, model.state_dict()
    for ours, theirs, heads in (("attn_q", "q_proj", c.num_attention_heads), ("attn_k", "k_proj", c.num_key_value_heads)):
        t = tensors[f"blk.1.{ours}.weight"]
        w = dequantize(t.data, t.tensor_type)
        # llama's GGUF interleaves the two halves that rotate together, head by head
        w = w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
        got = state[f"model.layers.1.self_attn.{theirs}.weight"].numpy()
        assert np.array_equal(got, w), f"transformers did not restore the row order of {theirs}"


def digits_tokenizer(hf_dir, cache):
    """The same vocabulary behind the pre-tokenizer of the model's own repository: single digits, then GPT-2's pattern."""
    out = os.path.join(cache, "parity", "SmolLM2-tokenizer-digits")
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(hf_dir, "tokenizer.json")) as f:
        t = json.load(f)
    t["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]}
    with open(os.path.join(out, "tokenizer.json"), "w") as f:
        json.dump(t, f, ensure_ascii=False)
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json"):
        shutil.copy(os.path.join(hf_dir, name), out)
    return out


# --- text -----------------------------------------------------------------------------------------------------------------

SCRIPTS = [(0x00C0, 0x017F), (0x0370, 0x03FF), (0x0400, 0x04FF), (0x0531, 0x0587), (0x05D0, 0x05EA), (0x0620, 0x064A),
           (0x0904, 0x0939), (0x0E01, 0x0E2E), (0x10D0, 0x10FA), (0x1E00, 0x1EFF), (0x3041, 0x3096), (0x30A1, 0x30FA),
           (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)]
MARKS = [0x0301, 0x0308, 0x0327, 0x064B, 0x0651, 0x093F, 0x094D, 0x0E31, 0x0E49, 0x20E3, 0xFE0F]
SPACES = [" ", "  ", "   ", "\t", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\u0085", "\u000b", "\u000c", "\r", " \t "]
NUMBERS = ["0", "7", "42", "1234567890", "3.14159", "1,234.56e-7", "0xDEADBEEF", "\u0663\u0664", "\u00b2\u00b3", "\u00bd", "\u216b",
           "\u2460", "\u0967\u0968", "\uff11\uff12"]
EMOJI = ["\U0001f642", "\U0001f680", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
         "\U0001f44d\U0001f3fd", "\u2600", "\U0001fae0", "\U0001f3f4\U000e0067\U000e0062\U000e007f"]
SHORT = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'Re", "\u2019s", "' s", "''", "'", "n't"]
ODD = [chr(c) for c in (1, 8, 27, 127, 0xAD, 0x378, 0xE000, 0xFDD0, 0xFFFD, 0x1D49C, 0x10FFFF, 0x2E80, 0x1F3FB, 0x200D, 0x61C)]
CODE = ["def f{a}(x, *args, **kw):\n    return x[{b}:-1] or None  # {c}\n",
        "for (int i = {b}; i < n{a}; i++) {{ a[i] += b[i] * 0x{b:x}; }}\n",
        "{{\"key_{a}\": [{b}, null, true], \"\\u00e9\": \"{c}\"}}\n", "SELECT * FROM t{a} WHERE x >= {b} AND y != '{c}';\n",
        "<a href=\"https://example.org/{c}?q={b}&r=%20\">{c}</a>\n", "\tif (p->{c} == NULL)\n\t\tgoto out{a};\n",
        "$ {c} --{c}={b} | sort -k{b} > /tmp/{a}.txt\n", "\\frac{{{c}}}{{{b}}} \\leq \\sum_{{i={a}}}^n x_i^2\n"]


def mixed_text(words, specials, bytes_wanted, seed):
    """Lines of words, several scripts, code, numbers, emoji, odd white space, odd characters and special tokens. Only
    random.random() is used, whose sequence Python guarantees."""
    r = random.Random(seed)

    def pick(items):
        return items[int(r.random() * len(items))]

    def letters():
        lo, hi = pick(SCRIPTS)
        return "".join(chr(lo + int(r.random() * (hi - lo + 1))) + (chr(pick(MARKS)) if r.random() < 0.1 else "")
                       for _ in range(1 + int(r.random() * 7)))

    def line():
        kind = r.random()
        n = 3 + int(r.random() * 20)
        if kind < 0.30:
            return " ".join(pick(words).strip() for _ in range(n)) + pick([".", "?", "!", "...", ";", ""])
        if kind < 0.45:
            return "".join(pick(words) for _ in range(n))
        if kind < 0.60:
            return pick(["", " ", "  "]).join(letters() + pick(["", "", " ", ",", "\u3002", "-"]) for _ in range(n))
        if kind < 0.75:
            return pick(CODE).format(a=int(r.random() * 100), b=int(r.random() * 10000), c=pick(words).strip() or "x")
        if kind < 0.85:
            return "".join(pick([pick(words), letters()]) + pick(SPACES) + pick(NUMBERS) + pick(SPACES) for _ in range(n // 2))
        if kind < 0.93:
            return "".join(pick([pick(EMOJI), pick(words), pick(SHORT), pick(NUMBERS)]) for _ in range(n))
        if kind < 0.98:
            return "".join(pick([pick(ODD), pick(SHORT), pick(words), pick(SPACES)]) for _ in range(n))
        return pick(words) + pick(specials) + pick(["", " ", "\n"]) + pick(words) + pick(specials)

    out, size = [], 0
    while size < bytes_wanted:
        out.append(line())
        size += len(out[-1].encode()) + 1
    return out


# --- rows and adapters ----------------------------------------------------------------------------------------------------

def rows(tokenizer, texts, n, lo, hi, seed):
    """Tokenised rows of real text, lengths between lo and hi, most with a masked beginning as prompts have."""
    ids = tokenizer("\n".join(texts))["input_ids"]
    r, out, at = random.Random(seed), [], 0
    for i in range(n):
        length = lo + int(r.random() * (hi - lo + 1))
        if at + length > len(ids):
            at = 0
        row = ids[at:at + length]
        at += length
        masked = 0 if i % 4 == 0 else int(r.random() * length / 2)
        out.append({"input_ids": row, "labels": [-100] * masked + row[masked:]})
    return out


def write_jsonl(path, items):
    with open(path, "w") as f:
        for item in items:
            f.write(json.dumps(item) + "\n")
    return path


def adapter(base_model, out, name, seed=11):
    if not os.path.exists(os.path.join(out, "adapter_model.safetensors")):
        reference.random_adapter(base_model, out, name, r=8, alpha=16, seed=seed, a_scale=0.03, b_scale=0.02)
    return out
