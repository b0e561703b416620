#!/usr/bin/env bash
# Runs the bundle of scripts/gpu-bundle.sh on a machine with a GPU. Goes on
# after a step that fails; results/ has every log, the summary comes last.
# Exit code 0 when every step that could run passed.
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
  timeout "$seconds" "$@" >"results/$name.log" 2>&1 || status=$?
  local verdict=passed
  case $status in
  0) grep -q '^skipped:' "results/$name.log" && verdict='SKIPPED in part, see its log' ;;
  124) verdict="STOPPED after $seconds s" ;;
  *) verdict="FAILED, exit code $status" ;;
  esac
  ((status == 0)) || { failed=1 && tail -n 5 "results/$name.log"; }
  results+=("$(printf '%-24s %-32s %5d s' "$name" "$verdict" $((SECONDS - start)))")
}

# needs PROGRAM NAME: whether the program is there; else the step is listed as skipped.
needs() {
  command -v "$1" >/dev/null && return
  results+=("$(printf '%-24s SKIPPED, no %s' "$2" "$1")")
  return 1
}

needs nvidia-smi machine && step machine 60 nvidia-smi -q

# Correctness first: nothing is timed that may be wrong.
export KRON_WRITE_PRIMITIVES=$PWD/results/primitives.bin
step primitives 300 ./primitives --nocapture
unset KRON_WRITE_PRIMITIVES
step driver 60 ./gpu --nocapture
step conformance 1800 ./device --nocapture --test-threads 1 gpu::
needs python3 c-library && step c-library 300 python3 check.py ./libkron_capi.so host

if needs compute-sanitizer sanitizer; then
  for tool in memcheck racecheck initcheck synccheck; do
    step "$tool-primitives" 600 compute-sanitizer --tool "$tool" --error-exitcode 9 ./primitives bits_of_this_gpu
    step "$tool-merge" 900 compute-sanitizer --tool "$tool" --error-exitcode 9 ./device gpu_merge
  done
fi

step bench 1200 ./kron-bench --device cuda:0 --rows 1,16,64,1024,4096,8192 --dtype bf16 \
  --out results/bench --markdown results/bench.md

if needs python3 peers; then
  if python3 -c 'import torch' 2>/dev/null; then
    step peers 1200 python3 gpu_peers.py ./libkron_capi.so --rows 16,1024,4096,8192 --out results/peers.json
  else
    results+=("$(printf '%-24s SKIPPED, python3 has no torch' peers)")
  fi
fi

if needs ncu ncu; then
  step ncu 900 ncu --kernel-name 'regex:^kron_' --launch-count 40 --csv \
    --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum \
    ./kron-bench --device cuda:0 --rows 4096 --dtype bf16 --layers q --engines kron-fused --out results/ncu
fi

printf '%s\n' '' "${results[@]}" | tee results/summary.txt
exit "$failed"
