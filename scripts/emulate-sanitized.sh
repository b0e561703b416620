#!/usr/bin/env bash
# The conformance suite with the emulated kernels under a sanitizer.
#
#   scripts/emulate-sanitized.sh asan      AddressSanitizer and UBSan
#   scripts/emulate-sanitized.sh tsan      ThreadSanitizer, fibers as threads
#
# Only the kernels are instrumented, so stable Rust does, and what else cargo
# has built is used again. g++ alone: clang's ThreadSanitizer does not see
# races between fibers of one thread.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
asan)
  export ASAN_OPTIONS=detect_leaks=0
  ;;
tsan)
  suppressions=$(mktemp)
  trap 'rm -f "$suppressions"' EXIT
  echo 'race:^_R' > "$suppressions" # Rust's own code is not instrumented
  export TSAN_OPTIONS="suppressions=$suppressions halt_on_error=1"
  ;;
*)
  echo "usage: $0 asan|tsan" >&2
  exit 2
  ;;
esac
CXX=${CXX:-g++} cargo test --locked -p kron-kernels --features "$1" --test conformance -- fifo --test-threads 1
