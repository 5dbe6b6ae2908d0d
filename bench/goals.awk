# The goals and what this run reached, one JSON line each; only those that the run has figures for.
# Usage: awk -f bench/json.awk -f bench/goals.awk results.jsonl

function goal(name, value, relation, bound, digits) {
    printf "{\"what\": \"goal\", \"name\": \"%s\", \"value\": %." digits "f, \"goal\": \"%s %." digits "f\", \"met\": %s}\n", name, value,
        relation, bound, (relation == ">=" ? value >= bound : value <= bound) ? "true" : "false"
}

function lowest(key, value) { if (!(key in low) || value < low[key]) low[key] = value }

BEGIN {
    gemm_goal["forward"] = 82
    gemm_goal["dx"] = 80
}

get("what") == "train" && get("who") != "peft.c" {
    kind = get("base")
    if (get("tokens_per_second") + 0 > peer[kind]) peer[kind] = get("tokens_per_second") + 0
}

get("what") == "train" && get("who") == "peft.c" {
    kind = get("base") get("compute") get("activations") get("checkpointing")
    speed[kind] = get("tokens_per_second") + 0
    rss[kind] = get("peak_rss_bytes") / 1e9
    percent[kind] = get("peak_percent") + 0
}

get("what") == "gemm" {
    direction = text("name")
    sub(/.* /, "", direction)
    gemms++
    gemm_name[gemms] = text("name")
    gemm_percent[gemms] = get("peak_percent") + 0
    gemm_bound[gemms] = gemm_goal[direction]
    gemm_ratio[gemms] = get("openblas_ratio")
}

get("what") == "attention" && get("name") == "one sequence" && get("rows") + 0 >= 1024 { lowest(get("direction"), get("peak_percent") + 0) }
get("what") == "attention" && get("growth") + 0 > growth { growth = get("growth") + 0 }
get("what") == "head" { lowest("head", get("peak_percent") + 0) }
get("what") == "head" && get("targets") + 0 < get("rows") + 0 { sparse = get("of_targets") + 0 }
get("what") == "start" && get("name") == "quantised once" { start = get("seconds") + 0 }

END {
    plain = "nf4f32f32false"
    check = "nf4f32f32true"
    if (speed[plain] && peer["nf4"]) goal("training: tokens/s of the best NF4 peer (reach 3)", speed[plain] / peer["nf4"], ">=", 2.5, 2)
    if (speed["nf4bf16f32false"] && peer["nf4"])
        goal("training: the same with compute_dtype bf16", speed["nf4bf16f32false"] / peer["nf4"], ">=", 2.5, 2)
    if (speed[plain]) goal("training: % of peak", percent[plain], ">=", 70, 1)
    if (speed[plain]) goal("training: peak resident GB", rss[plain], "<=", 1.0, 2)
    if (speed["nf4f32bf16false"]) goal("training: the same with activation_dtype bf16", rss["nf4f32bf16false"], "<=", 1.0, 2)
    if (speed[check]) goal("gradient_checkpointing: peak resident GB", rss[check], "<=", 0.4, 2)
    if (speed[check] && speed[plain]) goal("gradient_checkpointing: of the speed without", speed[check] / speed[plain], ">=", 0.78, 2)
    for (i = 1; i <= gemms; i++) {
        goal("gemm " gemm_name[i] ": % of peak", gemm_percent[i], ">=", gemm_bound[i], 1)
        if (gemm_ratio[i] != "") goal("gemm " gemm_name[i] ": of OpenBLAS", gemm_ratio[i], ">=", 1, 2)
    }
    if ("forward" in low) goal("attention forward from 1,024 tokens: least % of peak", low["forward"], ">=", 60, 1)
    if ("backward" in low) goal("attention backward from 1,024 tokens: least % of peak", low["backward"], ">=", 60, 1)
    if (growth) goal("attention: most time for one operation of that at the shortest length", growth, "<=", 1.1, 2)
    if ("head" in low) goal("head: least % of peak", low["head"], ">=", 80, 1)
    if (sparse) goal("head: a target's time when 3 of 4 tokens are none", sparse, "<=", 1.1, 2)
    if (start) goal("start: seconds to the first step on a base quantised once", start, "<=", 1, 2)
}
