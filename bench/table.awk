# The results of a run as a table for people. Usage: awk -f bench/json.awk -f bench/table.awk results.jsonl
# A section is a row of `sections`: columns separated by ";", each "key:heading:width:kind"; width < 0 is left-aligned.
# Kinds: s text, f0 f1 f2 f3 decimals, gb bytes as GB, mb bytes as MB, ms seconds as milliseconds, no yes/no.

function shown(key, kind,    v) {
    v = kind == "s" ? text(key) : get(key)
    if (kind == "s" && v == "") v = get(key)
    if (v == "") return "-"
    if (kind == "gb") return sprintf("%.2f", v / 1e9)
    if (kind == "mb") return sprintf("%.1f", v / 1e6)
    if (kind == "ms") return sprintf("%.2f", v * 1e3)
    if (kind == "no") return v == "true" ? "yes" : "no"
    if (kind ~ /^f/) return sprintf("%." substr(kind, 2) "f", v)
    return v
}

function section(what, title, columns) {
    order[++sections] = what
    titles[what] = title
    layout[what] = columns
}

BEGIN {
    section("train", "training step (tokens/s over the best peer with the same base: ratio)", \
        "who:who:-19:s;base:base:-5:s;compute:compute:-9:s;activations:kept:-5:s;checkpointing:recompute:-10:no;" \
        "tokens_per_second:tokens/s:9:f1;ratio:ratio:7:f2;peak_percent:% of peak:10:f1;peak_rss_bytes:peak GB:9:gb;" \
        "total_peak_rss_bytes:all GB:8:gb;first_loss:first loss:11:f3")
    section("gemm", "NF4 products of whole layers, 1,024 tokens, against OpenBLAS sgemm on fp32", \
        "name:layer:-24:s;threads:threads:8:f0;gflops:GFLOPS:8:f1;peak_percent:% of peak:10:f1;peak_percent_low:least:7:f1;" \
        "peak_percent_high:most:7:f1;openblas_gflops:OpenBLAS:10:f1;openblas_ratio:ratio:7:f2")
    section("attention", "attention, 9 heads over 3, 64 wide", \
        "name:batch:-16:s;direction:direction:-10:s;rows:tokens:8:f0;seconds:ms:10:ms;peak_percent:% of peak:10:f1;" \
        "growth:growth:8:f2;extra_bytes:extra MB:10:mb")
    section("head", "head loss and its gradient", \
        "name:words x width:-16:s;rows:tokens:8:f0;targets:targets:9:f0;seconds:ms:10:ms;peak_percent:% of peak:10:f1;" \
        "of_targets:of targets:12:f2;extra_bytes:extra MB:10:mb;logits_bytes:logits MB:11:mb")
    section("start", "from exec of ./train to its first step", "name:base:-20:s;model:model:-16:s;runs:runs:6:f0;seconds:seconds:9:f2")
    section("scaling", "scaling: 1,024 tokens a step or one sequence, NF4, r=16 on all linear layers", \
        "model:model:-16:s;threads:threads:8:f0;batch:batch:6:f0;length:length:8:f0;checkpointing:recompute:10:no;" \
        "tokens_per_second:tokens/s:10:f1;peak_percent:% of peak:10:f1;peak_rss_bytes:peak GB:9:gb;skipped:: 14:s")
    section("goal", "goals", "name:what:-72:s;value:reached:9:s;goal:goal:9:s;met:met:5:no")
    section("failure", "failed", "name:what:-60:s")
}

get("what") == "machine" {
    machine = sprintf("machine   %s, %s cores, %s GB, Linux %s, load %s\n          %s\ncompiler  %s\n          %s\ncommit    %s, %s",
        text("cpu"), get("cores"), get("memory_gb"), text("kernel"), get("load"), text("extensions"), text("compiler"), text("flags"),
        text("commit"), text("date"))
    if (text("peers") != "") machine = machine "\npeers     " text("peers")
    next
}

{ lines[++n] = $0 }
get("isa") != "" { isa = get("isa") }
text("openblas") != "" { openblas = text("openblas") }
get("what") == "train" && get("who") != "peft.c" && get("tokens_per_second") + 0 > best[get("base")] {
    best[get("base")] = get("tokens_per_second") + 0
}

# $0 is the line
function print_row(columns,    count, i, c, part, v) {
    count = split(columns, c, ";")
    for (i = 1; i <= count; i++) {
        split(c[i], part, ":")
        if (part[1] == "ratio") v = best[get("base")] > 0 ? sprintf("%.2f", get("tokens_per_second") / best[get("base")]) : "-"
        else v = part[1] == "skipped" && get("skipped") == "" ? "" : shown(part[1], part[4])
        printf "%" part[3] + 0 "s%s", v, i < count ? (part[3] < 0 ? " " : "") : "\n"
    }
}

END {
    print machine
    if (isa != "") print "kernels   " isa
    if (openblas != "") print "OpenBLAS  " openblas
    for (s = 1; s <= sections; s++) {
        what = order[s]
        headed = 0
        for (l = 1; l <= n; l++) {
            $0 = lines[l]
            if (get("what") != what) continue
            if (!headed++) {
                printf "\n%s\n", titles[what]
                count = split(layout[what], c, ";")
                for (i = 1; i <= count; i++) {
                    split(c[i], part, ":")
                    printf "%" part[3] + 0 "s%s", part[2], i < count ? (part[3] < 0 ? " " : "") : "\n"
                }
            }
            print_row(layout[what])
        }
    }
}
