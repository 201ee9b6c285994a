#!/bin/sh
# Runs the GPU tests, and NVIDIA's compute-sanitizer over a few of their cases.
#
#   scripts/gpu_checks.sh [LIBRARY]
#
# LIBRARY is a built libstof_plugins.so, for a source tree that isn't installed; without it the
# installed one is used. Errors beside PyTorch's go to LOGS/accuracy.json. PYTHON names the interpreter, PYTEST_ARGUMENTS more options of pytest.
# Needs an NVIDIA GPU and PyTorch; nothing is built but kernels. Prints one line a check, keeps
# logs in the directory LOGS (by default a temporary one), and fails if a check did.
set -u

cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs" || exit 2
# Kernels are compiled once for all checks.
STOF_ONNX_CACHE=${STOF_ONNX_CACHE:-$logs/cache}
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export STOF_ONNX_CACHE PYTHONPATH
failed=0

if [ $# -gt 0 ]; then
  library=$(readlink -f "$1")
  link=stof_onnx/lib/libstof_plugins.so
  if [ ! -f "$library" ] || [ -e "$link" ]; then
    echo "gpu_checks: $1 doesn't exist, or there is a $link already" >&2
    exit 2
  fi
  mkdir -p stof_onnx/lib && ln -s "$library" "$link" || exit 2
  trap 'rm -f "$link"; rmdir stof_onnx/lib 2>/dev/null' EXIT
  trap 'exit 130' INT TERM
fi

# report NAME STATUS DETAIL
report() {
  if [ "$2" -eq 0 ]; then
    echo "ok      $1: $3"
  else
    echo "FAILED  $1: $3 (log: $logs/$1.log)"
    failed=1
  fi
}

STOF_GPU_RESULTS=$logs/accuracy.json
STOF_COMMIT=${STOF_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
export STOF_GPU_RESULTS STOF_COMMIT
# shellcheck disable=SC2086 # several options
"$python" -m pytest -q -m gpu tests/gpu ${PYTEST_ARGUMENTS:-} >"$logs/pytest.log" 2>&1
status=$?
sed -n '/error of the plugin/,$p' "$logs/pytest.log"
[ $status -eq 0 ] || grep -E '^(FAILED|ERROR)|^E  ' "$logs/pytest.log" | head -60
report pytest $status "$(tail -n 1 "$logs/pytest.log")"

sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
if [ ! -x "$sanitizer" ]; then
  echo "FAILED  compute-sanitizer: not found; it comes with the CUDA toolkit"
  exit 1
fi
# Only our kernels; older releases name the option differently.
if "$sanitizer" --help 2>&1 | grep -q -e '--kernel-name[^-]'; then
  filter="--kernel-name kns=stof"
else
  filter="--kernel-regex kns=stof"
fi
if ! "$python" -m tests.gpu.sanitizer_run --compile >"$logs/compile.log" 2>&1; then
  report compile 1 "kernels for the sanitizer can't be compiled"
  exit 1
fi
for tool in memcheck racecheck initcheck synccheck; do
  # What PyTorch's kernels write isn't tracked, as only ours are watched, so that its own copies of
  # it to the host look like reads of nothing.
  [ $tool = initcheck ] && options="--check-api-memory-access no" || options=
  # shellcheck disable=SC2086 # two words
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 120 "$sanitizer" --tool $tool $filter \
    $options --error-exitcode 1 "$python" -m tests.gpu.sanitizer_run >"$logs/$tool.log" 2>&1
  status=$?
  ran=$(grep -E '^[0-9]+ cases ran' "$logs/$tool.log")
  summary=$(grep -E 'SUMMARY' "$logs/$tool.log" | tail -n 1 | sed 's/^=* *//')
  # A run that never got to the end has found nothing either.
  [ -n "$ran" ] || status=1
  report $tool $status "${ran:-stopped early}, ${summary:-no summary}"
  [ $status -eq 0 ] || grep -E '^=========' "$logs/$tool.log" | head -20
done
exit $failed
