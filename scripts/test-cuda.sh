#!/bin/bash
# The CUDA sources executed on the CPU and compared with the reference, in every order and under every checker; closes with
# "N passed, N failed". Called by `make test-cuda`, which has built everything but the mutants.
#
#   scripts/test-cuda.sh BUILD_DIR [SECTION...]      SECTION: orders ways runs ranks sanitizers races table mutants (default: all)
set -u
build=${1:?usage: test-cuda.sh BUILD_DIR [SECTION...]}
shift
[ $# -gt 0 ] || set -- orders ways runs ranks sanitizers races table mutants
emu=$build/emu logs=$build/emu/log
mkdir -p "$logs"
passed=0 failed=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

say() { printf '  %-4s  %-44s %s\n' "$@"; }

# name, command...: a run of cuda_parity or of a test program; what it printed is shown when something failed
run() {
    local name=$1 began=$SECONDS rc p=0 f=0 line
    local log=$logs/${name// /_}.log
    shift
    timeout "${TEST_TIMEOUT:-300}" "$@" >"$log" 2>&1
    rc=$?
    line=$(grep -aE '^[0-9]+ passed, [0-9]+ failed$' "$log" | tail -n 1)
    [ -n "$line" ] && read -r p _ f _ <<<"$line"
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ "$rc" -eq 0 ] && [ "$p" -eq 0 ]; then f=1; fi
    passed=$((passed + p)) failed=$((failed + f))
    if [ "$f" -eq 0 ]; then
        say ok "$name" "$p passed, $((SECONDS - began)) s"
    else
        say FAIL "$name" "$p passed, $f failed (exit code $rc); log: $log"
        grep -av 'there is no kernel' "$log" | tail -n 40 | sed 's/^/        /'
    fi
}

parity="$build/tests/cuda_parity $emu/kernels.so"

orders() {
    run "bugs that the emulation finds" "$build/tests/emu_faults" "$emu/faults.so"
    run "forward" env EMU_ORDER=forward $parity
    run "reverse, lazy streams" env EMU_ORDER=reverse EMU_LAZY=1 $parity
    for seed in 1 2; do run "random $seed, lazy streams" env EMU_ORDER=random EMU_SEED=$seed EMU_LAZY=1 $parity; done
    run "attention, sequence by sequence" env EMU_ORDER=random "$build/tests/cuda_attention" "$emu/kernels.so"
}

ways() { # every way a product can go, whatever the model of choice.cu would take; then panels that need many pieces
    run "products, bit for bit" "$build/tests/cuda_products" "$emu/kernels.so"
    for way in few stored panel library; do
        run "products by $way" env PEFT_CUDA_PRODUCTS=$way $parity weight proj head
        run "products by $way, little scratch, reverse" env PEFT_CUDA_PRODUCTS=$way EMU_ORDER=reverse $parity --scratch 1500000 \
            weight proj head
    done
}

table() { # registers and spills of two architectures, and whether docs/cuda_kernels.tsv is of these sources
    local log=$logs/table.log
    if scripts/cuda_table.sh --check 80 90 >"$log" 2>&1; then
        passed=$((passed + 1))
        say ok "table of kernels" "$(tail -n 1 "$log")"
    else
        failed=$((failed + 1))
        say FAIL "table of kernels" "$log"
        cat "$log"
    fi
}

# whole runs: training, scores, text
runs() {
    run "operations and their derivatives" "$build/tests/cuda_ops" emu
    # whatever of the host touches the device's memory faults
    run "training, scores and text" env EMU_GUARD=1 "$build/tests/cuda_train" emu
}

sanitizers() { # of memory and undefined behaviour; leaks are the test program's business, not the kernels'
    run "address and undefined behaviour" env ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 \
        "$build/tests/cuda_parity_asan" "$emu/kernels_asan.so"
}

# Two workers, so that blocks race too. A race ends the program. Every kernel, on small shapes: an access costs fifty times as much.
races() {
    local TEST_TIMEOUT=600
    run "data races" env TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0 EMU_WORKERS=2 EMU_ORDER=random \
        "$build/tests/cuda_parity_tsan" "$emu/kernels_tsan.so" --small
}

# one mutant: file, which line, text, sources to compile, cases
mutant() {
    local file=$1 n=$2 text=$3 src=$4 cases=$5 dir=$build/mutant name="mutant: $1, $2. $3" order seen=""
    rm -rf "$dir"
    mkdir -p "$dir/$(dirname "$file")"
    awk -v n="$n" -v text="$text" 'i = index($0, text) { if (++seen == n) $0 = substr($0, 1, i - 1) substr($0, i + length(text)) }
        { print } END { exit seen < n }' "$file" >"$dir/$file" || {
        say FAIL "$name" "no such line: update tests/cuda_mutants.txt"
        failed=$((failed + 1))
        return
    }
    make --no-print-directory -s BUILD="$build" MUTANT="$dir" MUTANT_SRC="$src" "$dir/kernels.so" >"$dir/log" 2>&1 || {
        say FAIL "$name" "does not compile: $dir/log"
        failed=$((failed + 1))
        return
    }
    for order in forward reverse random; do
        timeout 120 env EMU_ORDER=$order "$build/tests/cuda_parity" "$dir/kernels.so" "$cases" >"$dir/$order.log" 2>&1 || seen="$seen $order"
    done
    if [ -n "$seen" ]; then
        passed=$((passed + 1))
        say ok "$name" "seen:$seen"
    else
        failed=$((failed + 1))
        say FAIL "$name" "not seen"
    fi
}

mutants() {
    local file n text src cases
    while IFS='|' read -r file n text src cases; do
        case $file in '#'* | '') continue ;; esac
        read -r file <<<"$file"
        read -r n <<<"$n"
        read -r text <<<"$text"
        read -r src <<<"$src"
        read -r cases <<<"$cases"
        mutant "$file" "$n" "$text" "$src" "$cases"
    done <tests/cuda_mutants.txt
}

ranks() { # training on several ranks against one
    if command -v mpirun >/dev/null 2>&1; then run "ranks over MPI" "$build/tests/rank_runs" mpi; else say skip "ranks over MPI" "no mpirun"; fi
    run "ranks over NCCL's stand-in" "$build/tests/rank_runs" nccl
}

for section; do $section; done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
