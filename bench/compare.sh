#!/usr/bin/env bash
# Runs `mixse bench` and the reference's speed test alternately, three rounds, and prints medians and ratios.
#
#   bench/compare.sh MIXSE GGUF REFERENCE.py HF_DIR [PYTHON]
#
# MIXSE is the release binary, GGUF and HF_DIR the same model for either side. The reference runs in f32 and in bf16.
set -euo pipefail
mixse=$1 gguf=$2 reference=$3 directory=$4 python=${5:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for round in 1 2 3; do
    echo "round $round" >&2
    "$mixse" bench --model "$gguf" --json >"$work/mixse.$round.json"
    "$python" "$reference" speed "$directory" f32 >"$work/f32.$round.json"
    "$python" "$reference" speed "$directory" bf16 >"$work/bf16.$round.json"
done
"$python" - "$work" <<'PYTHON'
import json, statistics, sys

def median(name, pick):
    return statistics.median(pick(json.load(open(f"{sys.argv[1]}/{name}.{i}.json"))) for i in (1, 2, 3))

print("| row | mixse | transformers f32 | transformers bf16 | ratio to the better |")
print("|---|---|---|---|---|")
for row in ["prefill_8x512", "generate_1x64", "generate_16x64", "generate_64x64", "lora_train_8x256"]:
    ours = median("mixse", lambda r: r["rows"][row]["tokens_per_s"])
    f32, bf16 = median("f32", lambda r: r[row]), median("bf16", lambda r: r[row])
    print(f"| {row} | {ours:.0f} | {f32:.0f} | {bf16:.0f} | {ours / max(f32, bf16):.2f} |")
PYTHON
