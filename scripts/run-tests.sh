#!/bin/sh
# Runs test programs (cmocka), one line each, failures in full, and closes with "N passed, N failed".
#
#   scripts/run-tests.sh BUILD_DIR        runs BUILD_DIR/tests/test_*; logs go to BUILD_DIR/tests/log/
#
# RUNNER: what runs a program that this machine cannot, with its arguments (an emulator).
#
# A program that ends without cmocka's summary (a crash, a sanitizer report, a time-out) counts as one failure.
set -u
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}" # as the programs set it for themselves (core/threads.h)
build=${1:?usage: run-tests.sh BUILD_DIR}
limit=${TEST_TIMEOUT:-600}
logs=$build/tests/log
mkdir -p "$logs"
passed=0 failed=0 skipped=0 programs=0

for t in "$build"/tests/test_*; do
    case $t in *.o | *.d) continue ;; esac
    [ -x "$t" ] && [ -f "$t" ] || continue
    # a program whose source is gone is a left-over of an earlier build
    name=${t##*/}
    [ -f "tests/$name.c" ] || continue
    programs=$((programs + 1))
    log=$logs/$name.log
    begin=$(date +%s.%N)
    timeout "$limit" ${RUNNER:-} "$t" >"$log" 2>&1 </dev/null
    rc=$?
    # sums over all groups of the program: "[  PASSED  ] 12 test(s)." / "[  FAILED  ] 1 test(s), listed below:"
    counts=$(awk '/^\[  PASSED  \] [0-9]+ test/ { p += $4 } /^\[  FAILED  \] [0-9]+ test/ { f += $4 }
                  /^\[  SKIPPED \] [0-9]+ test/ { s += $4 } END { print p + 0, f + 0, s + 0 }' "$log")
    p=${counts%% *} s=${counts##* } f=${counts#* } f=${f%% *}
    why=""
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then
        f=1
        if [ "$rc" -eq 124 ]; then why="stopped after $limit s"; else why="ended with exit code $rc"; fi
    elif [ "$rc" -eq 0 ] && [ "$p" -eq 0 ] && [ "$s" -eq 0 ]; then
        f=1 why="ran no test"
    fi
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    word=ok
    [ "$f" -gt 0 ] && word=FAIL
    printf '  %-4s  %-24s %4d passed' "$word" "$name" "$p"
    [ "$f" -gt 0 ] && printf ', %d failed' "$f"
    [ "$s" -gt 0 ] && printf ', %d skipped' "$s"
    printf '  %6.1f s\n' "$(awk "BEGIN { print $(date +%s.%N) - $begin }")"
    if [ "$f" -gt 0 ]; then
        grep -v -e '^\[ RUN ' -e '^\[       OK ' -e '^\[=' "$log" | tail -n 60 | sed 's/^/        /'
        [ -n "$why" ] && printf '        %s %s; log: %s\n' "$name" "$why" "$log"
    fi
done

[ "$programs" -gt 0 ] || echo "no test programs in $build/tests"
[ "$skipped" -gt 0 ] && echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$programs" -gt 0 ]
