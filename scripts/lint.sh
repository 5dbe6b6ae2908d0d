#!/bin/sh
# Static checks over the tree: formatting, clang-tidy, cppcheck, layering of #includes; sizes are listed as warnings.
#
#   scripts/lint.sh [--format] [CHECK...]      CHECK: format tidy cppcheck layers sizes (default: all)
#
# --format rewrites the files with clang-format instead. Reports lie in build/lint/.
set -u
out=build/lint
jobs=${JOBS:-$(nproc)}
mkdir -p "$out"

sources() { # every C source and header that belongs to the project
    find . \( -name build -o -name .git \) -prune -o -type f \( -name '*.c' -o -name '*.h' \) -print | sed 's|^\./||' | sort
}

if [ "${1:-}" = --format ]; then
    sources | xargs clang-format -i
    exit
fi

passed=0 failed=0
verdict() { # name, exit code, report
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        printf '  ok    %s\n' "$1"
    else
        failed=$((failed + 1))
        printf '  FAIL  %s\n' "$1"
        grep -E ':[0-9]+: .*|against' "$3" | grep -v ' note: ' | sed "s|^$PWD/||" | sort -u | head -n "${LINT_LINES:-40}" | sed 's/^/        /'
        printf '        whole report: %s\n' "$3"
    fi
}

check_format() { sources | xargs clang-format --dry-run -Werror >"$out/format.txt" 2>&1; verdict clang-format $? "$out/format.txt"; }

# clang has no omp.h of its own here, and gcc's uses attributes that clang 14 does not know: what the tree calls
mkdir -p "$out/omp"
printf '%s\n' 'int omp_get_num_procs(void);' 'int omp_get_num_threads(void);' 'int omp_get_thread_num(void);' \
    'int omp_get_max_threads(void);' 'void omp_set_num_threads(int);' >"$out/omp/omp.h"

flags="-std=c11 -D_GNU_SOURCE -I. -fopenmp -isystem $out/omp -Wall -Wextra -Wno-unknown-warning-option"
case $(uname -m) in
x86_64) isa_flags="-mavx2 -mfma -mf16c" isa_defines="-DISA_NAME=avx2 -DISA_BASE=avx2 -DISA_avx2" ;;
*) isa_flags="" isa_defines="-DISA_NAME=neon -DISA_BASE=neon -DISA_neon" ;;
esac

check_tidy() {
    : >"$out/tidy.txt"
    rc=0
    # clang 14 does not know the feature names that kernels/backend.c asks the CPU for
    sources | grep '\.c$' | grep -v -e '^kernels/cpu/' -e '^kernels/bf16/' -e '^kernels/mpi/' -e '^kernels/int8/[a-z0-9_]*\.c$' -e '^kernels/backend\.c$' |
        xargs -P "$jobs" -n 4 sh -c 'clang-tidy --quiet "$@" -- '"$flags" tidy >>"$out/tidy.txt" 2>/dev/null || rc=1
    if ls kernels/cpu/*.c >/dev/null 2>&1; then
        ls kernels/cpu/*.c kernels/int8/*.c | xargs -P "$jobs" -n 2 sh -c 'clang-tidy --quiet "$@" -- '"$flags $isa_flags $isa_defines" tidy >>"$out/tidy.txt" 2>/dev/null || rc=1
    fi
    if [ "$(uname -m)" = x86_64 ] && ls kernels/bf16/*.c >/dev/null 2>&1; then
        bf16_flags="-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mavx512bf16 -mamx-tile -mamx-bf16"
        ls kernels/bf16/*.c | xargs -P "$jobs" -n 2 sh -c 'clang-tidy --quiet "$@" -- '"$flags $bf16_flags -DISA_NAME=avx512 -DISA_avx512" tidy >>"$out/tidy.txt" 2>/dev/null || rc=1
    fi
    verdict clang-tidy $rc "$out/tidy.txt"
}

# Two files of kernels/int8 are macros of macros that it cannot expand. missingInclude*: system headers are not read. varFuncNullUB: NULL is a pointer in every C library built for, so it may end a
# variable argument list. unknownMacro: table macros (KEY, K, OP) are data. invalidPointerCast: arenas hand out bytes. uninitvar in
# tests: fixtures filled through loops are not followed; the sanitizers see what is really read.
check_cppcheck() {
    dirs=""
    for d in core kernels data autograd optim peft model engine tests bench; do [ -d "$d" ] && dirs="$dirs $d"; done
    cppcheck -q -j "$jobs" -i kernels/emu -i kernels/int8/int8_tile.c -i kernels/int8/int8_backends.c --std=c11 --language=c --enable=warning,performance,portability --inline-suppr \
        -I. -D_GNU_SOURCE $isa_defines --suppress=missingInclude --suppress=missingIncludeSystem --suppress=unknownMacro \
        --suppress=varFuncNullUB --suppress=invalidPointerCast --suppress="uninitvar:tests/*" --suppress=normalCheckLevelMaxBranches --error-exitcode=1 $dirs $(ls ./*.c 2>/dev/null) >"$out/cppcheck.txt" 2>&1
    verdict cppcheck $? "$out/cppcheck.txt"
}

check_layers() {
    sources | xargs awk -f scripts/layers.awk >"$out/layers.txt"
    verdict "layering of includes" $? "$out/layers.txt"
}

list_sizes() { # warnings, not errors: long files and functions say why at their head
    sources | xargs wc -l | awk '$2 != "total" && $1 > 600 { printf "  long  %s: %d lines (600 is the rule)\n", $2, $1 }'
    grep -h -A1 'readability-function-size' "$out/tidy.txt" 2>/dev/null | grep 'exceeds recommended' |
        sed -E "s|^$PWD/||; s/: warning: function ('[^']*') .*/: function \1/; s/^/  long  /" | sort -u
    grep -h 'lines including whitespace' "$out/tidy.txt" 2>/dev/null | sed -E "s|^$PWD/|        |" | sort -u | head -n 40
}

[ $# -gt 0 ] || set -- layers format cppcheck tidy sizes
for c; do
    case $c in
    format) check_format ;;
    tidy) check_tidy ;;
    cppcheck) check_cppcheck ;;
    layers) check_layers ;;
    sizes) list_sizes ;;
    *)
        echo "lint.sh: unknown check '$c'; known: format tidy cppcheck layers sizes" >&2
        exit 2
        ;;
    esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
