#!/bin/bash
# What the compiler makes of every CUDA kernel: docs/cuda_kernels.tsv, a row per kernel and architecture.
#
#   scripts/cuda_table.sh                 compiles for all architectures and writes the table   (make cuda-table)
#   scripts/cuda_table.sh --check ARCH... compiles everything for those, and fails on a warning, where the table is of other
#                                         sources, or where a kernel spills registers and scripts/cuda_spills.txt does not
#                                         say why (part of test-cuda)
#
# Columns: source, kernel, arch, registers a thread, static and dynamic shared memory in bytes, spilled bytes (stores and
# loads), threads a block, occupancy in per cent of the warps an SM can hold (by registers, shared memory and threads alone),
# and the hash of the source with the headers of kernels/cuda it includes. Dynamic shared memory is what the launch asks for:
# scripts/cuda_shared.txt has it. Results are kept in build/cuda_table by hash.
set -u
cd "$(dirname "$0")/.." || exit 1
table=docs/cuda_kernels.tsv out=${BUILD:-build}/cuda_table nvcc=${NVCC:-${CUDA_HOME:-/usr/local/cuda}/bin/nvcc}
check=0
[ "${1:-}" = --check ] && check=1 && shift
if [ $check = 1 ]; then archs="${*:-80 90}"; else archs="80 86 89 90 100 120"; fi
[ -x "$nvcc" ] || { echo "cuda_table: no nvcc: nothing to do"; exit 0; }
mkdir -p "$out"
export nvcc out

# the file and what it includes of kernels/cuda, each once
sources_of() {
    local todo="$1" seen="" f
    while [ -n "$todo" ]; do
        f=${todo%% *} todo=${todo#"$f"} todo=${todo# }
        case " $seen " in *" $f "*) continue ;; esac
        seen="$seen $f"
        todo="$todo $(sed -n 's|^#include "\(kernels/cuda/[^"]*\)".*|\1|p' "$f" | tr '\n' ' ')"
        todo=$(echo $todo)
    done
    echo $seen | tr ' ' '\n' | sort
}
hash_of() { sources_of "$1" | xargs cat | sha1sum | cut -c1-12; }

# ptxas's report on one source for one architecture, and the threads a block that __launch_bounds__ names
compile() {
    local f=$1 arch=$2 hash=$3 name
    name=$out/$(basename "$f" .cu).$arch.$hash
    [ -s "$name.txt" ] && return 0
    local flags="-std=c++17 -O3 -I. --expt-relaxed-constexpr -Werror all-warnings -diag-suppress 177 -DDEVICE_NAME=\"cuda\" -arch=sm_$arch"
    mkdir -p "$name.kept"
    "$nvcc" $flags --keep --keep-dir "$name.kept" -Xptxas -v -cubin "$f" -o "$name.kept/cubin" >"$name.log" 2>&1 || {
        echo "cuda_table: $f does not compile for sm_$arch:" >&2
        grep -E 'error' "$name.log" | head -5 >&2
        return 1
    }
    { grep -hE '\.entry|\.maxntid' "$name.kept"/*.ptx | sed 's/^/ptx /'; cat "$name.log"; } >"$name.tmp"
    mv "$name.tmp" "$name.txt"
    rm -rf "$name.kept" "$name.log"
}

# kernel names without argument lists; a format by its name instead of its number
readable() {
    c++filt | sed -E 's/__nv_bfloat16/bf16/g; s/\tvoid /\t/; s/ *\([^\t]*\)\t/\t/; s/\((int|bool|activation)\)//g' |
        awk -F'\t' 'BEGIN { OFS = "\t"; while ((getline line < "kernels/formats.def") > 0) if (line ~ /^F\(/) { split(line, f, /[(,]/); name[n++ + 0] = tolower(f[2]) } }
            match($2, /^(tile_quant|gemv|dequant_groups|dequant_single|embed_rows)<[0-9]+/) {
                head = substr($2, 1, RLENGTH); rest = substr($2, RLENGTH + 1); split(head, h, "<"); $2 = h[1] "<" name[h[2]] rest }
            { print }'
}

rows_of() {
    local f=$1 arch=$2 hash=$3
    awk -v source="$(basename "$f")" -v arch="$arch" -v hash="$hash" -v shared_file=scripts/cuda_shared.txt '
        BEGIN { OFS = "\t" }
        $1 == "ptx" && /\.entry/ { match($0, /_Z[A-Za-z0-9_]*/); entry = substr($0, RSTART, RLENGTH) }
        $1 == "ptx" && /\.maxntid/ { match($0, /[0-9]+/); threads[entry] = substr($0, RSTART, RLENGTH) }
        /Compiling entry function/ { match($0, /_Z[A-Za-z0-9_]*/); name = substr($0, RSTART, RLENGTH) }
        /bytes spill stores/ { match($0, /[0-9]+ bytes spill stores/); st = substr($0, RSTART) + 0
                               match($0, /[0-9]+ bytes spill loads/); ld = substr($0, RSTART) + 0; spill[name] = st + ld }
        /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); r = substr($0, RSTART + 5, RLENGTH - 5) + 0; s = 0
                                  if (match($0, /[0-9]+ bytes smem/)) s = substr($0, RSTART) + 0
                                  print source, name, arch, r, s, spill[name] + 0, (name in threads ? threads[name] : 256), hash }
    ' "$out/$(basename "$f" .cu).$arch.$hash.txt"
}

# adds dynamic memory and occupancy; reads: source kernel arch registers static spill threads hash
with_occupancy() {
    awk -F'\t' -v shared_file=scripts/cuda_shared.txt '
        BEGIN { OFS = "\t"
            split("80 64 164 32 86 48 100 16 89 48 100 24 90 64 228 32 100 64 228 32 120 48 100 24", a, " ")
            for (i = 1; i in a; i += 4) { warps[a[i]] = a[i+1]; memory[a[i]] = a[i+2] * 1024; blocks[a[i]] = a[i+3] }
            while ((getline line < shared_file) > 0) if (line !~ /^#/ && split(line, f, "\t") >= 2) { n++; bytes[n] = f[1]; pattern[n] = f[2] } }
        function down(x, y) { return int(x / y) }
        function up(x, y) { return int((x + y - 1) / y) * y }
        { dynamic = 0
          for (i = 1; i <= n; i++) if ($2 ~ pattern[i]) dynamic = bytes[i]
          w = down($7 + 31, 32); b = blocks[$3]
          per = up($4 * 32, 256) * w
          if (down(65536, per) < b) b = down(65536, per)
          s = up($5 + dynamic, 128) + 1024
          if (down(memory[$3], s) < b) b = down(memory[$3], s)
          if (down(warps[$3], w) < b) b = down(warps[$3], w)
          print $1, $2, $3, $4, $5, dynamic, $6, $7, int(100 * b * w / warps[$3] + 0.5), $8 }'
}

everything=$(for f in kernels/cuda/*.cu; do echo "$f $(hash_of "$f")"; done)
list=$(echo "$everything" | while read -r f hash; do grep -q __global__ "$f" && echo "$f $hash"; done)
export -f compile
[ $check = 1 ] || everything=$list
echo "$everything" | while read -r f hash; do for a in $archs; do echo "$f $a $hash"; done; done |
    xargs -P "${JOBS:-2}" -L 1 bash -c 'compile "$@"' _ || exit 1

all_rows() {
    echo "$list" | while read -r f hash; do for a in $archs; do rows_of "$f" "$a" "$hash"; done; done | readable | with_occupancy |
        sort -t"$(printf '\t')" -k1,1 -k2,2 -k3,3n
}

if [ $check = 0 ]; then
    { printf 'source\tkernel\tarch\tregisters\tstatic\tdynamic\tspill\tthreads\toccupancy\thash\n'; all_rows; } >"$table.tmp" && mv "$table.tmp" "$table"
    echo "$table: $(($(wc -l <"$table") - 1)) rows, $(awk -F'\t' 'NR > 1 && $7 > 0' "$table" | wc -l) of them with spills"
    exit 0
fi

all_rows >"$out/now.tsv"
bad=0
while IFS=$'\t' read -r source kernel arch _ _ _ spill _; do
    [ "$spill" = 0 ] && continue
    grep -v '^#' scripts/cuda_spills.txt | while read -r k a _; do [[ $kernel =~ $k ]] && [[ $a = all || $a = "$arch" ]] && exit 9; done
    [ $? = 9 ] && continue
    echo "  $source: $kernel spills $spill bytes on sm_$arch; scripts/cuda_spills.txt has no reason for it"
    bad=$((bad + 1))
done <"$out/now.tsv"
stale=$(echo "$list" | while read -r f hash; do
    awk -F'\t' -v s="$(basename "$f")" -v h="$hash" '$1 == s && $10 == h { found = 1 } END { exit found }' "$table" && basename "$f"; done)
[ -z "$stale" ] || { echo "  $table is of other sources: $(echo $stale); make cuda-table"; bad=$((bad + 1)); }
echo "$(wc -l <"$out/now.tsv") kernels for sm_$(echo $archs | sed 's/ /, sm_/g') looked at"
[ $bad = 0 ]
