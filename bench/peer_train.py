#!/usr/bin/env python3
"""Training speed and memory of peft + bitsandbytes on this machine: LoRA on every linear layer, every token a target.

    peer_train.py --model DIR --base nf4|fp --compute float32|bfloat16 [--batch 4 --length 256 --rank 16 --steps 5]

DIR holds a model and rows-LENGTH.jsonl, as build/bench/make_model writes them.
Prints one JSON object. A step is forward, backward, clipping and AdamW, as users of the library write it; the first steps warm
up and are not counted. tokens_per_second is the median over steps, peak_rss_bytes the high-water mark of the training steps
alone (loading excluded), total_peak_rss_bytes that of the process. No step is begun when --budget seconds are spent.
"""
import argparse
import json
import os
import re
import statistics
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")


def high_water_mark():
    with open("/proc/self/status") as f:
        return int(re.search(r"VmHWM:\s+(\d+) kB", f.read())[1]) * 1024


def reset_high_water_mark():
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        pass  # then the peak includes loading, which total_peak_rss_bytes shows by being equal


def load(a):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    dtype = getattr(torch, a.compute)
    kw = {}
    if a.base == "nf4":
        kw = dict(device_map=a.device, quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype))
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=dtype, **kw)
    model = model.to(a.device)
    model.config.use_cache = False
    if a.checkpoint:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    return get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0, target_modules="all-linear",
                                            task_type="CAUSAL_LM")).train()


def measure(a):
    import bitsandbytes
    import peft
    import torch
    import transformers
    transformers.utils.logging.set_verbosity_error()
    if a.threads:
        torch.set_num_threads(a.threads)
    model = load(a)
    params = [p for p in model.parameters() if p.requires_grad]
    opt = torch.optim.AdamW(params, lr=1e-4)
    path = os.path.join(a.model, f"rows-{a.length}.jsonl")
    with open(path) as f:
        rows = [json.loads(line)["input_ids"] for line in f]
    if len(rows) < a.batch or len(rows[0]) != a.length:
        sys.exit(f"peer_train.py: {path}: {len(rows)} rows of {len(rows[0])}, expected {a.batch} of {a.length} or more")
    loading = high_water_mark()
    reset_high_water_mark()
    seconds, losses = [], []
    for step in range(a.warmup + a.steps):
        if len(seconds) > a.warmup and sum(seconds) > a.budget:
            break
        at = step * a.batch % (len(rows) - a.batch + 1)
        ids = torch.tensor(rows[at:at + a.batch], device=a.device)
        began = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
        if a.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(loss.item())
    counted = seconds[a.warmup:]
    tokens = a.batch * a.length
    return {"what": "train", "who": "peft + bitsandbytes" if a.base == "nf4" else "peft", "base": a.base, "compute": a.compute,
            "batch": a.batch, "length": a.length, "rank": a.rank, "checkpointing": a.checkpoint,
            "tokens_per_second": tokens / statistics.median(counted), "step_seconds": [round(s, 3) for s in counted],
            "peak_rss_bytes": high_water_mark(),
            "device": a.device, "peak_device_bytes": torch.cuda.max_memory_reserved() if a.device == "cuda" else 0,
            "total_peak_rss_bytes": max(loading, high_water_mark()),
            "first_loss": losses[0], "loss": [round(x, 4) for x in losses], "threads": torch.get_num_threads(),
            "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes)}}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="Hugging Face directory with rows-LENGTH.jsonl beside the weights")
    p.add_argument("--base", choices=["nf4", "fp"], default="nf4")
    p.add_argument("--compute", choices=["float32", "bfloat16"], default="float32")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    p.add_argument("--checkpoint", action="store_true", help="gradient checkpointing")
    for name, default in (("batch", 4), ("length", 256), ("rank", 16), ("steps", 5), ("warmup", 1), ("threads", 0),
                          ("budget", 120)):
        p.add_argument("--" + name, type=int, default=default)
    a = p.parse_args()
    print(json.dumps(measure(a)))


if __name__ == "__main__":
    main()
