"""Calls ./train ./infer ./merge and the test tool that tokenises; a failing program raises with its own last lines."""
import json
import os
import re
import subprocess

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
WORK = os.path.join(ROOT, "build", "parity")


class Failed(Exception):
    pass


def run(args, name, stdin=None, binary=False):
    """Runs a program in the root of the tree; its output is kept in build/parity/NAME.log. Returns stdout."""
    args = [str(a) for a in args]
    feed = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    p = subprocess.run(args, cwd=ROOT, capture_output=True, **feed)
    with open(os.path.join(WORK, name + ".log"), "wb") as f:
        f.write(" ".join(args).encode() + b"\n" + p.stderr + p.stdout[:100000])
    if p.returncode != 0:
        last = (p.stderr or p.stdout).decode(errors="replace").strip().splitlines()[-3:]
        raise Failed(f"{os.path.basename(args[0])} ended with {p.returncode}: " + " | ".join(last))
    return p.stdout if binary else p.stdout.decode()


def yaml_text(settings):
    def value(v):
        return {True: "true", False: "false"}[v] if isinstance(v, bool) else json.dumps(v)
    return "".join(f"{k}: {value(v)}\n" for k, v in settings.items())


def train(name, settings, rows_path, options=()):
    """Returns (metrics of the step rows, output_dir, stdout + progress)."""
    out = os.path.join(WORK, name)
    config = dict(settings, datasets=[{"path": rows_path, "type": "tokenized"}], output_dir=out,
                  shuffle_merged_datasets=False, val_set_size=0, logging_steps=1)
    path = os.path.join(WORK, name + ".yaml")
    with open(path, "w") as f:
        f.write(yaml_text(config))
    subprocess.run(["rm", "-rf", out], check=True)
    text = run(["./train", path, *options], name)
    return metrics(name), out, text + open(os.path.join(WORK, name + ".log"), errors="replace").read()


def metrics(name):
    with open(os.path.join(WORK, name, "metrics.jsonl")) as f:
        return [m for m in map(json.loads, f) if "loss" in m]


def score(name, rows, options):
    path = os.path.join(WORK, name + ".jsonl")
    with open(path, "w") as f:
        for ids in rows:
            f.write(json.dumps({"input_ids": ids}) + "\n")
    lines = run(["./infer", *options, "--score", path], name).splitlines()
    out = [json.loads(line) for line in lines if line.startswith("{")]
    if len(out) != len(rows):
        raise Failed(f"./infer --score gave {len(out)} rows for {len(rows)}")
    for got, ids in zip(out, rows):
        if got["input_ids"] != ids or got["logprobs"][0] is not None or len(got["logprobs"]) != len(ids):
            raise Failed("./infer --score changed the input_ids, or its logprobs are not null, then one per token")
    return [r["logprobs"][1:] for r in out]


def generate(name, n, options):
    """Greedy text of at most n tokens, without the prompt, and their number."""
    answer = json.loads(run(["./infer", *options, "--precise", "--max-tokens", n, "--temperature", 0, "--json"], name))
    return answer["text"], answer["completion_tokens"]


def batch(name, rows, n, options):
    """Greedy texts of at most n tokens for rows of --batch, computed sixteen at a time."""
    path = os.path.join(WORK, name + ".jsonl")
    with open(path, "w") as f:
        for row in rows:
            f.write(json.dumps(row) + "\n")
    lines = run(["./infer", *options, "--precise", "--batch", path, "--parallel", 16, "--max-tokens", n, "--temperature", 0],
                name).splitlines()
    out = [json.loads(line) for line in lines if line.startswith("{")]
    if [o["index"] for o in out] != list(range(len(rows))):
        raise Failed(f"./infer --batch gave {len(out)} rows for {len(rows)}, or in another order")
    return [o["text"] for o in out]


def trainable_line(text):
    m = re.search(r"trainable params: ([\d,]+) \|\| all params: ([\d,]+) \|\| trainable%: ([\d.]+)", text)
    if not m:
        raise Failed("no line 'trainable params: N || all params: N || trainable%: N'")
    return int(m[1].replace(",", "")), int(m[2].replace(",", "")), float(m[3])
