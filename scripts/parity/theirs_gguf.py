"""What llama.cpp makes of files: run by the Python of a virtual environment that has llama-cpp-python, numpy and gguf.

    python scripts/parity/theirs_gguf.py nll MODEL ROWS.jsonl [ADAPTER.gguf]      sum of -log p over the rows' tokens, and their number
    python scripts/parity/theirs_gguf.py greedy MODEL ROWS.jsonl N [ADAPTER.gguf]  N tokens after each row
    python scripts/parity/theirs_gguf.py squares MODEL ROWS.jsonl                 sums of squares that matrix products are given

ROWS.jsonl has "input_ids". The answer is one line of JSON.
"""
import ctypes
import json
import sys

import llama_cpp as ll
import numpy as np

QUIET = ll.llama_log_callback(lambda level, text, user: None)


class Tensor(ctypes.Structure):
    """ggml_tensor, as far as its name (ggml/include/ggml.h)."""
    _fields_ = [("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
                ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
                ("src", ctypes.c_void_p * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
                ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64)]


class Squares:
    """The eval callback of llama-imatrix: for products with weights of layers, the squares of what comes in."""
    def __init__(self):
        self.sums = {}
        self.callback = ll.ggml_backend_sched_eval_callback(self.see)

    def see(self, address, ask, user):
        t = Tensor.from_address(address if isinstance(address, int) else ctypes.cast(address, ctypes.c_void_p).value)
        if not t.src[0] or not t.src[1]:
            return not ask
        w, x = Tensor.from_address(t.src[0]), Tensor.from_address(t.src[1])
        name = w.name.decode()
        wanted = name.startswith("blk.") and name.endswith(".weight") and "norm" not in name and x.type == 0 and \
            t.ne[0] == w.ne[1] and w.ne[1] > 1 and w.ne[0] == x.ne[0]
        if ask or not wanted:
            return wanted or not ask
        rows = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), (x.ne[1], x.ne[0]))
        self.sums[name] = self.sums.get(name, 0) + (rows.astype(np.float64) ** 2).sum(0)
        return True


class Model:
    def __init__(self, path, longest, adapter=None, watch=None):
        ll.llama_log_set(QUIET, ctypes.c_void_p(0))
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.use_extra_bufts = False
        self.model = ll.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        c = ll.llama_context_default_params()
        c.n_ctx = c.n_batch = c.n_ubatch = (longest + 255) // 256 * 256
        c.n_threads = c.n_threads_batch = 2
        if watch:
            c.cb_eval = watch.callback
        self.context = ll.llama_init_from_model(self.model, c)
        if adapter:
            lora = ll.llama_adapter_lora_init(self.model, adapter.encode())
            if not lora:
                raise SystemExit(f"llama.cpp does not load {adapter}")
            pair = (ll.llama_adapter_lora_p_ctypes * 1)(lora)
            assert ll.llama_set_adapters_lora(self.context, pair, 1, (ctypes.c_float * 1)(1.0)) == 0

    def clear(self):
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def logits(self, ids, past, every):
        b = ll.llama_batch_init(len(ids), 0, 1)
        b.n_tokens = len(ids)
        for i, t in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.logits[i] = t, past + i, 1, every or i + 1 == len(ids)
            b.seq_id[i][0] = 0
        assert ll.llama_decode(self.context, b) == 0
        n = len(ids) if every else 1
        out = np.ctypeslib.as_array(ll.llama_get_logits(self.context), (n, self.vocab)).astype(np.float64)
        ll.llama_batch_free(b)
        return out


def nll(path, rows, adapter=None):
    m, total, n = Model(path, max(map(len, rows)), adapter), 0.0, 0
    for r in rows:
        m.clear()
        z = m.logits(r, 0, True)[:-1]
        top = z.max(1)
        total += (np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(len(z)), r[1:]]).sum()
        n += len(z)
    return {"nll": total, "tokens": n}


def greedy(path, rows, count, adapter=None):
    m, out = Model(path, max(map(len, rows)) + count, adapter), []
    for r in rows:
        m.clear()
        ids, made, past = list(r), [], 0
        for _ in range(count):
            made.append(int(m.logits(ids, past, False)[0].argmax()))
            past += len(ids)
            ids = made[-1:]
        out.append(made)
    return out


def squares(path, rows):
    watch = Squares()
    m = Model(path, max(map(len, rows)), watch=watch)
    for r in rows:
        m.clear()
        m.logits(r, 0, True)  # else the last layer sees only the last token
    return {name: s.tolist() for name, s in sorted(watch.sums.items())}


def main():
    what, path, rows_path, *rest = sys.argv[1:]
    with open(rows_path) as f:
        rows = [json.loads(line)["input_ids"] for line in f]
    if what == "nll":
        print(json.dumps(nll(path, rows, *rest)))
    elif what == "greedy":
        print(json.dumps(greedy(path, rows, int(rest[0]), *rest[1:])))
    else:
        print(json.dumps(squares(path, rows)))


if __name__ == "__main__":
    main()
