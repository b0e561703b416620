#!/usr/bin/env bash
# Runs the bundle of scripts/gpu-bundle.sh on a machine with a GPU. Goes on
# after a step that fails; results/ has every log, the summary comes last.
# Exit code 0 when every step that could run passed.
# Wheels that lie beside this file (peft, lycoris_lora) are read, not installed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
mkdir -p results
results=()
failed=0

# step NAME SECONDS COMMAND…: runs it, keeps its log, remembers how it ended.
step() {
  local name=$1 seconds=$2 start=$SECONDS status=0
  shift 2
  echo "== $name"
  timeout -k 20 "$seconds" "$@" >"results/$name.log" 2>&1 || status=$?
  local verdict=passed
  case $status in
  0) verdict=$(grep -m 1 -o '\(skipped\|refused\): .*' "results/$name.log" || echo passed) ;;
  124 | 137) verdict="STOPPED after $seconds s" ;;
  *) verdict="FAILED, exit code $status: $(grep -v '^ *$' "results/$name.log" | tail -n 1)" ;;
  esac
  ((status == 0)) || { failed=1 && tail -n 5 "results/$name.log"; }
  results+=("$(printf '%-24s %5d s  %.120s' "$name" $((SECONDS - start)) "$verdict")")
}

# needs PROGRAM NAME: whether the program is there; else the step is listed as skipped.
needs() {
  command -v "$1" >/dev/null && return
  results+=("$(printf '%-24s          skipped: no %s' "$2" "$1")")
  return 1
}

for wheel in *.whl; do
  [[ -e $wheel ]] && python3 -m zipfile -e "$wheel" results/wheels
done
export PYTHONPATH=$PWD/results/wheels${PYTHONPATH:+:$PYTHONPATH}
# cuBLASLt of PyTorch's wheels, where the system has none.
python_libraries=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null)/nvidia/cu13/lib
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$python_libraries

needs nvidia-smi machine && step machine 60 nvidia-smi -q

# Correctness first: nothing is timed that may be wrong.
export KRON_WRITE_PRIMITIVES=$PWD/results/primitives.bin
step primitives 300 ./gpu --nocapture bits_of_this_gpu
unset KRON_WRITE_PRIMITIVES
step driver 60 ./gpu --nocapture --skip bits_of_this_gpu
step conformance 1800 ./device --nocapture --test-threads 1 gpu:: --skip gpu_few --skip gpu_repeats
step repeatability 600 ./device --nocapture --test-threads 1 gpu_repeats
if needs python3 c-library; then
  step c-library-host 300 python3 check.py ./libkron_capi.so host
  step c-library-device 300 python3 check.py ./libkron_capi.so 0
fi

if needs compute-sanitizer sanitizer; then
  for tool in memcheck racecheck initcheck synccheck; do
    step "$tool-primitives" 600 compute-sanitizer --tool "$tool" --error-exitcode 9 ./gpu bits_of_this_gpu
    step "$tool-few-cases" 900 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      ./device --nocapture --test-threads 1 gpu_few
  done
fi

step bench 1200 ./kron-bench --device cuda:0 --rows 1,16,64,1024,4096,8192 --dtype bf16 \
  --out results/bench --markdown results/bench.md

CRITERION_HOME=$PWD/results/criterion step criterion 600 ./gpu_engines --bench --noplot

needs python3 peers &&
  step peers 1200 python3 gpu_peers.py ./libkron_capi.so --rows 16,1024,4096,8192 --out results/peers.json

if needs ncu ncu; then
  step ncu 900 ncu --kernel-name 'regex:^kron_' --launch-count 40 --csv --print-units base \
    --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum \
    ./kron-bench --device cuda:0 --rows 4096 --dtype bf16 --layers q --engines kron-fused --out results/ncu
  ./plan 4096 >results/plan.txt
  if needs python3 ncu-bytes; then
    step ncu-bytes 60 python3 gpu_bytes.py results/ncu.log results/plan.txt
    while IFS= read -r line; do results+=("  $line"); done <results/ncu-bytes.log
  fi
fi

printf '%s\n' '' "${results[@]}" | tee results/summary.txt
exit "$failed"
