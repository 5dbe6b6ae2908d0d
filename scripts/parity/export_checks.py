"""What we write, read by who it is written for: GGUF files and GGUF LoRA by llama.cpp, NF4 checkpoints by transformers and
bitsandbytes; importance matrices against llama.cpp's activations.

llama.cpp comes to PyPI as source only and takes long to build. Where ~/.cache/peft.c/llama/venv has it (a virtual environment
with llama-cpp-python, numpy and gguf), its side runs live; else its numbers are those of export_llama_cpp.json, which are kept by
the hash of the file they belong to: our files are the same bytes on every machine. What is in neither is left out, with a line
that says so. PEFT_STORE=1 keeps the numbers of a live run.
"""
import functools
import hashlib
import json
import math
import os
import shutil
import subprocess

import material
import numpy as np
import ours
import reference
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
STORED = os.path.join(HERE, "export_llama_cpp.json")
PYTHON = os.path.expanduser("~/.cache/peft.c/llama/venv/bin/python")
PERPLEXITY = 5e-3  # relative


class Absent(Exception):
    """Neither llama.cpp nor its kept numbers of this very file."""


def with_llama_cpp(check):
    """Says which comparison was left out where llama.cpp is not; what was compared until then counts."""
    @functools.wraps(check)
    def run(w):
        try:
            yield from check(w)
        except Absent as e:
            print(f"SKIP  {check.__name__}: {e}", flush=True)
    return run


def out(name):
    return os.path.join(ours.WORK, name)


def theirs(what, model, rows_path, *rest):
    """llama.cpp's answer, live or as it was kept."""
    digest = hashlib.sha256(what.encode())
    for path in (model, rows_path, *rest):
        digest.update(open(path, "rb").read() if os.path.exists(str(path)) else str(path).encode())
    key, stored = digest.hexdigest()[:32], {}
    if os.path.exists(STORED):
        with open(STORED) as f:
            stored = json.load(f)
    if not os.path.exists(PYTHON):
        if key not in stored:
            raise Absent(f"no {PYTHON}, and {os.path.basename(STORED)} has nothing of {os.path.basename(model)}")
        return stored[key]
    p = subprocess.run([PYTHON, os.path.join(HERE, "theirs_gguf.py"), what, model, rows_path, *map(str, rest)],
                       capture_output=True, text=True)
    if p.returncode:
        raise ours.Failed("llama.cpp: " + p.stderr.strip()[-300:])
    answer = json.loads(p.stdout.strip().splitlines()[-1])
    if os.environ.get("PEFT_STORE") and len(p.stdout) < 4000:
        stored[key] = answer
        with open(STORED, "w") as f:
            json.dump(stored, f, indent=0, sort_keys=True)
            f.write("\n")
    return answer


@functools.cache
def rows(w):
    """English that every Debian has and that does not change with the tree, in rows of 500 tokens."""
    with open("/usr/share/common-licenses/GPL-3", encoding="utf-8") as f:
        ids = w.tokenizer(f.read())["input_ids"][:5000]
    return [ids[i:i + 500] for i in range(0, len(ids), 500)]


def rows_file(w, name="export-rows", r=None):
    return material.write_jsonl(out(name + ".jsonl"), [{"input_ids": ids} for ids in (r or rows(w))])


def perplexity(lp):
    n = sum(map(len, lp))
    return math.exp(-sum(map(sum, lp)) / n)


def convert(program, to, path, *options):
    ours.run([program, "--to", to, "--out", path, "--overwrite", *options], f"write-{os.path.basename(path)}")
    return path


def in_floats(made, floats):
    """The numbers that the gguf package reads from a file, over those of a copy of our F32 file."""
    import gguf
    path = made.replace(".gguf", "-read.gguf")
    shutil.copyfile(floats, path)
    stored = {t.name: t for t in gguf.GGUFReader(made).tensors}
    target = gguf.GGUFReader(path, "r+")
    for t in target.tensors:
        t.data[:] = gguf.dequantize(stored[t.name].data, stored[t.name].tensor_type).reshape(t.data.shape)
    target.data.flush()
    return path


@with_llama_cpp
def gguf_files(w):
    """Where weights are quantised llama.cpp rounds activations to 8 bits, too. That is its arithmetic and not the file: of
    the Q4_K_M file that its own quantiser makes of this model it gives 0.70 % more perplexity than we do, of ours 0.78 %. So
    the contract is held by the numbers in the file, as the gguf package reads them; the file as it is, within twice that."""
    path, floats = rows_file(w), convert("./quantize", "f32", out("f32.gguf"), "--model", w.hf)
    for to in ("f16", "q8_0", "q4_0", "q4_k_m", "q5_k_m"):
        made = convert("./quantize", to, out(f"{to}.gguf"), "--model", w.hf)
        mine = perplexity(ours.score(f"ppl-{to}", rows(w), ["--model", made]))
        for what, file, tolerance in (("read by gguf, ", in_floats(made, floats), PERPLEXITY), ("", made, 2 * PERPLEXITY)):
            got = theirs("nll", file, path)
            yield f"perplexity {mine:.3f} of our {to} file in ours and, {what}in llama.cpp", \
                abs(mine / math.exp(got["nll"] / got["tokens"]) - 1), tolerance
    got = theirs("nll", w.gguf, path)
    mine = perplexity(ours.score("ppl-own", rows(w), ["--model", w.gguf]))
    yield f"perplexity {mine:.3f} of llama.cpp's own Q4_1 file in ours and in llama.cpp", \
        abs(mine / math.exp(got["nll"] / got["tokens"]) - 1), 2 * PERPLEXITY


@with_llama_cpp
def gguf_families(w):
    """Each family's tiny random model as our GGUF file: sums of log-probabilities. llama.cpp keeps keys and values in F16."""
    path = os.path.join(ours.ROOT, "tests/golden/tiny_train/rows.jsonl")
    with open(path) as f:
        ids = [json.loads(line)["input_ids"] for line in f][:8]
    golden = os.path.join(ours.ROOT, "tests/golden")
    for name in ("tiny_llama", "tiny_tied", "tiny_qwen2", "tiny_qwen3"):
        made = convert("./quantize", "f32", out(name + ".gguf"), "--model", os.path.join(golden, name), "--tokenizer",
                       os.path.join(golden, "tiny_llama"))
        got = theirs("nll", made, rows_file(w, "export-tiny", ids))
        mine = -sum(map(sum, ours.score("gguf-" + name, ids, ["--model", made])))
        yield f"log-probabilities of our GGUF file of {name} in llama.cpp, summed", abs(mine / got["nll"] - 1), 2e-4


def nf4_checkpoint(w):
    for suffix, options in (("", []), ("-plain", ["--no-double-quant"])):
        made = convert("./quantize", "nf4", out("nf4-checkpoint" + suffix), "--model", w.hf, "--dtype", "f32", *options)
        model = AutoModelForCausalLM.from_pretrained(made, attn_implementation="eager")
        model.eval()
        reference.plain_nf4(model)
        lp = [reference.logprobs(model, r) for r in w.scored]
        mine = ours.score("nf4-checkpoint" + suffix, w.scored, ["--model", w.hf, "--load-in-4bit", *options])
        yield f"log-probabilities of our NF4 checkpoint{suffix} in transformers and bitsandbytes", max(
            abs(a - b) for x, y in zip(lp, mine, strict=True) for a, b in zip(x, y, strict=True)), 1e-3


def nf4_base(w):
    """Checkpoints that transformers saves in NF4, as bases of ours."""
    for suffix, double in (("", True), ("-plain", False)):
        model = reference.load(w.hf, nf4=True, double_quant=double)
        path = out("saved-nf4" + suffix)
        model.save_pretrained(path)
        w.tokenizer.save_pretrained(path)
        mine = ours.score("saved-nf4" + suffix, w.scored, ["--model", path])
        yield f"log-probabilities of an NF4 checkpoint{suffix} that transformers saved, in ours", max(
            abs(a - b) for x, y in zip([reference.logprobs(model, r) for r in w.scored], mine, strict=True)
            for a, b in zip(x, y, strict=True)), 1e-3


@with_llama_cpp
def gguf_lora(w):
    """llama.cpp with our GGUF LoRA gives our greedy text, of the base in F16 and the adapter in our PEFT directory."""
    base = convert("./quantize", "f16", out("f16.gguf"), "--model", w.hf)
    prompts = [w.tokenizer(t)["input_ids"] for t in ("Permission is hereby granted", "The layers, lowest first, are",
                                                     "A tensor is", "def main():\n")]
    path = rows_file(w, "export-prompts", prompts)
    for name, adapter in (("", w.adapter), ("-rslora", rslora(w))):
        made = convert("./merge", "lora", out(f"lora{name}.gguf"), "--model", base, "--adapter", adapter)
        tokens = theirs("greedy", base, path, 24, made)
        different = 0
        for i, (ids, t) in enumerate(zip(prompts, tokens, strict=True)):
            got, _ = ours.generate(f"gguf-lora{name}-{i}", 24, ["--model", base, "--adapter", adapter, "--prompt",
                                                                w.tokenizer.decode(ids)])
            end = t.index(w.tokenizer.eos_token_id) if w.tokenizer.eos_token_id in t else len(t)
            want = w.tokenizer.decode(t[:end], skip_special_tokens=True)
            if got != want:
                print(f"      llama.cpp: {want!r}\n      ours: {got!r}")
            different += got != want
        yield f"greedy texts that differ, our GGUF LoRA{name} in llama.cpp and the PEFT directory in ours", different, 0
        nll = theirs("nll", base, rows_file(w), made)
        mine = perplexity(ours.score(f"gguf-lora{name}", rows(w), ["--model", base, "--adapter", made]))
        yield f"perplexity with GGUF LoRA{name}, ours and llama.cpp", abs(mine / math.exp(nll["nll"] / nll["tokens"]) - 1), PERPLEXITY
        back = convert("./merge", "lora", out(f"lora{name}-back"), "--model", base, "--adapter", made)
        lp = [ours.score(f"lora-{k}{name}", w.scored[:2], ["--model", base, "--adapter", a]) for k, a in
              enumerate((adapter, back))]
        yield f"log-probabilities of the adapter{name} there and back", max(
            abs(a - b) for x, y in zip(*lp, strict=True) for a, b in zip(x, y, strict=True)), 1e-4


def rslora(w):
    """The adapter with its scale as rsLoRA's."""
    path = out("adapter-rslora")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(w.adapter, "adapter_config.json")) as f:
        config = json.load(f)
    config["use_rslora"] = True
    with open(os.path.join(path, "adapter_config.json"), "w") as f:
        json.dump(config, f)
    with open(os.path.join(w.adapter, "adapter_model.safetensors"), "rb") as f, \
            open(os.path.join(path, "adapter_model.safetensors"), "wb") as g:
        g.write(f.read())
    return path


@with_llama_cpp
def importance(w):
    """Ours against the squares of what llama.cpp's products are given (F16 weights: activations are rounded to 11 bits)."""
    import gguf
    base = convert("./quantize", "f16", out("f16.gguf"), "--model", w.hf)
    path = rows_file(w, "export-imatrix", rows(w)[:3])
    ours.run(["./infer", "--model", base, "--imatrix", out("imatrix.gguf"), "--text", path], "imatrix")
    mine = {t.name: t.data.reshape(-1) for t in gguf.GGUFReader(out("imatrix.gguf")).tensors}
    want = theirs("squares", base, path)
    if len(mine) != 2 * len(want):
        raise ours.Failed(f"{len(mine)} tensors in the importance matrix, {2 * len(want)} expected")
    yield "sums of squares, of the largest of a layer", max(
        np.abs(mine[n + ".in_sum2"] - np.array(s)).max() / max(s) for n, s in want.items()), 5e-3


CHECKS = (gguf_files, gguf_families, nf4_checkpoint, nf4_base, gguf_lora, importance)
