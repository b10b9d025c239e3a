#!/usr/bin/env bash
# Makes benchmarks/gpu_wheels: what gpu_check.sh needs on a machine that has torch and numpy, but no network.
# The wheels fit CPython 3.10 to 3.14 on x86-64 Linux; the digits come as a prepared data cache, without scikit-learn.
# Usage: benchmarks/gpu_wheels.sh   (PYTHON: a python with pip in which esper_ray's dependencies are installed)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=benchmarks/gpu_wheels
packages=(pydantic pydantic-core annotated-types typing-inspection typing-extensions
  gymnasium farama-notifications cloudpickle safetensors)
most_kilobytes=40000

rm -rf "$folder"
mkdir -p "$folder"
for version in 3.10 3.11 3.12 3.13 3.14; do
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
    --constraint constraints.txt --dest "$folder" "${packages[@]}"
done
PYTHONPATH=$PWD ESPER_RAY_CACHE=$PWD/$folder/cache "$python" - <<'END'
from esper_ray.tasks import get_task_spec, prepare_data

prepare_data(get_task_spec("digits"))
END
kilobytes=$(du -sk "$folder" | cut -f1)
if [ "$kilobytes" -gt "$most_kilobytes" ]; then
  echo "$folder takes $kilobytes kB, more than the $most_kilobytes kB that may travel: leave a version of Python out" >&2
  exit 1
fi
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $kilobytes kB with the digits."
