#!/usr/bin/env bash
# Fuzzes each kind of input for so many inputs: `fuzz/run.sh [INPUTS [NAME…]]`. Needs `cargo install cargo-fuzz`.
# A fault leaves its input in fuzz/artifacts/NAME; put it into crates/fuzz/corpus/NAME, where the tests replay it.
set -uo pipefail
cd "$(dirname "$0")/.."

inputs=${1:-1000000}
shift
names=("$@")
if [ ${#names[@]} = 0 ]; then
    names=(gguf safetensors config tokenizer chat_template adapter router rows toml answers requests)
fi

# The compiler's coverage does not need its nightly channel, only its switch for one.
export RUSTC_BOOTSTRAP=1
# Inputs are read as files: not from a disk.
[ -w /dev/shm ] && export TMPDIR=/dev/shm

cargo build -q --workspace --bin seeds && target/debug/seeds fuzz/corpus || exit 1
cargo fuzz build --sanitizer none || exit 1
failed=0
for name in "${names[@]}"; do
    kept=crates/fuzz/corpus/$name
    mkdir -p "fuzz/corpus/$name"
    [ -d "$kept" ] && cp "$kept"/* "fuzz/corpus/$name/"
    log=fuzz/target/$name.log
    # An input may take 10 seconds and 1 GB.
    if cargo fuzz run --sanitizer none "$name" -- -runs="$inputs" -timeout=10 -rss_limit_mb=1024 -max_len=65536 >"$log" 2>&1; then
        echo "$name: $(grep -E '^Done' "$log"); $(grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "$log" | tail -1)"
    else
        failed=1
        echo "$name: a fault, see $log"
        grep -E "panicked|ERROR|SUMMARY|Test unit written" -A2 "$log" | head -20
    fi
done
exit $failed
