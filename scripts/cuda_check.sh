#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can show, in under eight minutes: the tests that need one, the engine on the
# default model and on Vicuna-7B's shape, a projection onto that shape, and a run of all methods with its audit in float32.
#
#   scripts/cuda_check.sh [FOLDER]      (default: results/cuda/<GPU>-<date>)
#
# Uses the python that is active (PYTHON=... for another one), with torch built for CUDA. Results lie in FOLDER: JSON for
# programs, what was printed in *.log. Goes on where a part fails, and says in the end which did; exit status 1 then.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "error: $PYTHON has no torch that sees a CUDA device; install a CUDA build of torch, or set PYTHON" >&2
    exit 2
fi
name=$("$PYTHON" -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower())')
out=${1:-results/cuda/$name-$(date -u +%Y%m%d)}
mkdir -p "$out" || exit 2
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    echo "--- $name"
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1 || failed+=("$name (status $?)")
    tail -n 25 "$out/$name.log"
}

part tests 100 "$PYTHON" -m pytest -q -x tests/test_cuda.py
part engine-default 60 "$PYTHON" run_bench.py bench-engine --device cuda --method kangaroo --method medusa --json "$out/engine-default.json"
part engine-vicuna-7b 120 "$PYTHON" run_bench.py bench-engine --shape vicuna-7b --device cuda --dtype bfloat16 \
    --peer hf-generate --peer hf-static --json "$out/engine-vicuna-7b.json"
part projection 10 "$PYTHON" run_bench.py project --engine "$out/engine-vicuna-7b.json" --json "$out/projection-vicuna-7b.json"
part float32 80 "$PYTHON" run_bench.py --method all --device cuda --dtype float32 --limit 2 --out "$out/float32"
part bfloat16 100 "$PYTHON" run_bench.py --method all --device cuda --limit 4 --max-new-tokens 128 --out "$out/bfloat16"

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all parts are fine: $out"
