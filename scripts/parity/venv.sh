#!/bin/sh
# Makes or refreshes the virtual environment of requirements.txt, once per version of that file, and prints its python.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/peft.c/venv
stamp=$venv/requirements.sha256
want=$(sha256sum <"$here/requirements.txt")
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
    echo "installing torch, transformers, peft and bitsandbytes into $venv (once; about 3 GB)" >&2
    mkdir -p "$venv"
    log=$venv/install.log
    if ! { { [ -x "$venv/bin/python" ] || python3 -m venv "$venv"; } &&
        "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input --retries 5 \
            -r "$here/requirements.txt"; } >"$log" 2>&1 </dev/null; then
        tail -n 10 "$log" >&2
        echo "venv.sh: the virtual environment could not be made (last lines above; whole log: $log)" >&2
        exit 1
    fi
    printf '%s\n' "$want" >"$stamp"
fi
echo "$venv/bin/python"
