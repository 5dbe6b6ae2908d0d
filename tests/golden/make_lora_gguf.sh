#!/bin/sh
# Makes tests/golden/tiny_mistral_lora.gguf and tiny_qwen2_lora.gguf with llama.cpp's own converter (0.3.36 of PyPI's
# llama-cpp-python vendors it):
#   tests/golden/make_lora_gguf.sh LLAMA_CPP_SOURCE PYTHON      a Python with torch, transformers and safetensors
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for family in mistral qwen2; do
    PYTHONPATH=$1/gguf-py "$2" "$1/convert_lora_to_gguf.py" --base "$here/tiny_$family" --outtype f32 \
        --outfile "$here/tiny_${family}_lora.gguf" "$here/tiny_${family}_lora"
done
