"""Token ids of a megabyte of mixed text, each file against the reference reader of that same file: a tokenizer.json against
the `tokenizers` package, a GGUF file against llama.cpp.

llama.cpp comes to PyPI as source only, and building it takes longer than everything else here; so what it gives for the fixed
text is kept as hashes in llama_cpp_tokens.json, made by `parity.py`'s python with llama-cpp-python installed:

    python scripts/parity/text_checks.py MODEL.gguf      rewrites llama_cpp_tokens.json
"""
import hashlib
import json
import os
import struct
import sys

import material
import ours

HERE = os.path.dirname(os.path.abspath(__file__))
STORED = os.path.join(HERE, "llama_cpp_tokens.json")
BYTES, SEED, LINES_A_CHUNK = 1_000_000, 17, 200


def words_of(vocabulary_file):
    """The plain words of a byte-level vocabulary in id order: printable ASCII with an optional leading blank."""
    with open(vocabulary_file, encoding="utf-8") as f:
        t = json.load(f)
    vocab = sorted(t["model"]["vocab"], key=t["model"]["vocab"].get)
    plain = [v.replace("\u0120", " ") for v in vocab if all("!" <= c <= "~" or c == "\u0120" for c in v)]
    specials = [a["content"] for a in t["added_tokens"] if a["special"]]
    return [p for p in plain if p.strip() and not p.startswith("<|")], specials


def lines_of(vocabulary_file):
    words, specials = words_of(vocabulary_file)
    # every special token alone, beside text and beside another one
    extra = specials + [f"a{s}b {s} c" for s in specials] + [s + t for s, t in zip(specials, specials[1:] + specials[:1])]
    return extra + material.mixed_text(words, specials, BYTES, SEED)


def ours_ids(name, model, lines, options=()):
    """build/tests/tool_tokenize reads a JSON string a line and prints a JSON list of ids a line; special tokens are parsed."""
    path = os.path.join(ours.WORK, name + ".txt")
    with open(path, "w", encoding="ascii") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)
    out = ours.run(["build/tests/tool_tokenize", model, path, "--json", *options], name)
    return [json.loads(line) for line in out.splitlines()]


def differing(name, lines, theirs, mine):
    """Number of lines whose ids differ; the first few are shown."""
    if len(theirs) != len(mine):
        raise ours.Failed(f"{len(mine)} lines of ids for {len(theirs)} lines of text")
    bad = [i for i in range(len(theirs)) if theirs[i] != mine[i]]
    for i in bad[:3]:
        at = next((k for k, (a, b) in enumerate(zip(theirs[i], mine[i])) if a != b), min(len(theirs[i]), len(mine[i])))
        print(f"      {name} line {i}: {lines[i][:60]!r}...: theirs {theirs[i][max(0, at - 1):at + 4]}, "
              f"ours {mine[i][max(0, at - 1):at + 4]} at token {at}")
    return len(bad)


def compare_with_tokenizers(name, directory, w):
    from tokenizers import Tokenizer
    path = os.path.join(directory, "tokenizer.json")
    lines = lines_of(path)
    t = Tokenizer.from_file(path)
    theirs = [e.ids for e in t.encode_batch(lines, add_special_tokens=True)]
    size = sum(len(line.encode()) for line in lines) / 1e6
    return f"token ids, {name}, {size:.2f} MB in {len(lines)} lines, {sum(map(len, theirs))} tokens: lines that differ", \
        differing(name, lines, theirs, ours_ids("tokenizer", directory, lines, ["--add"])), 0


def tokenizer(w):
    yield compare_with_tokenizers("tokenizer.json made by transformers", w.hf, w)
    yield compare_with_tokenizers("tokenizer.json with single digits", material.digits_tokenizer(w.hf, w.cache), w)
    yield compare_with_tokenizers("tiny_llama", os.path.join(ours.ROOT, "tests/golden/tiny_llama"), w)


def chunks(ids):
    """One hash for each run of lines, so that a difference is found to within a chunk."""
    out = []
    for at in range(0, len(ids), LINES_A_CHUNK):
        h = hashlib.sha256()
        for line in ids[at:at + LINES_A_CHUNK]:
            h.update(struct.pack(f"<{len(line) + 1}i", len(line), *line))
        out.append(h.hexdigest()[:16])
    return out


def tokenizer_gguf(w):
    lines = lines_of(os.path.join(w.hf, "tokenizer.json"))
    with open(STORED) as f:
        stored = json.load(f)
    if stored["text"] != hashlib.sha256("\n".join(lines).encode()).hexdigest():
        raise ours.Failed("the text is not the one llama_cpp_tokens.json was made for: run text_checks.py again")
    mine = ours_ids("tokenizer-gguf", w.gguf, lines)
    bad = [i for i, (a, b) in enumerate(zip(stored["chunks"], chunks(mine), strict=True)) if a != b]
    if bad:
        print(f"      differing chunks of {LINES_A_CHUNK} lines: {bad[:10]}")
        try:
            differing("GGUF", lines, llama_cpp_ids(w.gguf, lines), mine)
        except ImportError:
            print("      install llama-cpp-python to see the tokens")
    yield f"token ids, GGUF against llama.cpp, {stored['tokens']} tokens: chunks that differ", len(bad), 0


def llama_cpp_ids(gguf, lines):
    from llama_cpp import Llama
    llama = Llama(gguf, vocab_only=True, verbose=False)
    return [llama.tokenize(line.encode(), add_bos=False, special=True) for line in lines]


CHECKS = (tokenizer, tokenizer_gguf)


def main():
    import llama_cpp
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "peft.c")
    lines = lines_of(os.path.join(material.hf_directory(sys.argv[1], cache), "tokenizer.json"))
    ids = llama_cpp_ids(sys.argv[1], lines)
    with open(STORED, "w") as f:
        json.dump({"llama_cpp_python": llama_cpp.__version__, "text": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
                   "lines": len(lines), "tokens": sum(map(len, ids)), "chunks": chunks(ids)}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
