#!/bin/sh
# Checks docs/RELIABILITY.md against the tests: every `test_FILE: NAME` in it is a test in tests/test_FILE.c that its main runs.
#
#   scripts/catalogue.sh         lists what is wrong, then "N tests named, N missing, N entries of the catalogue"
set -u
page=docs/RELIABILITY.md
named=0 missing=0
for pair in $(grep -o '`test_[a-z0-9_]*: [a-z0-9_]*`' "$page" | tr -d '` ' | sort -u); do
    file=tests/${pair%%:*}.c name=${pair##*:}
    named=$((named + 1))
    # once where it is defined, once in the list that main runs
    if [ ! -f "$file" ]; then
        echo "$page: $file does not exist"
    elif ! grep -q "^static void $name(void \*\*" "$file"; then
        echo "$page: $file has no test '$name'"
    elif [ "$(grep -cw "$name" "$file")" -lt 2 ]; then
        echo "$page: '$name' in $file is never run"
    else
        continue
    fi
    missing=$((missing + 1))
done
entries=$(awk -F'|' '/^\| [GSCTYDA][0-9]/ { n += split($2, ids, " ") } END { print n + 0 }' "$page")
echo "$named tests named, $missing missing, $entries entries of the catalogue"
[ "$missing" -eq 0 ] && [ "$named" -gt 0 ]
