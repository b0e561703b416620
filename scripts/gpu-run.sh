#!/usr/bin/env bash
# Runs the bundle of scripts/gpu-bundle.sh on a machine with a GPU, within ten minutes.
#
#   run.sh [--out DIR] [--rehearse]
#
# The steps come in the order of their worth, each with a limit of its own, and none begins
# when the ten minutes are over. After every step DIR (default: results) holds all that is
# known so far, in at most 8 files of at most 16 MB, so that a run that is killed loses one
# step: summary.txt, results.tar.gz with every log, primitives.bin, and the reports of
# kron-bench and gpu_peers.py. Exit code 0 if every step that could run passed.
#
# --rehearse takes the least sizes, for a driver that emulates the device: it shows that
# everything runs. Wheels that lie beside this file (peft, lycoris_lora) are read, not installed.
set -uo pipefail
out=results rehearse=
while (($#)); do
  case $1 in
  --out) out=${2:?--out needs a folder} && shift ;;
  --rehearse) rehearse=1 ;;
  *) echo "usage: $0 [--out DIR] [--rehearse]" >&2 && exit 2 ;;
  esac
  shift
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit
[[ -z $(ls -A "$out") ]] || { echo "$0: $out has files, but --out takes an empty folder" >&2 && exit 2; }
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
work=$(mktemp -d) || exit
running=
trap 'rm -rf "$work"' EXIT
# Whoever stops this script stops its step with it.
trap '[[ -z $running ]] || { kill "$running" && wait "$running"; } 2>/dev/null; exit 130' INT TERM HUP

total=590             # seconds for everything
file_mb=16            # most of a file in DIR
log_bytes=$((1 << 20)) # most of a log in the archive: its end
results=()
failed=0

# Writes DIR anew; each file takes the place of the one before in one step.
pack() {
  printf '%s\n' "${results[@]}" >"$work/summary.txt"
  local file packed=$work/packed
  rm -rf "$packed" && mkdir "$packed"
  for file in "$work"/*.log "$work"/*.txt; do
    [[ -e $file ]] && tail -c "$log_bytes" "$file" >"$packed/${file##*/}"
  done
  for file in "$work"/*/bench.{json,csv} "$work"/*.json; do
    [[ -e $file && $file != "$packed"/* ]] && cp "$file" "$packed/$(tr / - <<<"${file#"$work"/}")"
  done
  tar -C "$work" -czf "$work/results.tar.gz" packed
  # The summary last: what it lists is there.
  for file in "$packed"/*.json "$work"/{primitives.bin,results.tar.gz,summary.txt}; do
    [[ -e $file ]] || continue
    if (($(stat -c %s "$file") > file_mb * 1000000)); then
      echo "$(basename "$file") is over $file_mb MB and was left out" >>"$work/summary.txt"
      continue
    fi
    cp "$file" "$out/.new" && mv "$out/.new" "$out/$(basename "$file")"
  done
}

# step NAME SECONDS COMMAND…: runs it, keeps its log, remembers how it ended, packs.
step() {
  local name=$1 limit=$2 start=$SECONDS status=0 verdict=passed
  shift 2
  ((limit > total - start)) && limit=$((total - start))
  if ((limit < 3)); then
    results+=("$(printf '%-24s          NOT RUN: %d s are over' "$name" "$total")")
    failed=1
    pack
    return
  fi
  echo "== $name"
  timeout -k 5 "$limit" "$@" >"$work/$name.log" 2>&1 &
  running=$!
  wait "$running" || status=$?
  running=
  case $status in
  0) verdict=$(grep -m 1 -o '\(skipped\|refused\): .*' "$work/$name.log" || echo passed) ;;
  124 | 137) verdict="STOPPED after $((SECONDS - start)) of $limit s" ;;
  *) verdict="FAILED, exit code $status: $(grep -v '^ *$' "$work/$name.log" | tail -n 1)" ;;
  esac
  ((status == 0)) || { failed=1 && tail -n 5 "$work/$name.log"; }
  results+=("$(printf '%-24s %5d s  %.160s' "$name" $((SECONDS - start)) "$verdict")")
  pack
}

# needs PROGRAM NAME: whether the program is there; else the step is listed as skipped.
needs() {
  command -v "$1" >/dev/null && return
  results+=("$(printf '%-24s          skipped: no %s' "$2" "$1")")
  return 1
}

for wheel in *.whl; do
  [[ -e $wheel ]] && python3 -m zipfile -e "$wheel" "$work/wheels"
done
export PYTHONPATH=$work/wheels${PYTHONPATH:+:$PYTHONPATH}
# cuBLASLt of PyTorch's wheels, where the system has none.
python_libraries=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))' 2>/dev/null)/nvidia/cu13/lib
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$python_libraries

model=(--model mistral-7b) first=4096,16384,1,16,256,1024 others=kv,gate_up,down rows=4096 peers=(--rows 4096,16)
if [[ -n $rehearse ]]; then
  export KRON_REHEARSAL=1
  model=(--smoke --model distilbert) first=17,1 others=q rows=96
  peers=(--device cpu --rows 16 --width 256 --rounds 1)
fi
bench() { echo ./kron-bench --device cuda:0 "${model[@]}" --dtype bf16 "$@"; }

needs nvidia-smi machine && step machine 10 nvidia-smi -q

# Correctness first: nothing is timed that may be wrong.
KRON_WRITE_PRIMITIVES=$work/primitives.bin step primitives 20 ./gpu --nocapture bits_of_this_gpu
step driver 30 ./gpu --nocapture --skip bits_of_this_gpu
needs python3 c-library && step c-library 10 python3 check.py ./libkron_capi.so 0
step conformance 120 ./device --nocapture gpu:: --skip gpu_few --skip gpu_repeats

# The layer that most others resemble, from the row counts that matter most on.
read -ra command < <(bench --layers q --rows "$first" --out "$work/bench-q")
step bench-q 100 "${command[@]}"

if needs ncu ncu; then
  read -ra command < <(bench --layers q --rows "$rows" --engines kron-fused --out "$work/ncu")
  # Instruction counters, and clocks as they are in the timed runs.
  step ncu 40 ncu --clock-control none --kernel-name 'regex:^kron_' --launch-count 24 --csv --print-units base \
    --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,sm__inst_executed.sum,smsp__issue_active.sum,sm__cycles_active.sum \
    "${command[@]}"
  ./plan "$rows" >"$work/plan.txt"
  needs python3 ncu-bytes && step ncu-bytes 5 python3 gpu_bytes.py "$work/ncu.log" "$work/plan.txt"
fi

read -ra command < <(bench --layers "$others" --rows "$rows" --out "$work/bench-others")
step bench-others 80 "${command[@]}"
step repeatability 40 ./device --nocapture gpu_repeats
needs compute-sanitizer memcheck &&
  step memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 9 ./device --nocapture gpu_few
needs python3 peers &&
  step peers 80 python3 gpu_peers.py ./libkron_capi.so "${peers[@]}" --out "$work/peers.json"

pack
cat "$out/summary.txt"
exit "$failed"
