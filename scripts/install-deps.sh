#!/bin/sh
# Installs the Debian packages that a purpose needs, and only those that are missing.
#
#   scripts/install-deps.sh [--quiet] [--check] PURPOSE...     PURPOSE: build test neon lint cuda demo parity bench all
#
# --check only tells (exit code 1 when something is missing), --quiet says nothing when nothing is missing.
set -eu

packages_of() {
    case $1 in
    build) echo "gcc libc6-dev make libyaml-dev libjansson-dev libpcre2-dev libutf8proc-dev libedit-dev" ;;
    test) echo "$(packages_of build) libcmocka-dev libsimde-dev" ;;
    neon) echo "$(packages_of build) gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user" ;;
    lint) echo "$(packages_of test) clang-format clang-tidy cppcheck" ;;
    cuda) echo "$(packages_of test) g++ libopenmpi-dev openmpi-bin" ;;
    demo) echo "$(packages_of build) ca-certificates python3-venv wordnet-base" ;;
    parity) echo "$(packages_of test) ca-certificates python3-venv" ;;
    bench) echo "$(packages_of parity) libopenblas-dev" ;;
    all) echo "$(packages_of lint) $(packages_of bench) $(packages_of demo) $(packages_of neon)" ;;
    *) return 1 ;;
    esac
}

quiet=0 check=0 wanted=""
for arg; do
    case $arg in
    --quiet) quiet=1 ;;
    --check) check=1 ;;
    *)
        wanted="$wanted $(packages_of "$arg")" || {
            echo "install-deps.sh: unknown purpose '$arg'; known: build test neon lint cuda demo parity bench all" >&2
            exit 2
        }
        ;;
    esac
done
wanted=${wanted:-$(packages_of build)}

if ! command -v dpkg-query >/dev/null 2>&1; then
    [ "$quiet" = 1 ] || echo "install-deps.sh: not a Debian system; please install the equivalents of:$wanted" >&2
    exit 0 # the compiler will name what is missing
fi

missing=""
for p in $(printf '%s\n' $wanted | sort -u); do
    # one line for each architecture that has it
    dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done

if [ -z "$missing" ]; then
    [ "$quiet" = 1 ] || echo "all packages are installed"
    exit 0
fi
if [ "$check" = 1 ]; then
    echo "missing packages:$missing"
    exit 1
fi

as_root=""
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1; then
        as_root=sudo
    else
        echo "missing packages; as root, run: apt-get install$missing" >&2
        exit 1
    fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q "$@" </dev/null >>"$log" 2>&1; }

echo "installing Debian packages:$missing"
# the lists may be absent or stale (a fresh container has none), so a failed first attempt refreshes them
if ! apt install --no-install-recommends $missing; then
    : >"$log"
    if ! { apt update && apt install --no-install-recommends $missing; }; then
        tail -n 15 "$log" >&2
        echo "install-deps.sh: apt-get could not install:$missing (its last lines are above)" >&2
        exit 1
    fi
fi
