#!/bin/bash
# What only a GPU can show, in one run of under ten minutes: every kernel against the reference on the device, whole runs,
# compute-sanitizer, speed as shares of the device's own peaks, and peft + bitsandbytes beside it where they are installed.
# Called by `make gpu-check`, which has built everything. One JSON line per figure in BUILD/gpu-check/results.jsonl; closes with
# "N passed, N failed".
#
#   scripts/gpu-check.sh BUILD_DIR [emu]     emu: the same steps with small sizes on the emulation, to see that they run
#
# PYTHON names an interpreter with torch (CUDA), transformers, peft and bitsandbytes; without them that part is left out.
set -u
build=${1:?usage: gpu-check.sh BUILD_DIR [emu]}
device=${2:-cuda}
out=$build/gpu-check results=$build/gpu-check/results.jsonl
mkdir -p "$out"
: >"$results"
passed=0 failed=0 began=$SECONDS

say() { printf '  %-4s  %-44s %s\n' "$@"; }

# seconds allowed, name, command...
run() {
    local limit=$1 name=$2 start=$SECONDS rc log
    log=$out/${2// /_}.log
    shift 2
    timeout "$limit" "$@" >"$log" 2>&1
    rc=$?
    if [ "$rc" -eq 0 ]; then
        passed=$((passed + 1))
        say ok "$name" "$((SECONDS - start)) s  $(grep -aE '^[0-9]+ passed, [0-9]+ failed$|ERROR SUMMARY' "$log" | tail -n 1)"
    else
        failed=$((failed + 1))
        say FAIL "$name" "exit code $rc; log: $log"
        tail -n 15 "$log" | sed 's/^/        /'
    fi
    return "$rc"
}

figure() { printf '%s\n' "$1" >>"$results"; }

if [ "$device" = cuda ]; then
    kernels=$build/cuda/kernels.so small="" limit=120
    if ! nvidia-smi -L 2>/dev/null; then
        echo "gpu-check: nvidia-smi finds no NVIDIA GPU on this machine: nothing was checked" >&2
        exit 6
    fi
    nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.memory,power.limit --format=csv
    nvcc --version 2>/dev/null | tail -n 2 | head -n 1
else
    kernels=$build/emu/kernels.so small=--small limit=900
fi

# ---- right ----

run $limit "kernels against the reference" "$build/tests/cuda_parity" "$kernels" $small
[ -x "$build/tests/cuda_attention" ] && run $limit "attention, bit for bit" "$build/tests/cuda_attention" "$kernels"
run $limit "training, scores and text" "$build/tests/cuda_train" "$device"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
if [ "$device" = cuda ] && [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck initcheck synccheck; do
        run 90 "compute-sanitizer $tool" "$sanitizer" --tool $tool --error-exitcode 1 "$build/tests/cuda_parity" "$kernels" --small
    done
else
    say note "compute-sanitizer" "not here: left out"
fi

# ---- fast ----

# every way of products alone, then the one that the backend chooses: the choice is to be within 5 % of the best
for way in few stored panel library chosen; do
    env=()
    [ "$way" = chosen ] || env=("PEFT_CUDA_PRODUCTS=$way")
    run $limit "speed: $way" env "${env[@]}" bash -c "set -o pipefail; '$build/bench/bench_cuda' $device $small | \
        sed 's/{\"what\": \"cuda\"/{\"what\": \"cuda\", \"way\": \"$way\"/' >>'$results'"
done
sed -n '/peaks/p; /rows/p' "$out/speed:_chosen.log"
awk -F'"' '/"what": "cuda"/ && ($12 == "forward" || $12 == "backward") {
        split($0, a, "\"rows\": "); split(a[2], r, ","); split($0, b, "\"microseconds\": "); split(b[2], t, ",")
        key = $12 " " $16 " " r[1]
        if ($8 == "chosen") chosen[key] = t[1]
        else if (!(key in best) || t[1] < best[key]) { best[key] = t[1]; way[key] = $8 }
    }
    END { for (k in chosen) { n++; if (chosen[k] > 1.05 * best[k]) { slow++
              printf "  slower than \"%s\" by %.0f %%: %s rows\n", way[k], 100 * (chosen[k] / best[k] - 1), k } }
          printf "  choice of products: within 5 %% of the best in %d of %d\n", n - slow, n }' "$results"

# ---- whole steps ----

model=$out/model length=2048 steps=12 shape=tinyllama-1.1b
if [ "$device" = emu ]; then model=tests/golden/tiny_llama length=64 steps=3; fi
[ "$device" = emu ] || [ -s "$model/model.safetensors" ] || run 120 "a model of 1.1 billion random weights" "$build/bench/make_model" "$model" $shape
rows=$model/rows-$length.jsonl
[ "$device" = emu ] && rows=tests/golden/tiny_train/rows.jsonl
cat >"$out/train.yaml" <<YAML
base_model: $model
adapter: qlora
datasets: [{path: $rows, type: tokenized}]
quantized_base_cache_dir: $out/nf4
lora_r: 16
lora_alpha: 32
lora_target_linear: true
sequence_len: $length
micro_batch_size: 1
gradient_checkpointing: true
max_steps: $steps
learning_rate: 1e-4
lr_scheduler: constant
save_steps: 1000
output_dir: $out/run
backend: $device
YAML
rm -rf "$out/run"
if run 240 "QLoRA steps of $length tokens" ./train "$out/train.yaml"; then
    speed=$(sed -n 's/.*"tokens_per_second": \([0-9.]*\).*/\1/p' "$out/run/metrics.jsonl" | tail -n +3 | sort -g | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }')
    peak=$(nvidia-smi --query-compute-apps=used_memory --format=csv,noheader,nounits 2>/dev/null | head -n 1)
    planned=$(./train --plan --json "$out/train.yaml" | sed -n 's/.*"device_bytes": \([0-9]*\).*/\1/p')
    figure "{\"what\": \"step\", \"who\": \"peft.c\", \"tokens_per_second\": ${speed:-0}, \"planned_bytes\": ${planned:-0}}"
    say note "tokens per second, planned bytes" "${speed:-?}, ${planned:-?} ${peak:+(others on the device: $peak MiB)}"
fi
run 120 "decoding" bash -c "./infer --model '$model' --prompt 'a b c d' --backend $device --temperature 0 --max-tokens 64 --ignore-eos --json >'$out/infer.json'" &&
    figure "{\"what\": \"decode\", \"who\": \"peft.c\", \"line\": $(cat "$out/infer.json")}"
python=${PYTHON:-python3}
if [ "$device" = cuda ] && "$python" -c 'import torch, peft, bitsandbytes, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
    run 200 "peft + bitsandbytes" bash -c "'$python' bench/peer_train.py --device cuda --model '$model' --base nf4 --compute bfloat16 --checkpoint \
        --batch 1 --length $length --rank 16 --steps 8 --budget 120 >>'$results'"
    tail -n 1 "$results"
else
    say note "peft + bitsandbytes" "no $python with torch for CUDA, peft and bitsandbytes: left out"
fi

echo "figures: $results ($((SECONDS - began)) s)"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
