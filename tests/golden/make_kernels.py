"""Writes kernels.json: what torch computes in double, with its own derivatives, for small inputs exact in float.
Used by tests/test_reference.c. Run with torch 2.13.0."""
import json
import os
import torch
import torch.nn.functional as F

torch.manual_seed(7)
out = {}


def make(*shape):
    return torch.randn(*shape).double().requires_grad_()


def keep(name, **tensors):
    out[name] = {k: [float(f"{x:.10g}") for x in t.detach().flatten().tolist()] for k, t in tensors.items()}


x, g, dy = make(3, 20), make(20), make(3, 20)
y = F.rms_norm(x, (20,), g, 1e-3)
y.backward(dy)
keep("norm", x=x, g=g, dy=dy, y=y, dx=x.grad)

for name, act in (("silu", F.silu), ("gelu", lambda t: F.gelu(t, approximate="tanh"))):
    gate, up, dy = make(2, 17), make(2, 17), make(2, 17)
    y = act(gate) * up
    y.backward(dy)
    keep(name, gate=gate, up=up, dy=dy, y=y, dgate=gate.grad, dup=up.grad)

heads, kv, dim, rows = 4, 2, 6, 9
for name, window in (("attention", rows), ("attention_window", 4)):
    q, k, v, dout = make(rows, heads, dim), make(rows, kv, dim), make(rows, kv, dim), make(rows, heads, dim)
    i, j = torch.arange(rows)[:, None], torch.arange(rows)[None, :]
    mask = (j <= i) & (j > i - window)
    o = F.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (q, k, v)), attn_mask=mask, scale=0.5,
                                       enable_gqa=True).transpose(0, 1)
    o.backward(dout)
    keep(name, q=q, k=k, v=v, dout=dout, o=o, dq=q.grad, dk=k.grad, dv=v.grad)

h, w, target = make(4, 5), make(700, 5), torch.tensor([0, 383, 384, 699])
loss = F.cross_entropy(h @ w.T, target, reduction="none")
loss.sum().backward()
keep("head", h=h, w=w, logprob=-loss, dh=h.grad)

x, g, b, dy = make(3, 20), make(20), make(20), make(3, 20)
y = F.layer_norm(x, (20,), g, b, 1e-3)
y.backward(dy)
keep("layernorm", x=x, g=g, b=b, dy=dy, y=y, dx=x.grad)

with open(os.path.join(os.path.dirname(__file__), "kernels.json"), "w") as f:
    json.dump(out, f, separators=(",", ":"))
    f.write("\n")
