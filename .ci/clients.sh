#!/usr/bin/env bash
# Clients that others wrote, unmodified, against the real server: `.ci/clients.sh MIXSE MODELS`. They come from the Python index.
set -euo pipefail
cd "$(dirname "$0")/.."
mixse=$1
models=$2

python=target/ci-clients/bin/python
[ -x "$python" ] || python3 -m venv target/ci-clients
"$python" -m pip install -q 'openai==3.57.*' 'lm_eval[api]==0.4.13'

"$mixse" serve --model smollm2-135m-instruct --cache "$models" --port 0 >target/ci-serve.log 2>&1 &
server=$!
trap 'kill -KILL $server 2>/dev/null || true; cat target/ci-serve.log' EXIT
for _ in $(seq 100); do
    url=$(grep -oE 'http://[0-9.]+:[0-9]+' target/ci-serve.log | head -1) && break
    sleep 0.2
done

"$python" .ci/openai_client.py "$url"
"$python" .ci/lm_eval_agrees.py "$url" "$mixse" --model smollm2-135m-instruct --cache "$models"

# Asked to end, it does, with success.
kill -TERM $server
wait $server
trap - EXIT
echo "the clients are served, and the server has ended"
