#!/usr/bin/env bash
# The conformance suite with the emulated kernels under a sanitizer.
#
#   scripts/emulate-sanitized.sh asan      AddressSanitizer and UBSan
#   scripts/emulate-sanitized.sh tsan      ThreadSanitizer, fibers as threads
#
# Only the kernels are instrumented, so stable Rust suffices and cargo reuses its
# other builds. Needs g++: clang's ThreadSanitizer does not see races between
# fibers of one thread.
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
export CXX=${CXX:-g++}
test=(cargo test --locked -p kron-kernels --features "$1")
"${test[@]}" --test conformance --test segments --test group -- fifo --test-threads 1

# The sanitizer works: it stops a kernel that reads past the end, or whose blocks race.
output=$("${test[@]}" --test emulator -- the_sanitizer_stops_this --nocapture 2>&1) || true
if ! grep -qE "(heap-buffer-overflow|data race)" <<< "$output"; then
  echo "$output" >&2
  echo "$1 did not detect the injected fault" >&2
  exit 1
fi
