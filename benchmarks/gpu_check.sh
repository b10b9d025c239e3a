#!/usr/bin/env bash
# Runs gpu_check.py with the wheels of gpu_wheels.sh, for at most eight minutes; arguments are passed on.
# Usage: benchmarks/gpu_check.sh [--small] [--out FOLDER]   (PYTHON: a python with torch, numpy and numba)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=benchmarks/gpu_wheels
if ! "$python" -c 'import torch, numpy' 2>/dev/null; then
  echo "$python has no torch and numpy; name one that has them in PYTHON" >&2
  exit 2
fi
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
abi=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
for wheel in "$wheels"/*-none-any.whl "$wheels"/*-abi3-*.whl "$wheels"/*-"$abi"-"$abi"-*.whl; do
  [ -e "$wheel" ] && "$python" -m zipfile -e "$wheel" "$site"
done
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c 'import pydantic, gymnasium, safetensors'; then
  echo "$python has no pydantic, gymnasium or safetensors: first run benchmarks/gpu_wheels.sh where there is a network" >&2
  exit 2
fi
timeout --kill-after=10 475 "$python" benchmarks/gpu_check.py "$@"
