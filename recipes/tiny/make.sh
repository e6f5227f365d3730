#!/bin/sh
# Makes the embedded model and its data again: sh recipes/tiny/make.sh [FOLDER]
# With the program on the PATH, or RETUNE=path/to/retune. FOLDER (build/tiny without it) must not exist.
set -eu
export LC_ALL=C
retune=${RETUNE:-retune}
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-build/tiny}
kept_out=psychology

if [ -e "$out" ]; then
    echo "$out is there already; remove it or name another folder" >&2
    exit 2
fi
mkdir -p "$out/data"
corpus=$(dirname "$("$retune" fetch chatterbot)")

# The data to fine-tune on: one category, which the base never sees.
awk -v ONE_IN=6 -v TRAIN="$out/data/train.jsonl" -v HELDOUT="$out/data/heldout.jsonl" \
    -f "$here/split.awk" "$corpus/categories/$kept_out.jsonl"

# The base's data: all other categories, without the questions of that one.
awk -v ONE_IN=12 -v TRAIN="$out/base-train.jsonl" -v HELDOUT="$out/base-heldout.jsonl" \
    -v WITHOUT="$corpus/categories/$kept_out.jsonl" -f "$here/split.awk" "$corpus/all.jsonl"

"$retune" init --config "$here/config.json" --seed 0 --train-tokenizer "$out/base-train.jsonl" --out "$out/fresh"
"$retune" train "$here/train.toml" --model "$out/fresh" --data "$out/base-train.jsonl" \
    --eval-data "$out/base-heldout.jsonl" --out "$out/model"
