#!/usr/bin/env python3
"""make bench-infer: inference against llama.cpp on the same GGUF files, in one run. bench/README.md defines every figure.

    bench/bench_infer.py [--threads N] [--runs N] [--only WORD] [--ours]

llama.cpp comes with PyPI's llama-cpp-python, built here once for this machine into ~/.cache/peft.c/llama; the files are
made there too, out of SmolLM2-135M-Instruct (scripts/fetch_model.sh) and of random numbers in TinyLlama-1.1B's shape, by
llama.cpp's own quantiser.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "peft.c")
PYTHON = os.path.join(CACHE, "llama", "venv", "bin", "python")
FILES = os.path.join(CACHE, "bench", "gguf")
SMALL = ["Q4_0", "IQ4_NL", "Q8_0"]
LARGE = ["Q4_K_M", "Q5_K_M", "Q6_K"]
lines = []


def run(command, env=None):
    r = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    if r.returncode:
        sys.exit(f"bench_infer: '{' '.join(command)}' failed")
    return r.stdout


def figures(command):
    for line in run(command).splitlines():
        if line.startswith("{"):
            print(line, flush=True)
            lines.append(json.loads(line))


def have_llama():
    if os.path.exists(PYTHON):
        return
    print("building llama.cpp (once)", file=sys.stderr)
    run([sys.executable, "-m", "venv", os.path.dirname(os.path.dirname(PYTHON))])
    run([PYTHON, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36", "gguf==0.19.0"],
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON"})  # fmt: skip


def model(base, kind):
    """The path of a file, made where it is missing."""
    os.makedirs(FILES, exist_ok=True)
    path = os.path.join(FILES, f"{base}-{kind}.gguf")
    if os.path.exists(path):
        return path
    if base == "smollm2":
        source = run(["scripts/fetch_model.sh"]).strip()
    else:
        source = os.path.join(FILES, "tinyllama-F16.gguf")
        if not os.path.exists(source):
            run([PYTHON, "bench/make_gguf.py", "tinyllama-1.1b", source])
    if path != source:
        run([PYTHON, "bench/peer_llama.py", "--quantise", source, kind, path])
    return path


def adapter():
    """A directory with a random adapter of rank 16 on all linear layers, as PEFT writes one."""
    path = os.path.join(FILES, "adapter-r16")
    if not os.path.exists(path):
        run([PYTHON, "bench/make_adapter.py", path])
    return path


def first_token(path, o):
    """Seconds from exec to the first token's text, the file being in the page cache: median of the runs."""
    took = []
    for _ in range(o.runs):
        with tempfile.TemporaryFile() as sink:
            began = time.perf_counter()
            p = subprocess.Popen(["./infer", "--model", path, "--prompt", "The capital of France is", "--max-tokens", "1",
                                  "--temperature", "0", "--json", "--threads", str(o.threads)], cwd=ROOT, stdout=sink)  # fmt: skip
            if p.wait():
                sys.exit("bench_infer: ./infer failed")
            took.append(time.perf_counter() - began)
    took.sort()
    line = {"bench": "infer", "figure": "first_token", "side": "ours", "model": path, "seconds": round(took[len(took) // 2], 4)}
    print(json.dumps(line), flush=True)
    lines.append(line)


def find(name, side, path, **more):
    for line in reversed(lines):
        if line["figure"] == name and line["side"] == side and line.get("model") == path:
            more = {"base": "stored", "adapter": None, **more} if side == "ours" else more
            if all(line.get(k) == v for k, v in more.items()):
                return line
    return None


def goal(what, reached, limit, larger=True, note=""):
    if reached is None:
        return
    good = reached >= limit if larger else reached <= limit
    print(f"  {'met ' if good else 'MISSED'}  {what:<58} {reached:8.3f}   goal {'>=' if larger else '<='} {limit:g}{note}")


def rate(line):
    return line["tokens_per_second"] if line else None


def ratio(a, b):
    return rate(a) / rate(b) if a and b else None


def report(o, paths):
    print("\nours against llama.cpp, tokens/s")
    print(f"  {'file':<26}{'figure':<10}{'ours':>9}{'llama.cpp':>11}{'ratio':>7}{'% of reading':>14}")
    for path in paths:
        for name in ("decode", "prefill", "decode16"):
            a, b = find(name, "ours", path, mode=o.mode), find(name, "llama.cpp", path)
            if a:
                share = f"{a['bandwidth_percent']:.0f}" if "bandwidth_percent" in a else ""
                peer = f"{rate(b):>11.1f}{ratio(a, b):>7.2f}" if b else " " * 18
                print(f"  {os.path.basename(path):<26}{name:<10}{rate(a):>9.1f}{peer}{share:>14}")
    print("\ngoals")
    for path in paths:
        short = os.path.basename(path)
        a, b = find("decode", "ours", path, mode=o.mode), find("decode", "llama.cpp", path)
        if a and b:
            many = ratio(a, b)
            if many < 1.5 and a["bandwidth_percent"] >= 80:
                goal(f"decode {short}: % of the read bandwidth", a["bandwidth_percent"], 80, note=f" (ratio {many:.2f})")
            else:
                goal(f"decode {short}: times llama.cpp", many, 1.5)
        goal(f"16 sequences {short}: times llama.cpp",
             ratio(find("decode16", "ours", path, mode=o.mode), find("decode16", "llama.cpp", path)), 1.5)  # fmt: skip
    for base in ("smollm2", "tinyllama"):
        mine = [p for p in paths if os.path.basename(p).startswith(base)]
        theirs = [rate(x) for p in mine if (x := find("prefill", "llama.cpp", p))]
        for mode, limit in ((o.mode, 1.8), (o.precise, 1.5)):
            ours = [rate(x) for p in mine if (x := find("prefill", "ours", p, mode=mode))]
            if ours and theirs:
                goal(f"prefill {base} {mode}: times llama.cpp's best", max(ours) / max(theirs), limit)
    for line in lines:
        if line["figure"] == "decode" and line.get("base") == "nf4":
            goal("decode NF4: % of the read bandwidth", line["bandwidth_percent"], 80)
    base = find("decode", "ours", paths[0], mode=o.mode, adapter=None)
    with_adapter = find("decode", "ours", paths[0], mode=o.mode, adapter=True)
    if base and with_adapter:
        goal("decode with an unmerged adapter, slower by %", 100 * (rate(base) / rate(with_adapter) - 1), 18, False)
    base = find("prefill", "ours", paths[0], mode=o.mode, adapter=None)
    with_adapter = find("prefill", "ours", paths[0], mode=o.mode, adapter=True)
    if base and with_adapter:
        goal("prefill with an unmerged adapter, slower by %", 100 * (rate(base) / rate(with_adapter) - 1), 8, False)
    for line in lines:
        if line["figure"] == "first_token":
            goal("first token after exec, s", line["seconds"], 0.3, False)
        if line["figure"] == "memory" and line["side"] == "ours" and line["mode"] == o.mode and line["base"] == "stored":
            over = line["opened_bytes"] - os.path.getsize(line["model"])
            what = os.path.basename(line["model"]) + (" with an adapter" if line["adapter"] else "")
            goal(f"memory {what}: over the file, MiB", over / 2**20, 64, False)
    for line in lines:
        if line["figure"] == "divergence":
            print(f"  KL(precise || fast) {os.path.basename(line['model'])} {line['base']}: mean {line['kl_mean']:.2e}, "
                  f"worst {line['kl_max']:.2e}, same word {line['same_word_percent']:.1f} %")  # fmt: skip


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--only", default="", help="files whose name contains this")
    p.add_argument("--ours", action="store_true", help="without llama.cpp")
    o = p.parse_args()
    have_llama()
    common = ["--threads", str(o.threads), "--runs", str(o.runs)]
    paths = [model("smollm2", k) for k in SMALL] + [model("tinyllama", k) for k in LARGE]
    paths = [x for x in paths if o.only in x]
    ours = ["build/bench/bench_infer"]
    for path in paths:
        figures([*ours, path, *common])
        o.mode = lines[-1]["mode"]
        if not o.ours:
            figures([PYTHON, "bench/peer_llama.py", path, *common])
    if not paths:
        sys.exit("bench_infer: no such file")
    figures([*ours, paths[0], "--isa", "auto", *common, "prefill"])
    o.precise = lines[-1]["mode"]
    if os.path.basename(paths[0]).startswith("smollm2"):
        figures([*ours, model("smollm2", "F16"), "--4bit", *common])
        figures([*ours, paths[0], "--adapter", adapter(), *common])
        first_token(paths[0], o)
        for path in [paths[0], model("smollm2", "F16")]:
            figures(["build/bench/bench_kl", path, "--threads", str(o.threads)])
        figures(["build/bench/bench_kl", model("smollm2", "F16"), "--4bit", "--threads", str(o.threads)])
    report(o, paths)


if __name__ == "__main__":
    main()
