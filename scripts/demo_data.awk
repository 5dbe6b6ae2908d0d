# WordNet's data files (wndb(5WN)) to chat rows: "What does the word 'harbor' mean?" -> "harbor (noun): a sheltered port ..."
#
#   awk -v rows=2000 -v heldout=60 -v dir=OUT -f scripts/demo_data.awk data.noun data.verb index.noun index.verb
#
# writes OUT/train.jsonl (messages), OUT/heldout.jsonl (the same conversations as rendered text, for ./infer --score) and
# OUT/heldout.tsv (word, definition). The choice is a function of the files alone: common words (their first sense occurs in
# WordNet's tagged texts) of few senses with a short definition, one word a synset (two words of one synset share their
# definition, which would leak from training into the held-out rows), spread evenly over the alphabet.

BEGIN {
    ask = "What does the word '%s' mean?"
    system_turn = "You are a dictionary."
    n = 0
}

FNR == 1 {
    file = FILENAME
    sub(/.*\//, "", file)
    kind = file
    sub(/\..*/, "", kind)
    part = file
    sub(/.*\./, "", part)
}

/^ / { next } # the licence at the head of each file

# data.*: offset lex_filenum ss_type w_cnt word lex_id ... | gloss; the examples after the first semicolon
kind == "data" {
    bar = index($0, " | ")
    text = substr($0, bar + 3)
    cut = index(text, ";")
    if (cut) text = substr(text, 1, cut - 1)
    gsub(/^ +| +$/, "", text)
    if (length(text) >= 12 && length(text) <= 90 && text ~ /^[a-z][a-z ,'-]*$/) gloss[part, $1] = text
    next
}

# index.*: lemma pos synset_cnt p_cnt [pointer]... sense_cnt tagsense_cnt offset...
kind == "index" {
    p = $4
    offset = $(7 + p)
    if ($1 !~ /^[a-z]+$/ || length($1) < 4 || length($1) > 11 || $(6 + p) < 1 || $3 > 3) next
    if (!((part, offset) in gloss) || ((part, offset) in used) || ($1 in seen)) next
    used[part, offset] = 1
    seen[$1] = 1
    word[n] = $1
    answer[n] = $1 " (" part "): " gloss[part, offset] "."
    n++
}

function message(role, text) { return "{\"role\": \"" role "\", \"content\": \"" text "\"}" }

END {
    if (n < rows) {
        printf "demo_data.awk: only %d of %d words found: are these WordNet 3.0's files?\n", n, rows > "/dev/stderr"
        exit 1
    }
    every = int(rows / heldout)
    for (i = 0; i < rows; i++) {
        k = int(i * n / rows)
        question = sprintf(ask, word[k])
        if (i % every == int(every / 2) && held < heldout) {
            held++
            printf "{\"text\": \"<|im_start|>system\\n%s<|im_end|>\\n<|im_start|>user\\n%s<|im_end|>\\n<|im_start|>assistant\\n%s<|im_end|>\"}\n",
                system_turn, question, answer[k] > (dir "/heldout.jsonl")
            printf "%s\t%s\n", word[k], answer[k] > (dir "/heldout.tsv")
        } else {
            printf "{\"messages\": [%s, %s, %s]}\n", message("system", system_turn), message("user", question),
                message("assistant", answer[k]) > (dir "/train.jsonl")
            trained++
        }
    }
    printf "%d rows to train on, %d held out, of %d suitable words\n", trained, held, n
}
