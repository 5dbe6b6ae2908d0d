# Reading one of bench.sh's lines: flat JSON, keys unique in the line, no comma or brace inside the strings that are read
# by get. text() reads a string that may hold them.

function get(key,    at, v) {
    at = index($0, "\"" key "\": ")
    if (!at) return ""
    v = substr($0, at + length(key) + 4)
    sub(/[,}].*/, "", v)
    gsub(/"/, "", v)
    return v
}

function text(key,    at, v) {
    at = index($0, "\"" key "\": \"")
    if (!at) return ""
    v = substr($0, at + length(key) + 5)
    sub(/".*/, "", v)
    return v
}
