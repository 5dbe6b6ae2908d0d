#!/bin/bash
# The main job from a fresh clone: fetch a real model and real data, build, fine-tune through a frozen NF4 base, and show what
# changed: held-out loss and sample answers of the base, of the unmerged and of the merged adapter.
#
#   scripts/demo.sh            the whole of it, about five minutes on two cores
#   scripts/demo.sh --check    the same steps, fewer of them, each verified; closes with "N passed, N failed"
#
# Files go to demo/ (DEMO_DIR), the downloaded model stays in ${XDG_CACHE_HOME:-~/.cache}/peft.c.
set -u -o pipefail
cd "$(dirname "$0")/.."

mode=full
[ "${1:-}" = --check ] && mode=check
dir=demo
model=$dir/SmolLM2-135M-Instruct.Q4_1.gguf
wordnet=${WORDNET:-/usr/share/wordnet}
scored=60 train_options=() words="tavern pathologist candle"
if [ $mode = check ]; then
    scored=10 words="tavern"
    train_options=(--max_steps=6 --warmup_steps=1)
fi
began=$SECONDS
passed=0

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold="" dim="" plain=""; fi

# --- steps: each is a function; a failing one ends the demo with one line ------------------------------------------------
step() { # title, function
    local at=$SECONDS
    printf '\n%s%s%s\n' "$bold" "$1" "$plain"
    if "$2"; then
        passed=$((passed + 1))
        printf '%s  (%d s)%s\n' "$dim" $((SECONDS - at)) "$plain"
    else
        printf '%sfailed: %s%s\n' "$bold" "$1" "$plain"
        [ $mode = check ] && echo "$passed passed, 1 failed"
        exit 1
    fi
}

say() { printf '  %s\n' "$*"; }

packages() { scripts/install-deps.sh --quiet demo && say "Debian packages are there"; }

fetch() {
    local file
    file=$(scripts/fetch_model.sh) || return 1
    mkdir -p "$dir" && ln -sf "$file" "$model" || return 1
    say "SmolLM2-135M-Instruct, Q4_1, $(($(stat -L -c %s "$model") / 1000000)) MB: $model"
}

data() {
    local counts
    counts=$(awk -v rows=2000 -v heldout=60 -v dir="$dir" -f scripts/demo_data.awk \
        "$wordnet"/data.noun "$wordnet"/data.verb "$wordnet"/index.noun "$wordnet"/index.verb) || return 1
    head -n $scored "$dir/heldout.jsonl" >"$dir/scored.jsonl"
    say "WordNet 3.0 ($wordnet): $counts"
    say "for example: $(sed -n 700p "$dir/train.jsonl" | sed 's/.*"assistant", "content": "\([^"]*\)".*/\1/')"
}

build() {
    make --no-print-directory -j"$(nproc)" all >"$dir/build.log" 2>&1 || {
        tail -n 30 "$dir/build.log"
        return 1
    }
    say "./train ./infer ./merge"
}

# Mean negative log-likelihood over the answers alone: what follows the third turn's header, its end-of-turn token included.
answer_loss() {
    awk '
        function list(key,    at, rest) { # the JSON array under key, split into item[]
            at = match($0, "\"" key "\"[ ]*:[ ]*\\[")
            if (!at) { print "no " key " in: " substr($0, 1, 80) > "/dev/stderr"; exit 1 }
            rest = substr($0, at + RLENGTH)
            return split(substr(rest, 1, index(rest, "]") - 1), item, /[ ]*,[ ]*/)
        }
        {
            n = list("input_ids")
            turns = begin = 0
            for (i = 1; i <= n; i++) if (item[i] + 0 == 1 && ++turns == 3) begin = i + 3 # <|im_start|> assistant \n
            if (!begin || begin > n) { print "no answer found in row " NR > "/dev/stderr"; exit 1 }
            n = list("logprobs")
            for (i = begin; i <= n; i++) { sum -= item[i]; count++ }
        }
        END { if (!count) exit 1; printf "%.4f\n", sum / count }'
}

score() { # name, then what ./infer needs
    local name=$1 loss
    shift
    loss=$(./infer "$@" --score "$dir/scored.jsonl" | answer_loss) || return 1
    printf '%s\t%s\n' "$name" "$loss" >>"$dir/losses.tsv"
    say "$(printf '%-44s %s' "$name" "$loss")"
}

base_as_file=(--model "$model")
base_nf4=(--model "$model" --load-in-4bit)
unmerged=(--model "$model" --load-in-4bit --adapter "$dir/adapter")
merged=(--model "$dir/merged")

score_before() {
    rm -f "$dir/losses.tsv"
    score "the file as given (Q4_1)" "${base_as_file[@]}" && score "its NF4 base" "${base_nf4[@]}"
}

train() {
    rm -rf "$dir/adapter"
    ./train configs/demo.yaml "${train_options[@]}" || return 1
    [ -s "$dir/adapter/adapter_model.safetensors" ] && [ -s "$dir/adapter/adapter_config.json" ]
}

merge() {
    rm -rf "$dir/merged"
    ./merge --model "$model" --load-in-4bit --adapter "$dir/adapter" --out "$dir/merged" --dtype f32
}

score_after() {
    score "after training: NF4 base + adapter" "${unmerged[@]}" && score "after training: merged" "${merged[@]}" || return 1
    awk -F '\t' '{ loss[NR] = $2 } END {
        if (loss[3] >= loss[2]) { print "  training did not lower the held-out loss"; exit 1 }
        d = loss[4] - loss[3]
        if (d > 0.002 || d < -0.002) { print "  merged and unmerged differ"; exit 1 } }' "$dir/losses.tsv"
}

answer() { # word, then what ./infer needs
    local word=$1
    shift
    ./infer "$@" --chat --system "You are a dictionary." --prompt "What does the word '$word' mean?" --max-tokens 48 \
        --temperature 0 --precise 2>>"$dir/infer.log" | tr '\n' ' ' | sed 's/ *$//'
}

show() { # label, text
    printf '    %-9s ' "$1"
    printf '%s\n' "$2" | fold -s -w 96 | sed '2,$s/^/              /'
}

samples() {
    local word base with without
    for word in $words; do
        printf '  What does the word "%s" mean?\n' "$word"
        base=$(answer "$word" "${base_nf4[@]}") && with=$(answer "$word" "${unmerged[@]}") &&
            without=$(answer "$word" "${merged[@]}") || return 1
        show base "$base"
        show unmerged "$with"
        show merged "$without"
        show WordNet "$(awk -F '\t' -v w="$word" '$1 == w { print $2 }' "$dir/heldout.tsv")"
        [ -n "$with" ] && [ "$with" = "$without" ] || { say "unmerged and merged answers differ"; return 1; }
    done
}

summary() {
    printf '\n%sHeld-out loss%s, %s definitions that training never saw (nats per token of the answer)\n\n' "$bold" "$plain" "$scored"
    awk -F '\t' '{ printf "    %-40s %8.4f    perplexity %9.2f\n", $1, $2, exp($2) }' "$dir/losses.tsv"
    printf '\n%sFiles%s\n\n' "$bold" "$plain"
    say "$dir/adapter    the adapter in Hugging Face PEFT's layout, metrics.jsonl with one line a step"
    say "$dir/merged     the merged model, a Hugging Face directory that transformers loads"
    say "$dir/train.jsonl, $dir/heldout.jsonl    the data"
    printf '\nTry it:\n\n'
    say "./infer --model $model --load-in-4bit --adapter $dir/adapter --chat --system 'You are a dictionary.'"
    say "./train configs/demo.yaml --max_steps=200 --output_dir=$dir/longer"
    printf '\n%d min %02d s in all\n' $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60))
}

step "Packages" packages
step "A real model" fetch
step "A real data set" data
step "Build" build
step "Held-out loss before training" score_before
step "Fine-tune: LoRA on every linear layer of the frozen NF4 base" train
step "Merge" merge
step "Held-out loss after training" score_after
step "Answers" samples
summary
[ $mode = check ] && echo "$passed passed, 0 failed"
exit 0
