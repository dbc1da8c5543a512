#!/usr/bin/env bash
# See usage below, or scripts/gpu_check.sh --help.
set -u

usage() {
  cat <<'END'
usage: scripts/gpu_check.sh [PHASE[:SECONDS]]...

Builds the package on a machine with an NVIDIA GPU, tests it there and measures it. Needs python3 with PyTorch (CUDA),
setuptools, pybind11, cmake, ninja, pytest and nvcc; no network. Nothing is installed outside of build/gpu.

  build     compiles and installs into build/gpu (default 240 s); every other phase needs it once
  warm      starts compiling in the background what the benchmarks need, which then wait for it; name it before the tests
  native    tests of ckd_kernels but for Triton and the CPU's backends (100 s)
  triton    tests of ckd_kernels on Triton (180 s)
  trainer   tests of the captured training step: the eager one's bits, nothing that waits, resume, two GPUs if they are
            there (150 s)
  kernels   benchmarks/cuda_kernels.py: every kernel against a copy of its bytes (110 s)
  neurons   benchmarks/cuda_neurons.py: the neurons that people write, on the backend that "auto" takes (90 s)
  step      benchmarks/cuda_step.py: a training step of ResNet-19, and where its time goes (120 s)
  epochs    benchmarks/cuda_trainer.py: epochs of the trainer beside the replays of its graph (260 s)
  scaling   benchmarks/cuda_scaling.py: data-parallel training on 1, 2, 4, ... GPUs (300 s); not run unless it is named
  folder    benchmarks/cuda_folder.py: training from the JPEGs of $IMAGES (110 s); not run unless it is named
  peers     benchmarks/cuda_peers.py: SpikingJelly, torch.compile, cuDNN, launch overhead (90 s)
  sanitize  compute-sanitizer, its four tools side by side, over scripts/sanitizer_cases.py (90 s)

Phases run in the order given; without any, all of them as listed but scaling and folder. One that fails or that is stopped after its seconds
does not stop the rest. LIMIT is the time for everything: what would not fit is shortened or skipped.

Written to $OUT: summary.txt (phase, exit status, seconds), build.log, tests.log, bench.log, sanitize.log, and
kernels.json, neurons.json, step.json, trainer.json, scaling.json, folder.json and peers.json, which hold what was
measured until then whenever a benchmark is stopped.

environment
  OUT              folder for all of this (out)
  LIMIT            seconds (585)
  PYTHON           interpreter (python3)
  JOBS             processes of the tests (the number of cores)
  CKD_CUDA_ARCHS   architectures to compile for (those of the GPUs that are there, machine code only)
  PYTHONPATH       where further packages are, such as spikingjelly for the benchmarks
  IMAGES           folder of the phase folder, with train/<class>/*.jpeg and val/<class>/*.jpeg
  BENCH_DEVICE     cpu tries the benchmarks without a GPU, on tiny sizes (cuda)

examples
  scripts/gpu_check.sh
  scripts/gpu_check.sh build native triton
  scripts/gpu_check.sh build warm sanitize kernels:150 step peers
The exit status is 0 when every phase's was.
END
}

ALL="build warm native triton trainer kernels neurons step epochs peers sanitize"
declare -A BOX=([build]=240 [warm]=150 [native]=100 [triton]=180 [trainer]=150 [epochs]=260 [scaling]=300 [folder]=110 [kernels]=110 [neurons]=90 [step]=120 [peers]=90 [sanitize]=90)

phases=()
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
  esac
  name=${argument%%:*}
  if [[ -z $name || -z ${BOX[$name]:-} ]]; then
    echo "gpu_check.sh: no phase '$name'; there are: $ALL scaling folder" >&2
    exit 2
  fi
  if [[ $argument == *:* ]]; then
    BOX[$name]=${argument#*:}
    if [[ ! ${BOX[$name]} =~ ^[1-9][0-9]*$ ]]; then
      echo "gpu_check.sh: '$argument' must be PHASE:SECONDS, in whole seconds" >&2
      exit 2
    fi
  fi
  phases+=("$name")
done
((${#phases[@]})) || read -ra phases <<<"$ALL"

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
OUT=${OUT:-out}
LIMIT=${LIMIT:-585}
PYTHON=${PYTHON:-python3}
JOBS=${JOBS:-$(nproc)}
BENCH_DEVICE=${BENCH_DEVICE:-cuda}
SITE=$PWD/build/gpu
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
scratch=$(mktemp -d)
warming=()
trap 'for pid in "${warming[@]}"; do kill "$pid" 2>/dev/null; done; rm -rf "$scratch"' EXIT
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
summary=$OUT/summary.txt
status=0

note() { printf '%-10s %4s %6s s  %s\n' "$@" | tee -a "$summary"; }

left() { echo $((LIMIT - SECONDS)); }

# record PHASE STATUS SECONDS [REMARK]: timeout(1) ends with 124 or, having had to kill, 137.
record() {
  local remark=${4:-}
  [[ $2 == 124 || $2 == 137 ]] && remark="stopped at its time limit${remark:+; $remark}"
  [[ $2 == 0 ]] || status=1
  note "$1" "$2" "$3" "$remark"
}

# boxed SECONDS COMMAND...: an interrupt first, so that pytest still tells what has failed.
boxed() {
  local seconds=$1
  shift
  timeout --foreground --signal=INT --kill-after=15 "$seconds" "$@"
}

has_module() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

build() {
  boxed "$1" "$PYTHON" -m pip --disable-pip-version-check -v install --no-build-isolation --no-deps --no-index \
    --upgrade --target "$SITE" . || return
  "$PYTHON" -P -c 'import ckd_kernels, json; print(json.dumps(ckd_kernels.build_info(), indent=1))'
}

# tests SECONDS EXPRESSION: every test file of ckd_kernels that asks for a target, the newest kernels first.
tests() {
  local files options=(-q --tb=short -rfE -p no:cacheprovider -k "$2")
  mapfile -t files < <(grep -lE '\btarget\b' tests/test_bn*.py tests/test_*.py | awk '!seen[$0]++' |
    xargs grep -L ckdsnn | grep -v compile)
  has_module xdist && options+=(-n "$JOBS" --dist load)
  has_module pytest_timeout && options+=(--timeout 120)
  echo "== pytest -k '$2'"
  OMP_NUM_THREADS=1 boxed "$1" "$PYTHON" -P -m pytest "${options[@]}" "${files[@]}"
}

trainer() {
  CUBLAS_WORKSPACE_CONFIG=:4096:8 boxed "$1" "$PYTHON" -P -m pytest -q --tb=short -rfE -p no:cacheprovider \
    tests/test_training_gpu.py tests/test_data_parallel.py tests/test_train_resume.py
}

epochs() {
  echo "== benchmarks/cuda_trainer.py"
  boxed "$1" "$PYTHON" benchmarks/cuda_trainer.py "$OUT/trainer.json" --device "$BENCH_DEVICE"
}

scaling() {
  echo "== benchmarks/cuda_scaling.py"
  boxed "$1" "$PYTHON" benchmarks/cuda_scaling.py "$OUT/scaling.json" --device "$BENCH_DEVICE"
}

folder() {
  echo "== benchmarks/cuda_folder.py"
  boxed "$1" "$PYTHON" benchmarks/cuda_folder.py "${IMAGES:-data/imagenette}" "$OUT/folder.json" --device "$BENCH_DEVICE"
}

warm() {
  local script part parts
  for script in kernels:4 neurons:5 step:4 peers:4; do
    parts=${script#*:}
    script=${script%:*}
    for ((part = 1; part <= parts; part++)); do
      TORCHINDUCTOR_COMPILE_THREADS=4 timeout "$1" "$PYTHON" "benchmarks/cuda_$script.py" "$scratch/none" \
        --device "$BENCH_DEVICE" --warm-up "$part/$parts" >"$scratch/warm-$script-$part.log" 2>&1 &
      warming+=($!)
    done
  done
}

finish_warm() {
  ((${#warming[@]})) || return
  local begin=$SECONDS pid failed=0
  for pid in "${warming[@]}"; do wait "$pid" || failed=$((failed + 1)); done
  warming=()
  tail -qn 5 "$scratch"/warm-*.log >>"$OUT/bench.log"
  note warm 0 $((SECONDS - begin)) "waited for; $failed of its processes failed or were stopped"
}

# bench NAME SECONDS: the script ends by itself a little earlier, unless a case hangs.
bench() {
  echo "== benchmarks/cuda_$1.py"
  boxed "$2" "$PYTHON" "benchmarks/cuda_$1.py" "$OUT/$1.json" --device "$BENCH_DEVICE" --seconds $(($2 * 4 / 5))
}

sanitize() {
  local tool failed=0 pids=() tools=(memcheck racecheck initcheck synccheck)
  if ! command -v compute-sanitizer; then
    echo "compute-sanitizer is not in PATH"
    return 127
  fi
  for tool in "${tools[@]}"; do
    # Every tensor is an allocation of its own, so that an access behind its end is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout --signal=INT --kill-after=5 "$1" compute-sanitizer --tool "$tool" \
      --error-exitcode 9 --print-limit 20 "$PYTHON" -P scripts/sanitizer_cases.py >"$scratch/$tool.log" 2>&1 &
    pids+=($!)
  done
  for tool in "${tools[@]}"; do
    wait "${pids[0]}"
    local result=$?
    pids=("${pids[@]:1}")
    ((result)) && failed=$result
    echo "== $tool: exit status $result"
    head -n 150 "$scratch/$tool.log"
    echo "..."
    tail -n 15 "$scratch/$tool.log"
  done
  return "$failed"
}

for phase in "${phases[@]}"; do
  case $phase in
    native | triton | trainer) : >"$OUT/tests.log" ;;
    kernels | neurons | step | epochs | scaling | folder | peers) : >"$OUT/bench.log" ;;
  esac
done
: >"$summary"
note "phase" "rc" "took" "remark"
for phase in "${phases[@]}"; do
  [[ $phase == kernels || $phase == neurons || $phase == step || $phase == epochs || $phase == scaling || $phase == folder || $phase == peers ]] && finish_warm
  begin=$SECONDS
  seconds=${BOX[$phase]}
  remark=
  if ((seconds > $(left) - 10)); then
    seconds=$(($(left) - 10))
    remark="given $seconds of ${BOX[$phase]} s"
  fi
  if ((seconds < 15)); then
    record "$phase" - 0 "skipped: LIMIT of $LIMIT s"
    continue
  fi
  case $phase in
    build) build "$seconds" >"$OUT/build.log" 2>&1 ;;
    warm) warm "$seconds" ;;
    native) tests "$seconds" "not triton and not cpu" >>"$OUT/tests.log" 2>&1 ;;
    triton) tests "$seconds" "triton" >>"$OUT/tests.log" 2>&1 ;;
    trainer) trainer "$seconds" >>"$OUT/tests.log" 2>&1 ;;
    epochs | scaling | folder) "$phase" "$seconds" >>"$OUT/bench.log" 2>&1 ;;
    sanitize) sanitize "$seconds" >"$OUT/sanitize.log" 2>&1 ;;
    *) bench "$phase" "$seconds" >>"$OUT/bench.log" 2>&1 ;;
  esac
  result=$?
  case $phase in
    build) remark+=" $(sed -nE 's/^ *-- CUDA kernels: ([^(]*).*/\1/p' "$OUT/build.log" | tail -n 1)" ;;
    native | triton | trainer) remark+=" $(grep -E ' (passed|failed|error|no tests ran|deselected).* in ' "$OUT/tests.log" | tail -n 1)" ;;
    kernels | neurons | step | peers) remark+=" $(grep -c ' failed: ' "$OUT/bench.log") failures in bench.log so far" ;;
    sanitize) remark+=" $(grep -E '^==|SUMMARY' "$OUT/sanitize.log" | tr '\n' ' ')" ;;
  esac
  record "$phase" "$result" $((SECONDS - begin)) "$remark"
done
exit "$status"
