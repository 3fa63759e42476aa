#!/usr/bin/env bash
# Runs `mixse bench`, the reference's speed test and llama.cpp alternately, three rounds, and prints medians and ratios.
#
#   bench/compare.sh MIXSE GGUF REFERENCE.py HF_DIR [PYTHON]
#
# MIXSE is the release binary, GGUF and HF_DIR the same model for either side. The reference runs in f32 and in bf16, which
# is slow without AMX. In the environment: ROUNDS=1 for fewer, DTYPES=f32 for less, LLAMA="Q4_0 Q8_0" for llama.cpp with weights
# of these types (none without; what it needs stands in llama_cpp.py), RUN="taskset -c 0,1" to start every measurement with a
# command of your own.
set -euo pipefail
mixse=$1 gguf=$2 reference=$3 directory=$4 python=${5:-python3}
rounds=${ROUNDS:-3} dtypes=${DTYPES-f32 bf16} llama=${LLAMA:-}
rows=prefill_8x512,generate_1x64,generate_16x64,generate_64x64,lora_train_8x256
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for ((round = 1; round <= rounds; round++)); do
    echo "round $round" >&2
    ${RUN:-} "$mixse" bench --model "$gguf" --only $rows --json >"$work/mixse.$round.json"
    for dtype in $dtypes; do
        ${RUN:-} "$python" "$reference" speed "$directory" "$dtype" >"$work/$dtype.$round.json"
    done
    if [ -n "$llama" ]; then
        ${RUN:-} "$python" "$(dirname "$0")/llama_cpp.py" "$gguf" $llama >"$work/llama.$round.json"
    fi
done
"$python" - "$work" $rounds $rows "$dtypes" "$llama" <<'PYTHON'
import json, statistics, sys

work, rounds, rows, dtypes, kinds = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4].split(), sys.argv[5].split()

def median(name, pick):
    return statistics.median(pick(json.load(open(f"{work}/{name}.{i + 1}.json"))) for i in range(rounds))

peers = [f"transformers {dtype}" for dtype in dtypes] + [f"llama.cpp {kind}" for kind in kinds]
print("| row | mixse | " + " | ".join(peers) + " | ratio to the best |")
print("|---" * (len(peers) + 3) + "|")
for row in rows:
    ours = median("mixse", lambda report: report["rows"][row]["tokens_per_s"])
    theirs = [median(dtype, lambda report: report[row]) for dtype in dtypes]
    theirs += [median("llama", lambda report: report[kind].get(row, 0)) for kind in kinds]  # it does not train
    shown = " | ".join(f"{speed:.0f}" if speed else "-" for speed in theirs)
    ratio = f"{ours / max(theirs):.2f}" if any(theirs) else "-"
    print(f"| {row} | {ours:.0f} | {shown} | {ratio} |")
PYTHON
