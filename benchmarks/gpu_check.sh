#!/usr/bin/env bash
# What this project claims of a GPU, checked on one: under 8 minutes, each part writing its result before the next begins.
#
#   bash benchmarks/gpu_check.sh OUT [PART ...]       # parts: versions tests readme compare steps profile posterior published
#   DEVICE=cpu bash benchmarks/gpu_check.sh OUT       # the rehearsal: the same parts, small
#
# Runs with the Python of the machine ($PYTHON), into which the source tree is installed (pip install --no-deps
# --no-build-isolation -e .), and needs no network; $MNIST is a folder with MNIST's
# IDX files (parts that need it are left out without it).
set -u
out=${1:?'give a folder for the results: bash benchmarks/gpu_check.sh OUT [PART ...]'}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 MPLCONFIGDIR=$out/matplotlib
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
rounds=${ROUNDS:-7}

part_versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"
  "$python" benchmarks/gpu_check.py versions
}
part_tests() { "$python" -m pytest tests/gpu -q -p no:cacheprovider -W default; }
part_readme() { "$python" benchmarks/gpu_check.py readme "$device"; }
part_compare() {
  "$python" -m pyro_vae compare digits --device "$device" --epochs 20 --seeds 2 --draws 200 --out "$out/digits"
}
part_steps() {
  for sizes in '64 64 8' '784 400 20'; do
    # shellcheck disable=SC2086
    "$python" benchmarks/step_time.py $sizes --device "$device" --rounds "$rounds"
  done
  [ "$device" = cpu ] || "$python" benchmarks/step_time.py 64 64 8 --device "$device" --rounds "$rounds" --matmul high \
    --variants 'hand-written, reduce-overhead' 'pyro-vae, CUDA graph' 'NumPyro, lax.scan'
}
part_profile() { "$python" benchmarks/gpu_check.py profile "$device"; }
part_posterior() { "$python" benchmarks/gpu_check.py posterior "$device" "${MNIST:-}"; }
part_published() { "$python" benchmarks/gpu_check.py published "$device" "${MNIST:-}"; }

rc=0
for name in ${*:-versions tests readme compare steps profile posterior published}; do
  started=$SECONDS
  "part_$name" >"$out/$name.txt" 2>&1
  code=$?
  [ "$code" = 0 ] || rc=1
  echo "== $name: exit $code in $((SECONDS - started)) s" | tee -a "$out/$name.txt"
  tail -n "${LINES_SHOWN:-12}" "$out/$name.txt"
done
rm -rf "$out/matplotlib"
exit $rc
