#!/usr/bin/env bash
# Runs the kernels' tests of bounds (every operand laid against pages that must not be touched) under valgrind. Valgrind
# has no AVX-512, so the portable kernels and AVX2's are what runs; the test names them.
set -euo pipefail
cd "$(dirname "$0")/.."
test=$(cargo test -p mixse-kernels --test guard_pages --no-run --message-format json |
    sed -n 's/.*"executable":"\([^"]*guard_pages[^"]*\)".*/\1/p')
valgrind --error-exitcode=1 --leak-check=no --quiet "$test" --test-threads 1 --nocapture
