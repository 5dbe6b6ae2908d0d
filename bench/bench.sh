#!/bin/bash
# Speed and memory, ours and the peers', on this machine in one run. One JSON line per figure on stdout (and in
# build/bench/results.jsonl), then a table of them with the ratios, and the goals.
#
#   bench/bench.sh [--ours] [--steps N] [--save] [FIGURE...]     FIGURE: train gemm attention head start scaling (all)
#
# --ours leaves the peers out; --steps counts that many training steps instead of five; --save writes the table of a
# whole run to bench/RESULTS.md. SCALING_SECONDS (720) bounds the scaling table. bench/README.md defines the figures.
set -eu
export LC_ALL=C
unset OMP_PROC_BIND OMP_PLACES # under them OpenBLAS's threads share one core
cd "$(dirname "$0")/.."

usage() {
    echo "bench.sh: unknown argument '$1'; known: --ours, --steps N, --save, train, gemm, attention, head, start, scaling" >&2
    exit 2
}

all="train gemm attention head start scaling"
steps=5 peers=1 save=0 figures=""
while [ $# -gt 0 ]; do
    case $1 in
    --steps) [ $# -gt 1 ] || usage "$1"; steps=$2 && shift ;;
    --ours) peers=0 ;;
    --save) save=1 ;;
    train | gemm | attention | head | start | scaling) figures="$figures $1" ;;
    *) usage "$1" ;;
    esac
    shift
done
figures=${figures:-$all}
if [ "$save" = 1 ] && { [ "$figures" != "$all" ] || [ "$peers" = 0 ]; }; then
    echo "bench.sh: --save keeps the table of a whole run: leave --ours and the figures' names away" >&2
    exit 2
fi

build=${BUILD:-build}
programs=$build/bench
out=$build/bench/run
models=${XDG_CACHE_HOME:-$HOME/.cache}/peft.c/bench
kept=$models/cache # the programs' own cache of quantised bases, apart from the user's
cores=$(nproc)
mkdir -p "$out" "$models"
[ "${BENCH_BUILT:-0}" = 1 ] || env -u MAKEFLAGS make -s -j"$cores" all bench-programs >&2
results=$build/bench/results.jsonl
: >"$results"
python=""
case " $figures " in *" train "*) [ "$peers" = 0 ] || python=$(scripts/parity/venv.sh) ;; esac

keep() { tee -a "$results"; }
say() { printf '%s\n' "$*" >&2; }

failed() { # name, log: a figure that cannot be had is said, and the others go on
    say "bench.sh: $1 failed; its last lines (whole log: $2):"
    tail -n 5 "$2" >&2
    printf '{"what": "failure", "name": "%s"}\n' "$1" | keep
}

run() { # log, program...: one of our programs that prints JSON lines
    local log=$out/$1.log
    shift
    "$@" 2>"$log" </dev/null | keep
    [ "${PIPESTATUS[0]}" = 0 ] || failed "$*" "$log"
}

config() { # model: writes a configuration and prints its name
    cat >"$out/$1.yaml" <<YAML
base_model: $models/$1
load_in_4bit: true
datasets: [{path: $models/$1/rows-256.jsonl, type: tokenized}]
shuffle_merged_datasets: false
lora_r: 16
lora_alpha: 32
lora_dropout: 0
lora_target_linear: true
sequence_len: 256
micro_batch_size: 4
max_steps: 1000
learning_rate: 1e-4
lr_scheduler: constant
max_grad_norm: 1.0
output_dir: $out/$1
YAML
    echo "$out/$1.yaml"
}

model() { # name: made once; one step, so that its base is quantised and its file is in memory
    [ -s "$models/$1/model.safetensors" ] || "$programs/make_model" "$models/$1" "$1" || return 1
    XDG_CACHE_HOME=$kept "$programs/bench_step" "$(config "$1")" --micro_batch_size=1 --runs 1 --budget 0 \
        >/dev/null 2>"$out/$1-first.log" </dev/null || { failed "the first step of $1" "$out/$1-first.log"; return 1; }
}

has_key() { ./train --help 2>/dev/null | grep -q "^ *$1\b"; }

# ---- train ----

ours() { # log, --key=value...
    local log=$1
    shift
    XDG_CACHE_HOME=$kept run "$log" "$programs/bench_step" "$out/smollm2-135m.yaml" --what train --runs "$steps" "$@"
}

peer() { # base, compute
    local log=$out/peer-$1-$2.log
    "$python" bench/peer_train.py --model "$models/smollm2-135m" --base "$1" --compute "$2" --steps "$steps" \
        2>"$log" </dev/null | keep
    [ "${PIPESTATUS[0]}" = 0 ] || failed "peer_train.py --base $1 --compute $2" "$log"
}

figure_train() {
    model smollm2-135m || return 0
    ours train-nf4
    ours train-checkpointing --gradient_checkpointing=true
    if has_key activation_dtype; then ours train-activations --activation_dtype=bf16; fi
    if has_key compute_dtype; then ours train-bf16 --compute_dtype=bf16; fi
    ours train-fp --load_in_4bit=false
    [ "$peers" = 1 ] || return 0
    peer nf4 float32
    # the peer's best: bfloat16 is slower than float32 where the CPU has no instruction for it
    if grep -q -e avx512_bf16 -e amx_bf16 -e '\bbf16\b' /proc/cpuinfo; then peer nf4 bfloat16; fi
    peer fp float32
}

# ---- kernels ----

figure_gemm() { run gemm "$programs/bench_layer"; }
figure_attention() { run attention "$programs/bench_attention"; }
figure_head() { run head "$programs/bench_head"; }

# ---- start ----

start_seconds() { # cache directory: exec of ./train to the line that it prints right before its first step
    local began=$EPOCHREALTIME ready=""
    while IFS= read -r line; do
        case $line in 'trainable params'*) ready=$EPOCHREALTIME ;; esac
    done < <(XDG_CACHE_HOME=$1 ./train "$out/smollm2-135m.yaml" --max_steps=1 2>"$out/start.log" </dev/null)
    [ -n "$ready" ] && awk "BEGIN { printf \"%.3f\n\", $ready - $began }"
}

start_line() { printf '{"what": "start", "name": "%s", "model": "smollm2-135m", "runs": %d, "seconds": %s}\n' "$@" | keep; }

figure_start() {
    model smollm2-135m || return 0
    rm -rf "$out/start-cache"
    local first again=""
    first=$(start_seconds "$out/start-cache") || { failed "the start of ./train" "$out/start.log"; return 0; }
    start_line "first, quantising" 1 "$first"
    for _ in 1 2 3 4 5; do
        again="$again $(start_seconds "$out/start-cache")" || { failed "the start of ./train" "$out/start.log"; return 0; }
    done
    start_line "quantised once" 5 "$(printf '%s\n' $again | sort -n | sed -n 3p)"
    rm -rf "$out/start-cache"
}

# ---- scaling ----

declare -A speed # "model threads" -> tokens per second of the last cell

cell() { # model, length, threads
    local model=$1 length=$2 threads=$3 batch=1 known rc log=$out/scaling-$1-$2-$3
    [ "$length" -ge 1024 ] || batch=$((1024 / length))
    # from the cell before, or of another number of threads; a fifth for loading
    known=${speed["$model $threads"]:-}
    [ -n "$known" ] || known=$(awk "BEGIN { print ${speed["$model $cores"]:-0} * $threads / $cores }")
    if ! awk "BEGIN { exit !($SECONDS + ($known > 0 ? 1.2 * $length * $batch / $known : 0) < $until) }"; then
        printf '{"what": "scaling", "model": "%s", "length": %d, "threads": %d, "skipped": "out of time"}\n' \
            "$model" "$length" "$threads" | keep
        return
    fi
    for checkpointing in false true; do
        rc=0
        XDG_CACHE_HOME=$kept "$programs/bench_step" "$out/$model.yaml" --what scaling --runs 3 --budget 8 \
            --datasets="[{path: $models/$model/rows-$length.jsonl, type: tokenized}]" --sequence_len="$length" \
            --micro_batch_size="$batch" --threads="$threads" --gradient_checkpointing=$checkpointing \
            >"$log.json" 2>"$log.log" </dev/null || rc=$?
        [ "$rc" = 5 ] || break # 5: not enough memory without recomputation
    done
    [ "$rc" = 0 ] || { failed "scaling: $model, $length tokens, $threads threads" "$log.log"; return; }
    keep <"$log.json"
    speed["$model $threads"]=$(sed 's/.*"tokens_per_second": \([0-9.]*\).*/\1/' "$log.json")
}

figure_scaling() {
    local name counts=1 until
    [ "$cores" -lt 2 ] || counts="2 1"
    [ "$cores" -le 2 ] || counts="$cores 2 1"
    for name in smollm2-135m qwen2.5-0.5b tinyllama-1.1b; do model $name || return 0; done
    until=$((SECONDS + ${SCALING_SECONDS:-720}))
    for threads in $counts; do
        for length in 256 512 1024 2048 4096; do cell smollm2-135m $length "$threads"; done
        for name in qwen2.5-0.5b tinyllama-1.1b; do
            for length in 256 1024 4096; do cell $name $length "$threads"; done
        done
    done
}

# ---- the machine, the run, the table ----

machine() {
    local versions="" load cpu extensions flags
    flags=$(env -u MAKEFLAGS make -s bench-flags)
    load=$(cut -d ' ' -f 1 /proc/loadavg)
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    extensions=$(sed -n 's/^\(flags\|Features\)[^:]*: //p' /proc/cpuinfo | head -n 1 | tr ' ' '\n' |
        grep -x -e avx2 -e fma -e avx512f -e avx512_vnni -e avx512_bf16 -e amx_bf16 -e asimd -e bf16 -e i8mm | tr '\n' ' ')
    [ -z "$python" ] || versions=$("$python" -c 'from importlib.metadata import version as v
print(", ".join(n + " " + v(n) for n in ("torch", "transformers", "peft", "bitsandbytes")))')
    printf '{"what": "machine", "cpu": "%s", "extensions": "%s", "cores": %d, "memory_gb": %.1f, "kernel": "%s", "load": %s, "compiler": "%s", "flags": "%s", "commit": "%s", "date": "%s", "peers": "%s"}\n' \
        "${cpu:-$(uname -m)}" "${extensions% }" "$cores" "$(awk '/^MemTotal/ { print $2 / 1e6 }' /proc/meminfo)" "$(uname -r)" \
        "$load" "$("${flags%% *}" --version | head -n 1)" "$flags" \
        "$(git describe --always --dirty 2>/dev/null || echo unknown)" "$(date -u +%Y-%m-%d)" "$versions" | keep
    awk "BEGIN { exit !($load > 0.5 * $cores) }" && say "bench.sh: the machine is busy (load $load): do not trust these figures"
    return 0
}

machine
for figure in $figures; do "figure_$figure"; done
awk -f bench/json.awk -f bench/goals.awk "$results" >"$out/goals.jsonl"
keep <"$out/goals.jsonl"
awk -f bench/json.awk -f bench/table.awk "$results" >"$build/bench/table.txt"
echo
cat "$build/bench/table.txt"
if [ "$save" = 1 ]; then
    {
        echo "# The last run of \`make bench\`"
        echo
        echo "Written by \`bench/bench.sh --save\`; [README.md](README.md) says how each figure is defined. Figures of another"
        echo "machine, or of a busy one, do not compare with these: the ratios and the shares of peak do."
        echo
        echo '```'
        cat "$build/bench/table.txt"
        echo '```'
    } >bench/RESULTS.md
    say "bench/RESULTS.md is written"
fi
! grep -q '"what": "failure"' "$results"
