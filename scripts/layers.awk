# The layering of #includes: a file includes files of its own folder and of lower layers only. The table is DESIGN's: data
# sees core alone, optim sees flat vectors and never the tape, programs and tests see everything.
# Usage: awk -f scripts/layers.awk FILE...      prints file:line: what, exit code 1 when something is wrong

BEGIN {
    may["core"] = "core"
    may["kernels"] = "core kernels"
    may["data"] = "core data"
    may["autograd"] = "core kernels autograd"
    may["optim"] = "core kernels optim"
    may["peft"] = "core kernels autograd optim peft"
    may["model"] = "core kernels autograd optim peft data model"
    may["engine"] = "core kernels autograd optim peft data model engine"
    everything = "core kernels data autograd optim peft model engine"
}

function layer_of(path) { return path ~ /\// ? substr(path, 1, index(path, "/") - 1) : "" }

function report(text) { printf "%s:%d: %s\n", FILENAME, FNR, text; bad++ }

/^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, quoted, "\"")
    target = quoted[2]
    from = layer_of(FILENAME)
    if (from == "tests" || from == "bench") next # they may open anything, a program's source included
    to = layer_of(target)
    allowed = (from in may) ? may[from] : everything
    if (to == "" && from != "") report("include \"" target "\": write the path from the root of the tree")
    else if (to == "") next
    else if (index(" " allowed " ", " " to " ") == 0)
        report("include \"" target "\": " from "/ may include only " allowed)
    includes++
}

# one place knows the vector registers of an instruction set
/^[ \t]*#[ \t]*include[ \t]*[<"].*(mmintrin|immintrin|arm_neon|simde\/|arm_sve)/ {
    if (FILENAME !~ /^kernels\/cpu\/simd[a-z0-9_]*\.h$/ && FILENAME !~ /^tests\//)
        report("vector intrinsics belong in kernels/cpu/simd*.h")
}

END {
    printf "%d includes, %d against the layering\n", includes, bad
    exit (bad > 0)
}
