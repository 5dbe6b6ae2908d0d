"""What llama.cpp makes of the same GGUF file: the figures of bench_infer.c, one JSON line each.

    python bench/peer_llama.py MODEL.gguf [--threads N] [--runs N] [--rows PROMPT] [WORD]
    python bench/peer_llama.py --quantise SOURCE.gguf TYPE TARGET.gguf      by llama.cpp's own quantiser

llama-cpp-python's low-level interface is llama.cpp's C interface; what is timed is llama_decode alone, as in its own
llama-bench: no sampling, no text. With one thread the process's processor time counts, else the wall clock.
"""
import argparse
import ctypes
import json
import os
import resource
import statistics
import sys
import time

import llama_cpp as lc

PAST, TOKENS, MANY, CONTEXT = 32, 64, 16, 1024
QUIET = lc.llama_log_callback(lambda level, text, data: None)


def now(threads):
    return time.process_time() if threads == 1 else time.perf_counter()


class Model:
    def __init__(self, path, threads, seqs):
        params = lc.llama_model_default_params()
        params.use_mmap = True
        self.model = lc.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            sys.exit(f"{path}: llama.cpp does not load it")
        context = lc.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = CONTEXT * seqs, 512, 512
        context.n_seq_max = seqs
        context.n_threads = context.n_threads_batch = threads
        context.no_perf = True
        self.ctx = lc.llama_init_from_model(self.model, context)
        self.memory = lc.llama_get_memory(self.ctx)
        self.batch = lc.llama_batch_init(512, 0, 1)
        self.vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.salt = 0

    def word(self):
        self.salt += 1
        return self.salt * 2654435761 % 2**32 % self.vocab

    def decode(self, rows):
        """rows: (token, position, sequence, logits wanted)"""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (token, pos, seq, wanted) in enumerate(rows):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = token, pos, 1, wanted
            b.seq_id[i][0] = seq
        if lc.llama_decode(self.ctx, b):
            sys.exit("llama_decode failed")

    def prompt(self, seq, n):
        for at in range(0, n, 512):
            end = min(n, at + 512)
            self.decode([(self.word(), i, seq, i == n - 1) for i in range(at, end)])

    def clear(self):
        lc.llama_memory_clear(self.memory, True)

    def time_decode(self, seqs, threads):
        """seconds of a step, after PAST tokens"""
        self.clear()
        for s in range(seqs):
            self.prompt(s, PAST)
        began = now(threads)
        for k in range(TOKENS - 1):
            self.decode([(self.word(), PAST + k, s, 1) for s in range(seqs)])
        return (now(threads) - began) / (TOKENS - 1)

    def time_prefill(self, n, threads):
        self.clear()
        began = now(threads)
        self.prompt(0, n)
        return now(threads) - began


def figure(name, path, threads, rates):
    line = {"bench": "infer", "figure": name, "side": "llama.cpp", "model": path, "threads": threads, "runs": len(rates),
            "tokens_per_second": round(statistics.median(rates), 2), "low": round(min(rates), 2),
            "high": round(max(rates), 2)}  # fmt: skip
    print(json.dumps(line), flush=True)


def quantise(source, kind, target):
    params = lc.llama_model_quantize_default_params()
    params.ftype = getattr(lc, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.allow_requantize = True
    params.nthread = os.cpu_count()
    temporary = target + ".part"
    if lc.llama_model_quantize(source.encode(), temporary.encode(), ctypes.byref(params)):
        sys.exit(f"{source}: llama.cpp does not quantise it to {kind}")
    os.rename(temporary, target)


def main():
    lc.llama_log_set(QUIET, ctypes.c_void_p(0))
    lc.llama_backend_init()
    if sys.argv[1:2] == ["--quantise"]:
        quantise(*sys.argv[2:5])
        return
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("word", nargs="?", default="")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--rows", type=int, default=512)
    o = p.parse_args()
    for name, seqs in (("decode", 1), ("prefill", 1), ("decode16", MANY)):
        if o.word not in name:
            continue
        m = Model(o.model, o.threads, seqs)
        if name == "prefill":
            m.time_prefill(o.rows, o.threads)
            figure(name, o.model, o.threads, [o.rows / m.time_prefill(o.rows, o.threads) for _ in range(o.runs)])
        else:
            m.time_decode(seqs, o.threads)
            figure(name, o.model, o.threads, [seqs / m.time_decode(seqs, o.threads) for _ in range(o.runs)])
        lc.llama_free(m.ctx)
        lc.llama_model_free(m.model)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bench": "infer", "figure": "memory", "side": "llama.cpp", "model": o.model, "peak_rss_bytes": rss}))


if __name__ == "__main__":
    main()
