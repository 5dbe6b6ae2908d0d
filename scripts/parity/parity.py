"""Compares ours with transformers, peft and bitsandbytes, on the real model and on the tiny random ones; see run.sh.

A check is a function that yields (what, measured, tolerance); it passes when measured <= tolerance. Every yielded line is
printed and counted; a check that raises counts as one failure. The tolerances are the project's contract: 1e-3 absolute for
fp32 log-probabilities, 1e-3 relative for losses and for gradients against their norm.
"""
import argparse
import functools
import glob
import json
import math
import os
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import material  # noqa: E402
import ours  # noqa: E402
import reference  # noqa: E402
import export_checks  # noqa: E402
import text_checks  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

TINY = "tests/golden/tiny_llama"
TIED = "tests/golden/tiny_tied"
SETTINGS = {"sequence_len": 128, "micro_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
            "lr_scheduler": "cosine", "warmup_steps": 3, "max_steps": 20, "weight_decay": 0.01, "max_grad_norm": 0.5,
            "lora_dropout": 0.0, "bnb_4bit_use_double_quant": True}
REL = 1e-3  # losses and gradients
ABS = 1e-3  # log-probabilities


class World:
    """What several checks share, made when first asked for."""

    def __init__(self, gguf):
        self.gguf = gguf
        self.cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "peft.c")

    @functools.cached_property
    def hf(self):
        return material.hf_directory(self.gguf, self.cache)

    @functools.cached_property
    def tokenizer(self):
        return AutoTokenizer.from_pretrained(self.hf)

    @functools.cached_property
    def texts(self):
        docs = sorted(glob.glob(os.path.join(ours.ROOT, "docs", "*.md"))) + [os.path.join(ours.ROOT, "LICENSE")]
        return [open(p, encoding="utf-8").read() for p in docs]

    @functools.cached_property
    def rows(self):
        return material.rows(self.tokenizer, self.texts, 80, 12, 64, seed=3)

    @functools.cached_property
    def scored(self):
        return [r["input_ids"] for r in material.rows(self.tokenizer, self.texts[::-1], 6, 24, 120, seed=4)]

    @functools.cached_property
    def base(self):
        return reference.load(self.hf)

    @functools.cached_property
    def base_nf4(self):
        """NF4 whose mean scale does not depend on the order of a sum; what that changed stays in scale_steps."""
        model = reference.load(self.hf, nf4=True)
        self.scale_steps = reference.exact_mean(model, self.hf)
        return model

    @functools.cached_property
    def adapter(self):
        return material.adapter(self.base, os.path.join(self.cache, "parity", "adapter-r8"), "SmolLM2-135M-Instruct")


def apart(theirs, mine):
    """Largest absolute difference over rows of log-probabilities; not a number counts as infinite."""
    worst = max(abs(a - b) if math.isfinite(a - b) else math.inf for t, m in zip(theirs, mine, strict=True)
                for a, b in zip(t, m, strict=True))
    return worst


def compare_scores(name, model, rows, options):
    return apart([reference.logprobs(model, r) for r in rows], ours.score(name, rows, options))


def tiny_rows(n=6):
    with open(os.path.join(ours.ROOT, "tests/golden/tiny_train/rows.jsonl")) as f:
        return [json.loads(line) for line in f][:n]


# --- checks ---------------------------------------------------------------------------------------------------------------

def logits(w):
    ids = [r["input_ids"] for r in tiny_rows()]
    for path in (TINY, TIED):
        model = reference.load(os.path.join(ours.ROOT, path))
        name = os.path.basename(path)
        yield f"log-probabilities, {name}", compare_scores("logits-" + name, model, ids, ["--model", path]), ABS
    theirs = [reference.logprobs(w.base, r) for r in w.scored]
    yield "log-probabilities, SmolLM2 as a Hugging Face directory, F32", \
        apart(theirs, ours.score("logits-hf", w.scored, ["--model", w.hf])), ABS
    yield "log-probabilities, SmolLM2 as a GGUF file, Q4_1", \
        apart(theirs, ours.score("logits-gguf", w.scored, ["--model", w.gguf])), ABS


def nf4(w):
    ids = [r["input_ids"] for r in tiny_rows()]
    model = reference.load(os.path.join(ours.ROOT, TINY), nf4=True)
    yield "log-probabilities, NF4 base with double quantisation, tiny_llama", \
        compare_scores("nf4-tiny", model, ids, ["--model", TINY, "--load-in-4bit"]), ABS
    model = reference.load(os.path.join(ours.ROOT, TINY), nf4=True, double_quant=False)
    yield "log-probabilities, NF4 base without double quantisation, tiny_llama", \
        compare_scores("nf4-single", model, ids, ["--model", TINY, "--load-in-4bit", "--no-double-quant"]), ABS
    theirs = [reference.logprobs(w.base_nf4, r) for r in w.scored]
    mine = ours.score("nf4-real", w.scored, ["--model", w.hf, "--load-in-4bit"])
    yield "log-probabilities, NF4 base with double quantisation, SmolLM2", apart(theirs, mine), ABS
    changed, step, count = w.scale_steps
    yield f"steps of the scales' codes when their mean is summed in fp32 ({changed} of {count} change)", step, 1
    own = reference.load(w.hf, nf4=True)
    theirs, mine = (sum(map(sum, x)) for x in ([reference.logprobs(own, r) for r in w.scored], mine))
    yield "held-out loss, NF4 base untouched, SmolLM2", abs(mine - theirs) / abs(theirs), REL


def worst(mine, theirs, key):
    return max(abs(m[key] - t[key]) / max(abs(t[key]), 1e-12) for m, t in zip(mine, theirs, strict=True))


def compare_training(label, name, model, rows, rows_path, settings, variants=()):
    """Loss, gradient norm and rate of each step, the first step's gradients, and the parameter counts. variants are runs of
    ours whose other settings must not change the numbers."""
    trainable, everything = model.get_nb_trainable_parameters()
    theirs, first = reference.train(model, rows, settings)
    for suffix, changed in (("", {}), *variants):
        grads = os.path.join(ours.WORK, name + suffix + "-grad.safetensors")
        mine, out, text = ours.train(name + suffix, {**settings, **changed}, rows_path, [f"--dump-gradients={grads}"])
        what = label + (f" ({', '.join(f'{k}={v}' for k, v in changed.items() if k != 'base_model')})" if changed else "")
        if len(mine) != len(theirs):
            raise ours.Failed(f"{len(mine)} steps in metrics.jsonl, {len(theirs)} expected")
        yield f"loss of {len(theirs)} steps, {what}", worst(mine, theirs, "loss"), REL
        yield f"gradient norm of {len(theirs)} steps, {what}", worst(mine, theirs, "grad_norm"), REL
        yield f"learning rate of {len(theirs)} steps, {what}", max(
            abs(m["learning_rate"] - t["learning_rate"]) / settings["learning_rate"] for m, t in zip(mine, theirs)), 1e-6
        yield f"target tokens, {what}", max(abs(m["target_tokens"] - t["target_tokens"]) for m, t in zip(mine, theirs)), 0
        got = load_file(grads)
        if sorted(got) != sorted(first):
            raise ours.Failed(f"gradient names differ: {sorted(set(got) ^ set(first))[:4]}")
        yield f"gradients of {len(first)} tensors, {what}", max(
            ((got[n] - g).norm() / g.norm()).item() for n, g in first.items()), REL
        if not suffix:
            n, total, _ = ours.trainable_line(text)
            yield f"trainable and all parameters as peft counts them, {what}", abs(n - trainable) + abs(total - everything), 0


def tiny_training(name, is_nf4):
    rows = tiny_rows(80)
    adapter = os.path.join(ours.ROOT, "tests/golden/tiny_train/adapter_init")
    model = reference.with_adapter(reference.load(os.path.join(ours.ROOT, TINY), is_nf4), adapter, trainable=True)
    settings = dict(SETTINGS, base_model=TINY, lora_model_dir=adapter, load_in_4bit=is_nf4)
    yield from compare_training(f"tiny_llama {'NF4 QLoRA' if is_nf4 else 'fp32 LoRA'}", name, model, rows,
                                "tests/golden/tiny_train/rows.jsonl", settings)


def real_training(w, name, is_nf4):
    rows_path = material.write_jsonl(os.path.join(ours.WORK, "rows.jsonl"), w.rows)
    model = reference.with_adapter(w.base_nf4 if is_nf4 else w.base, w.adapter, trainable=True)
    settings = dict(SETTINGS, base_model=w.hf, lora_model_dir=w.adapter, load_in_4bit=is_nf4)
    variants = () if is_nf4 else (("-gguf", {"base_model": w.gguf, "micro_batch_size": 4, "gradient_accumulation_steps": 1,
                                             "gradient_checkpointing": True}),)
    yield from compare_training(f"SmolLM2 {'NF4 QLoRA' if is_nf4 else 'fp32 LoRA'}", name, model, w.rows, rows_path, settings,
                                variants=variants)
    reference.save_adapter(model, os.path.join(ours.WORK, name + "-peft"), "SmolLM2-135M-Instruct")
    model.unload()
    if is_nf4:
        own = reference.with_adapter(reference.load(w.hf, nf4=True), w.adapter, trainable=True)
        theirs, _ = reference.train(own, w.rows, settings)
        yield "loss of 20 steps, SmolLM2 NF4 QLoRA, base untouched", worst(
            ours.metrics(name), theirs, "loss"), REL


def tiny_lora(w):
    yield from tiny_training("tiny-lora", False)


def tiny_qlora(w):
    yield from tiny_training("tiny-qlora", True)


def lora(w):
    yield from real_training(w, "lora", False)


def qlora(w):
    yield from real_training(w, "qlora", True)


def trained(name):
    """Our adapter and peft's, as the training checks left them."""
    mine, theirs = os.path.join(ours.WORK, name), os.path.join(ours.WORK, name + "-peft")
    for d in (mine, theirs):
        if not os.path.exists(os.path.join(d, "adapter_model.safetensors")):
            raise ours.Failed(f"{d} has no adapter: the check '{name}' makes it")
    return mine, theirs


def adapters(w):
    for name, base, options in (("lora", w.base, []), ("qlora", w.base_nf4, ["--load-in-4bit"])):
        for label, d in zip(("our adapter in peft", "peft's adapter in ours"), trained(name)):
            model = reference.with_adapter(base, d)
            yield f"log-probabilities, {label}, SmolLM2 {name}", compare_scores(
                f"adapter-{name}", model, w.scored, ["--model", w.hf, "--adapter", d, *options]), ABS
            model.unload()


def merged(w):
    for name, base, options in (("lora", w.base, []), ("qlora", w.base_nf4, ["--load-in-4bit"])):
        adapter = trained(name)[0]
        out = os.path.join(ours.WORK, "merged-" + name)
        ours.run(["./merge", "--model", w.hf, "--adapter", adapter, "--out", out, "--dtype", "f32", "--overwrite", *options],
                 "merge-" + name)
        model = reference.load(out)
        mine = ours.score("merged-" + name, w.scored, ["--model", out])
        yield f"log-probabilities, merged directory in transformers and in ours, {name}", apart(
            [reference.logprobs(model, r) for r in w.scored], mine), ABS
        unmerged = reference.with_adapter(base, adapter)
        yield f"log-probabilities, merged in ours and unmerged in peft, {name}", apart(
            [reference.logprobs(unmerged, r) for r in w.scored], mine), ABS
        unmerged.unload()
        for i, (prompt, chat) in enumerate((("Permission is hereby granted", False), ("The layers, lowest first, are", False),
                                            ("Name three rivers of Europe.", True))):
            text = prompt if not chat else w.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
            tokens = reference.greedy(model, w.tokenizer(text)["input_ids"], 32)
            theirs = w.tokenizer.decode(tokens, skip_special_tokens=True)
            got, n = ours.generate(f"greedy-{name}-{i}", 32, ["--model", out, "--prompt", prompt, *(["--chat"] if chat else [])])
            same = got == theirs and n == len(tokens)
            if not same:
                print(f"      transformers, {len(tokens)} tokens: {theirs!r}\n      ours, {n} tokens: {got!r}")
            yield f"greedy text of 32 tokens, merged {name}, {'chat' if chat else 'text'} {i + 1}", float(not same), 0


def engine(w):
    """200 prompts, 12 tokens each: transformers one by one; ours in batches of sixteen, of the base, of an adapter unmerged and
    merged, and of both in turns in the same batch."""
    words = "\n".join(w.texts).split(" ")
    prompts = [" ".join(words[17 * i % len(words):17 * i % len(words) + 6 + i % 11]) or "The" for i in range(200)]
    theirs = []
    for adapter in (None, w.adapter):  # one after the other: peft changes the base in place
        model = reference.with_adapter(w.base, adapter) if adapter else w.base
        theirs.append([w.tokenizer.decode(reference.greedy(model, w.tokenizer(p)["input_ids"], 12), skip_special_tokens=True)
                       for p in prompts])
    model.unload()
    rows, options = [{"prompt": p} for p in prompts], ["--model", w.hf]
    adapter = options + ["--adapter", w.adapter]
    mixed = [dict(row, adapter="base") if i % 2 else row for i, row in enumerate(rows)]
    for what, want, got in (
            ("base", theirs[0], ours.batch("engine-base", rows, 12, options)),
            ("adapter unmerged", theirs[1], ours.batch("engine-unmerged", rows, 12, adapter)),
            ("adapter merged", theirs[1], ours.batch("engine-merged", rows, 12, adapter + ["--merge"])),
            ("base and adapter in turns", [theirs[1 - i % 2][i] for i in range(200)],
             ours.batch("engine-mixed", mixed, 12, adapter))):
        yield f"greedy texts of 200 prompts that differ, {what}", sum(a != b for a, b in zip(want, got)), 0


CHECKS = {f.__name__: f for f in (*text_checks.CHECKS, logits, nf4, tiny_lora, tiny_qlora, lora, qlora, adapters, merged, engine,
                                 *export_checks.CHECKS)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", required=True, help="SmolLM2-135M-Instruct Q4_1")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    parser.add_argument("check", nargs="*", help="names or beginnings of names (all when none is given)")
    a = parser.parse_args()
    if a.list:
        print("\n".join(CHECKS))
        return 0
    chosen = [c for c in CHECKS if not a.check or any(c.startswith(x) for x in a.check)]
    os.makedirs(ours.WORK, exist_ok=True)
    torch.manual_seed(0)
    world, passed, failed = World(a.gguf), 0, 0
    for name in chosen:
        began = time.time()
        try:
            for what, measured, tolerance in CHECKS[name](world):
                good = measured <= tolerance
                passed, failed = passed + good, failed + (not good)
                print(f"{'PASS' if good else 'FAIL'}  {what}: {measured:.3g} (tolerance {tolerance:g})", flush=True)
        except Exception as e:
            failed += 1
            print(f"FAIL  {name}: {type(e).__name__}: {e}", flush=True)
            if not isinstance(e, (ours.Failed, FileNotFoundError)):
                traceback.print_exc()
        print(f"      {name}: {time.time() - began:.0f} s", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
