"""Goldens of test_tokenizer: a small tokenizer as a Hugging Face directory and as a GGUF file, a text, and the ids that
`tokenizers` 0.23.3 (directory) and llama.cpp (GGUF, through llama-cpp-python 0.3.36) give for it.

    python make_tokenizer.py        writes tokenizer_* beside this script; needs tokenizers, gguf, llama-cpp-python
"""
import array, copy, json, os, random, unicodedata

import gguf
import llama_cpp
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
DIR = os.path.join(HERE, "tokenizer_small")
RNG = random.Random(20)

PROSE = """A word is a unit of language that native speakers can identify. "I'd say it's 3,141 or so," they'll reply; we've
seen 27182 of them, didn't WE'VE? Don’t mix ‘quotes’ — nor dashes – please... The café's naïve façade cost £12½ (≈ €14).
\tfor (int i = 0; i < n; i++) { sum += x[i] * y[i]; }  // dot product\r\n#define MAX(a, b) ((a) > (b) ? (a) : (b))
def f(x):\n    return x ** 2 + 1e-5   # square\n\n\nhttps://example.org/a?b=1&c=%20d#e  user@host.net  C:\\dir\\file.txt
"""
SCRIPTS = """Ένα δύο τρία. Съешь же ещё этих мягких булок. שלום עולם, أهلا وسهلا ١٢٣. नमस्ते दुनिया १२३ สวัสดีชาวโลก
한국어는 어렵다. 日本語の文章です。カタカナもある。漢字と仮名。中文字符测试，标点。 ქართული Հայերեն አማርኛ ᏣᎳᎩ ᚠᚢᚦ Việt Nam tiếng
ǅungla ﬁne ﬂow ß ẞ İstanbul ıspanak ſtill Å Å K Ω Ω ² ³ ¹ ½ ⅔ Ⅷ ① ㋿ ｱｲｳ ﾊﾟ ㄱㅏ ㉠
"""
EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👩🏽‍💻", "🇩🇪🇫🇷", "1️⃣", "❤️", "🤷🏿‍♂️", "☃", "😀"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\x85", "\xa0", "\u1680", "\u2003", "\u200b", "\u2028", "\u3000",
          "\ufeff", "\u180e", "\x1c"]
ODD = ["cafe\u0301", "a\u0301\u0323", "\u0301", "\u1100\u1161\u11a8", "각", "\x01", "\x7f", "\uffff", "\U0010ffff", "\ue000",
       "A" * 30, "ab" * 20, "=" * 40, "0" * 17, "don't", "I'LL", "'ſ", "x" * 70, "<|im_start|>", "<|im_end|>", "<|im_", "<s>",
       "<|tool|>", "_tool_", "<|pad|>", "_tool_x_long_", "l_x_long_tool_", "a\u1ab3\U0001193d", "\u09fe\u0301"]
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def make_text():
    noun = [unicodedata.name(chr(c), "?").lower() for c in range(0x21, 0x3000) if RNG.random() < 0.03]
    parts = [PROSE, SCRIPTS, ", ".join(noun), "\n"]
    for _ in range(700):
        pick = RNG.choice([EMOJI, SPACES, ODD, PROSE.split(), SCRIPTS.split(), SPACES])
        parts.append(RNG.choice(pick) + RNG.choice(["", " "]))
    for _ in range(900):
        c = RNG.choice([RNG.randrange(32, 127), RNG.randrange(160, 0x600), RNG.randrange(0x900, 0x3100), RNG.randrange(0x1F000, 0x1FA00)])
        parts.append(chr(c))
    return "".join(parts)


def make_small(text):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator([text], trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIALS[:2], initial_alphabet=alphabet, show_progress=False))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    t.add_tokens([AddedToken("<|tool|>", normalized=False), AddedToken("_tool_", normalized=False),
                  AddedToken("l_x_long_", normalized=False)])  # overlaps: "_tool_x_long_" is cut in two ways
    t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B", special_tokens=[("<s>", 0), ("</s>", 1)])])
    return t


def write_dir(t):
    os.makedirs(DIR, exist_ok=True)
    with open(os.path.join(DIR, "tokenizer.json"), "w") as f:
        json.dump(json.loads(t.to_str()), f, ensure_ascii=False, separators=(",", ":"))
    config = {"bos_token": "<s>", "eos_token": {"content": "<|im_end|>", "special": True}, "pad_token": "<|pad|>",
              "add_bos_token": False, "model_max_length": int(1e30), "chat_template": "not this one",
              "tokenizer_class": "PreTrainedTokenizerFast"}
    json.dump(config, open(os.path.join(DIR, "tokenizer_config.json"), "w"), indent=1)
    json.dump({"eos_token_id": [1, t.token_to_id("<|im_end|>")]}, open(os.path.join(DIR, "generation_config.json"), "w"))
    open(os.path.join(DIR, "chat_template.jinja"), "w").write("{{ messages[0].content }}\n")


def write_gguf(t, path, pre):
    model = json.loads(t.to_str())
    added = {a["id"]: a for a in model["added_tokens"]}
    n = t.get_vocab_size()
    w = gguf.GGUFWriter(path, "llama")
    for add, value in ((w.add_context_length, 64), (w.add_embedding_length, 8), (w.add_block_count, 1), (w.add_feed_forward_length, 8),
                       (w.add_head_count, 1), (w.add_layer_norm_rms_eps, 1e-5), (w.add_rope_dimension_count, 8), (w.add_vocab_size, n)):
        add(value)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list([t.id_to_token(i) for i in range(n)])
    w.add_token_types([1 if i not in added else 3 if added[i]["special"] else 4 for i in range(n)])
    w.add_token_merges([" ".join(m) for m in model["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(t.token_to_id("<|im_end|>"))
    w.add_pad_token_id(t.token_to_id("<|pad|>"))
    w.add_add_bos_token(True)
    w.add_chat_template("{{ messages }}")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return llama_cpp.Llama(path, vocab_only=True, verbose=False)


def ids_hf(t, text, special=True, add=False):
    t.encode_special_tokens = not special
    return t.encode(text, add_special_tokens=add).ids


def spans_hf(t, text):
    t.encode_special_tokens = False
    at = [0]
    for c in text:
        at.append(at[-1] + len(c.encode()))
    return [(at[b], at[e]) for b, e in t.encode(text, add_special_tokens=False).offsets]


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts) + [BYTES]}


def token(i, content, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False} | flags


def added(t, *tokens):
    """tokens (content, flags) with the ids that they have or get"""
    out, free = [], t.get_vocab_size()
    for content, flags in tokens:
        i = t.token_to_id(content)
        if i is None: i, free = free, free + 1
        out.append(token(i, content, **flags))
    return out


def variants(t):
    """name -> keys of tokenizer.json that replace those of tokenizer_small"""
    return {
        "gpt2": {"pre_tokenizer": BYTES | {"use_regex": True}},
        "gpt2 prefix": {"pre_tokenizer": BYTES | {"use_regex": True, "add_prefix_space": True}},
        "llama3": {"pre_tokenizer": sequence(split(LLAMA3))},
        "qwen2": {"pre_tokenizer": sequence(split(LLAMA3.replace("{1,3}", ""))), "normalizer": {"type": "NFC"}},
        "digits": {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False})},
        "punctuation": {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Contiguous"}), "normalizer": {"type": "NFKC"}},
        "removed": {"pre_tokenizer": sequence(split(r"\w+|[^\w\s]+", "Removed", True)), "normalizer": {"type": "NFD"}},
        "previous": {"pre_tokenizer": sequence(split(r"\s+", "MergedWithPrevious")), "normalizer": {"type": "NFKD"}},
        "previous one by one": {"pre_tokenizer": sequence(split(r"[\s\d]", "MergedWithPrevious"))},
        "empty": {"pre_tokenizer": sequence(split(r"x*"), split(r"(?=[tw])"))},
        "empty previous": {"pre_tokenizer": sequence(split(r"[xo]*", "MergedWithPrevious"), split(r"(?=[tw])", "Contiguous"))},
        "empty next": {"pre_tokenizer": sequence(split(r"[xo]*", "MergedWithNext"), split(r"(?=[tw])", "Removed", True))},
        "next": {"pre_tokenizer": sequence(split(r"[\s\d]", "MergedWithNext")), "normalizer": {"type": "Lowercase"}},
        "contiguous": {"pre_tokenizer": sequence(split(r"[\p{P}\p{Han}]", "Contiguous"), split("e", "MergedWithPrevious", True, "String"))},
        "bounds": {"pre_tokenizer": sequence(split(r"\d{1,3}(?=(?:\d{3})*\b)"), split(r"(?=x)"), split(r"\bthe\b|\W{2,3}|^.|.$", "Removed"))},
        "replace": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"}, {"type": "Replace", "pattern": {
            "String": "--"}, "content": "—"}, {"type": "Replace", "pattern": {"Regex": "[aeiou]+"}, "content": "E"}]}},
        "added": {"added_tokens": added(t, ("the", {"single_word": True}), ("  ", {"rstrip": True, "normalized": False}),
                                        ("ab", {"lstrip": True, "rstrip": True}), ("café", {}), ("<|im_", {"normalized": False})),
                  "normalizer": {"type": "NFC"}},
        "ignore_merges": {"model": {"ignore_merges": True}},
    }


def write_variants(t, text):
    base, out = json.loads(t.to_str()), {"directory": [], "gguf": [], "runs": []}
    for name, change in variants(t).items():
        model = copy.deepcopy(base)
        for key, value in change.items():
            if key == "added_tokens": model[key] += value
            elif key == "model": model[key].update(value)
            else: model[key] = value
        v = Tokenizer.from_str(json.dumps(model))
        out["directory"].append({"name": name, "change": change, "ids": ids_hf(v, text)})
    scratch = os.path.join(HERE, "scratch.gguf")
    for pre in ("default", "gpt-2", "llama-bpe", "qwen2", "tekken", "gpt-4o", "falcon", "deepseek-llm", "deepseek-coder", "deepseek-v3", "dbrx"):
        l = write_gguf(t, scratch, pre)
        out["gguf"].append({"name": pre, "ids": l.tokenize(text.encode(), add_bos=False, special=True)})
    os.remove(scratch)
    for piece in ("a", "ab", " ", "\n", "é", "🙂", "1", " a"):
        ids = ids_hf(t, piece * 20000)
        h = 0xCBF29CE484222325
        for i in ids:
            h = (h ^ i) * 0x100000001B3 % 2**64
        out["runs"].append({"piece": piece, "repeat": 20000, "count": len(ids), "fnv": "%016x" % h})
    out["text"] = text
    with open(os.path.join(HERE, "tokenizer_variants.json"), "w") as f:
        json.dump(out, f, ensure_ascii=False, separators=(",", ":"))


def main():
    text = make_text()
    t = make_small(text)
    write_dir(t)
    l = write_gguf(t, os.path.join(HERE, "tokenizer_small.gguf"), "smollm")
    open(os.path.join(HERE, "tokenizer_text.txt"), "w", newline="").write(text)
    spans = spans_hf(t, text)
    data = text.encode()
    sections = [ids_hf(t, text, add=True), ids_hf(t, text, special=False), [b for b, _ in spans], [e for _, e in spans],
                l.tokenize(data, add_bos=True, special=True), l.tokenize(data, add_bos=False, special=False)]
    with open(os.path.join(HERE, "tokenizer_ids.bin"), "wb") as f:
        for s in sections:
            array.array("I", [len(s)]).tofile(f)
            array.array("H", s).tofile(f)
    part = PROSE[:330] + SCRIPTS + "the theme the  ab  xab --<|im_start|>\r\n " + "".join(SPACES) + "".join(ODD)
    write_variants(t, part)
    print(len(data), "bytes", [len(s) for s in sections])


main()
