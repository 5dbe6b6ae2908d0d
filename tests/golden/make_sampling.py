#!/usr/bin/env python3
"""sampling.json: what bias, penalties and filters leave of a row of logits, by plain formulas in numpy (float64).

    ~/.cache/peft.c/venv/bin/python tests/golden/make_sampling.py

Written from the definitions: repetition (Keskar et al. 2019), OpenAI's presence and frequency penalties, top-k, nucleus
(Holtzman et al. 2020), min-p (Nguyen et al. 2024). Filters act one after another on the renormalised rest; temperature last.
"""
import json
import os

import numpy as np

VOCAB = 24
HERE = os.path.dirname(os.path.abspath(__file__))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def adjusted(logits, tokens, prompt, p):
    x = logits.astype(np.float64).copy()
    for i, b in p.get("bias", []):
        x[i] += -np.inf if b == "-inf" else b
    last = p.get("repeat_last_n", 64)
    recent = tokens if last < 0 else tokens[max(0, len(tokens) - last):]
    for t in sorted(set(recent)):
        r = p.get("repetition", 1)
        x[t] = x[t] / r if x[t] > 0 else x[t] * r
    for t in sorted(set(tokens[prompt:])):
        x[t] -= p.get("frequency", 0) * tokens[prompt:].count(t) + p.get("presence", 0)
    return x


def kept(x, p):
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))
    if p.get("top_k", 0):
        order = order[: p["top_k"]]
    if p.get("top_p", 1) < 1:
        q = softmax(x[order])
        order = order[: int(np.searchsorted(np.cumsum(q), p["top_p"], side="left")) + 1]
    if p.get("min_p", 0):
        q = softmax(x[order])
        order = [i for i, v in zip(order, q) if v >= p["min_p"] * q.max()]
    return order


CASES = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 100},
    {"top_p": 0.5},
    {"top_p": 0.9, "temperature": 1.5},
    {"top_p": 0.001},
    {"min_p": 0.1},
    {"min_p": 0.3, "temperature": 0.7},
    {"top_k": 8, "top_p": 0.7, "min_p": 0.2},
    {"repetition": 1.5},
    {"repetition": 0.7, "repeat_last_n": 3},
    {"repetition": 1.5, "repeat_last_n": -1},
    {"repetition": 1.5, "repeat_last_n": 0},
    {"presence": 0.8},
    {"frequency": 0.6},
    {"frequency": -0.5, "presence": 1.2, "repetition": 1.3, "top_p": 0.8},
    {"bias": [[3, 2.5], [7, "-inf"], [11, -1]]},
    {"bias": [[3, 4], [3, -2]], "repetition": 2, "presence": 1, "top_k": 10, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
]


def main():
    rng = np.random.default_rng(7)
    out = []
    for p in CASES:
        logits = (2 * rng.standard_normal(VOCAB)).astype(np.float32)
        tokens = [int(t) for t in rng.integers(0, VOCAB, 14)]
        tokens[9] = tokens[12] = tokens[13]
        x = adjusted(logits, tokens, 8, p)
        order = kept(x, p)
        q = softmax(x[order] / p.get("temperature", 1))
        raw = logits.astype(np.float64)
        lp = raw - raw.max() - np.log(np.exp(raw - raw.max()).sum())
        out.append({"params": p, "logits": [float(v) for v in logits], "tokens": tokens, "prompt": 8, "kept": order,
                    "probability": [float(v) for v in q], "logprob": [round(float(v), 9) for v in lp]})
    with open(os.path.join(HERE, "sampling.json"), "w") as f:
        f.write('{"cases": [\n' + ",\n".join(json.dumps(c) for c in out) + "\n]}\n")


if __name__ == "__main__":
    main()
