#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can show, in under fourteen minutes: first the tests that need one, then the
# engine on the default model and on Vicuna-7B's shape with a projection onto it, runs of all methods on a few of
# Spec-Bench's questions (audited in float32, and in bfloat16), and an adapter trained on all conversations that come with
# the project, half as many again as the packaged weights have seen, with a run of it.
#
#   scripts/cuda_check.sh [--dry-run] [FOLDER]      (default: results/cuda/<GPU>-<date>)
#
# --dry-run goes through every part on the CPU, with the least of everything: some minutes, and no figures worth a look.
# TOKENS=N has the model write what is missing of N answer tokens to train on (raise the part's limit, too).
# Uses the python that is active (PYTHON=... for another one), with torch built for CUDA. Needs the default model and the
# official questions (downloaded, or already in ROOBENCH_CACHE); without the latter the mini set is asked. Results are in
# FOLDER: JSON for programs, what was printed in *.log. Goes on where a part fails, and says in the end which did; exit
# status 1 then.
set -uo pipefail
PYTHON=${PYTHON:-python}
dry=
if [[ ${1:-} == --dry-run ]]; then dry=1 && shift; fi
given=${1:+$(realpath -m "$1")}
cd "$(dirname "$0")/.."
if [[ $dry ]]; then
    device=cpu name=cpu shape=smollm2-135m
    engine=(--context 256 --repeats 1) asked=(--limit 1 --tasks qa --max-new-tokens 4) training=(--tokens 2000 --epochs 1)
else
    if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
        echo "error: $PYTHON has no torch that sees a CUDA device; install a CUDA build of torch, or set PYTHON" >&2
        exit 2
    fi
    name=$("$PYTHON" -c 'import re, torch; print(re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower())')
    device=cuda shape=vicuna-7b
    engine=() asked=(--limit 4 --max-new-tokens 128) training=(--tokens "${TOKENS:-0}")
fi
out=${given:-results/cuda/$name-$(date -u +%Y%m%d)${dry:+-dry-run}}
mkdir -p "$out" || exit 2
questions=official
if ! "$PYTHON" -c 'from bench import questions; questions.fetch_official()' 2>"$out/questions.log"; then
    questions=mini
    echo "the official questions cannot be had ($out/questions.log): the mini set is asked"
fi
failed=()

part() { # NAME SECONDS COMMAND...
    local name=$1 seconds=$2
    shift 2
    echo "--- $name"
    timeout "${dry:+60}$seconds" "$@" >"$out/$name.log" 2>&1 || failed+=("$name (status $?)")
    tail -n 25 "$out/$name.log"
}

bench=("$PYTHON" run_bench.py)
part tests 100 "$PYTHON" -m pytest -q -x tests/test_cuda.py
part engine-default 60 "${bench[@]}" bench-engine --device $device --method kangaroo --method medusa "${engine[@]}" \
    --json "$out/engine-default.json"
part engine-$shape 120 "${bench[@]}" bench-engine --shape $shape --device $device --dtype bfloat16 "${engine[@]}" \
    --peer hf-generate --peer hf-static --json "$out/engine-$shape.json"
part projection 10 "${bench[@]}" project --engine "$out/engine-$shape.json" --json "$out/projection-$shape.json"
part float32 90 "${bench[@]}" --method all --device $device --dtype float32 --questions $questions "${asked[@]}" \
    --out "$out/float32"
part bfloat16 90 "${bench[@]}" --method all --device $device --dtype bfloat16 --questions $questions "${asked[@]}" \
    --out "$out/bfloat16"
part train 300 "${bench[@]}" train kangaroo --device $device "${training[@]}" --replace --out "$out/kangaroo"
part trained 60 "${bench[@]}" --method kangaroo --method "kangaroo:weights=$out/kangaroo" --device $device \
    --questions $questions "${asked[@]}" --peer none --out "$out/trained"

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all parts are fine: $out"
