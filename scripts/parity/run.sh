#!/bin/sh
# Compares ./train ./infer ./merge with torch, transformers, peft and bitsandbytes. The virtual environment and the model
# converted for transformers are kept under ${XDG_CACHE_HOME:-~/.cache}/peft.c; work files and logs go to build/parity.
#
#   scripts/parity/run.sh [CHECK...]     names or beginnings of names of checks; none = all. --list prints them.
set -eu
cd "$(dirname "$0")/../.."
python=$(scripts/parity/venv.sh)
model=$(scripts/fetch_model.sh)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # spinning threads starve each other where cores are shared
exec "$python" scripts/parity/parity.py --gguf "$model" "$@"
