#!/bin/bash
# Training speed and memory, ours and the peers', on this machine in one run: SmolLM2-135M's shape with random weights, batch
# 4 x 256, LoRA r=16 on every linear layer, every token a target. One JSON line per figure on stdout (and in
# build/bench/results.jsonl), then a table with the ratio to the better peer.
#
#   bench/bench.sh [--steps N] [--ours] [--no-checkpoint]     --ours leaves the peers out
#
# bench/README.md says how each figure is defined.
set -eu
cd "$(dirname "$0")/.."
steps=5 peers=1 checkpoint=1
while [ $# -gt 0 ]; do
    case $1 in
    --steps) steps=$2 && shift ;;
    --ours) peers=0 ;;
    --no-checkpoint) checkpoint=0 ;;
    *)
        echo "bench.sh: unknown option '$1'; known: --steps N, --ours, --no-checkpoint" >&2
        exit 2
        ;;
    esac
    shift
done

python=$(scripts/parity/venv.sh)
model=${XDG_CACHE_HOME:-$HOME/.cache}/peft.c/bench/llama-135m
out=build/bench
mkdir -p "$out"
[ -s "$model/rows.jsonl" ] || "$python" bench/peer_train.py --make "$model" >"$out/make.log" 2>&1
: >"$out/results.jsonl"

# median of one field over the counted steps of metrics.jsonl; the first step warms up
median() { # file, key
    awk -v key="\"$2\"" '
        /"eval_loss"/ { next }
        { at = index($0, key); if (!at) next; v = substr($0, at + length(key)); sub(/^[ ]*:[ ]*/, "", v); if (++n > 1) x[n - 1] = v + 0 }
        END {
            m = n - 1
            for (i = 2; i <= m; i++) { v = x[i]; for (j = i - 1; j > 0 && x[j] > v; j--) x[j + 1] = x[j]; x[j + 1] = v }
            if (m < 1) exit 1
            printf "%.2f\n", m % 2 ? x[(m + 1) / 2] : (x[m / 2] + x[m / 2 + 1]) / 2
        }' "$1"
}

ours() { # base, checkpointing
    local name=ours-$1-$2 four=false speed memory
    [ "$1" = nf4 ] && four=true
    cat >"$out/$name.yaml" <<YAML
base_model: $model
load_in_4bit: $four
datasets: [{path: $model/rows.jsonl, type: tokenized}]
lora_r: 16
lora_alpha: 32
lora_dropout: 0
lora_target_linear: true
sequence_len: 256
micro_batch_size: 4
max_steps: $((steps + 1))
learning_rate: 1e-4
max_grad_norm: 1.0
gradient_checkpointing: $2
output_dir: $out/$name
YAML
    rm -rf "${out:?}/$name"
    ./train "$out/$name.yaml" >"$out/$name.log" 2>&1 </dev/null || {
        tail -n 5 "$out/$name.log" >&2
        return 1
    }
    speed=$(median "$out/$name/metrics.jsonl" tokens_per_second)
    memory=$(median "$out/$name/metrics.jsonl" peak_rss_bytes)
    printf '{"who": "peft.c", "base": "%s", "compute": "float32", "batch": 4, "length": 256, "rank": 16, "checkpointing": %s, "tokens_per_second": %s, "peak_rss_bytes": %.0f}\n' \
        "$1" "$2" "$speed" "$memory" | tee -a "$out/results.jsonl"
}

peer() { # base, compute
    "$python" bench/peer_train.py --model "$model" --base "$1" --compute "$2" --steps "$steps" 2>"$out/peer-$1-$2.log" </dev/null |
        tee -a "$out/results.jsonl"
}

ours nf4 false
[ "$checkpoint" = 0 ] || ours nf4 true
ours fp false
if [ "$peers" = 1 ]; then
    peer nf4 float32
    # the peer's best: bfloat16 is slower than float32 where the CPU has no instruction for it
    if grep -q -e avx512_bf16 -e amx_bf16 /proc/cpuinfo; then peer nf4 bfloat16; fi
    peer fp float32
fi

echo
printf 'machine: %s, %s threads; %s; %s\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" \
    "$(gcc --version | head -n 1)" "$("$python" -c 'from importlib.metadata import version as v
print(", ".join(n + " " + v(n) for n in ("torch", "peft", "bitsandbytes")))')"
awk '
    function field(key,    at, v) {
        at = index($0, "\"" key "\": ")
        v = substr($0, at + length(key) + 4)
        sub(/[,}].*/, "", v)
        gsub(/"/, "", v)
        return v
    }
    {
        who[NR] = field("who"); base[NR] = field("base"); compute[NR] = field("compute"); check[NR] = field("checkpointing")
        speed[NR] = field("tokens_per_second"); rss[NR] = field("peak_rss_bytes")
        if (who[NR] != "peft.c" && speed[NR] > best[base[NR]]) best[base[NR]] = speed[NR]
    }
    END {
        printf "%-22s %-5s %-9s %-10s %10s %10s %8s\n", "", "base", "compute", "recompute", "tokens/s", "peak GB", "ratio"
        for (i = 1; i <= NR; i++)
            printf "%-22s %-5s %-9s %-10s %10.1f %10.2f %8s\n", who[i], base[i], compute[i], check[i] == "true" ? "yes" : "no",
                speed[i], rss[i] / 1e9, (best[base[i]] > 0 ? sprintf("%.2f x", speed[i] / best[base[i]]) : "-")
    }' "$out/results.jsonl"
