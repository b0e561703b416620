#!/usr/bin/env bash
# Runs the programs for a machine with a GPU on the fake driver (kernels/fake-driver): the tests of the
# driver's side, and the whole bundle by its own script.
#
#   scripts/gpu-rehearse.sh      # builds into target/gpu-rehearsal; needs nvcc (docs/BUILD.md)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bundle=${CARGO_TARGET_DIR:-target}/gpu-rehearsal
scripts/gpu-bundle.sh --rehearsal "$bundle"
bundle=$(cd "$bundle" && pwd)
# One library under two names: whoever opens both has one driver.
mkdir "$bundle/fake"
for name in libcuda.so.1 libcublasLt.so; do
  ln -s ../libkron_fake_driver.so "$bundle/fake/$name"
done
export LD_LIBRARY_PATH=$bundle/fake

complain() {
  echo "gpu-rehearse.sh: $1" >&2
  exit 1
}

# On the fake driver no test of the driver's side may report itself as skipped.
for tests in fake_driver gpu; do
  "$bundle/$tests" --nocapture >"$bundle/$tests.log" 2>&1 || { cat "$bundle/$tests.log" && exit 1; }
  ! grep 'skipped:' "$bundle/$tests.log" || complain "$tests did not run on the fake driver"
  grep 'test result' "$bundle/$tests.log"
done

# Every case of the device suite in every dtype, in processes of their own: the driver runs one kernel at a time.
suite() {
  "$bundle/device" --nocapture "gpu_$1" >"$bundle/device-$1.log" 2>&1 || { cat "$bundle/device-$1.log" && return 1; }
  ! grep 'skipped:' "$bundle/device-$1.log" && grep '^test result: ok. 1 passed' "$bundle/device-$1.log"
}
export -f suite
export bundle
xargs -n 1 -P "$(nproc)" bash -c 'suite "$1" || exit 255' -- <<<"
  agrees_with_the_oracle_in_bf16 agrees_with_the_oracle_in_f16 agrees_with_the_oracle_in_f32
  merge_agrees_with_the_oracle changes_nothing_over_zero_rows" || complain "the device suite failed"

"$bundle/run.sh" --rehearse --out "$bundle/results" || complain "a step failed"
for step in primitives driver c-library conformance bench-q bench-others repeatability; do
  grep -q "^$step .* passed$" "$bundle/results/summary.txt" || complain "$step did not pass"
done
for step in machine ncu memcheck peers; do
  grep -q "^$step .*\(passed\|\(skipped\|refused\): .*\)$" "$bundle/results/summary.txt" || complain "$step is not listed"
done
(($(find "$bundle/results" -type f | wc -l) <= 8)) || complain "more than 8 files"
[[ -z $(find "$bundle/results" -type f -size +16M) ]] || complain "a file of more than 16 MiB"
packed=$(tar -tzf "$bundle/results/results.tar.gz")
[[ $packed == *bench-q-bench.json* && $packed == *conformance.log* ]] || complain "the archive lacks a report"

# begun DIR: starts a second run and waits until its second step is over.
begun() {
  setsid "$bundle/run.sh" --rehearse --out "$1" >/dev/null 2>&1 &
  run=$!
  until grep -qs '^driver .* passed$' "$1/summary.txt"; do
    kill -0 "$run" || complain "the second run ended before its second step"
    sleep 0.1
  done
}

# A run that is killed keeps what came before.
begun "$bundle/killed"
pkill -KILL -s "$run" 2>/dev/null || kill -KILL -- "-$run" # with all that it started
wait "$run" 2>/dev/null || true
[[ $(tar -tzf "$bundle/killed/results.tar.gz") == *driver.log* ]] || complain "a killed run lost a step"

# One that is asked to end takes its step with it.
begun "$bundle/ended"
kill "$run"
wait "$run" 2>/dev/null || true
! pgrep -s "$run" -r D,R,S,T || complain "a run that was asked to end left its step running"
