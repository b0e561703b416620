#!/usr/bin/env bash
# The conformance suite with the emulated kernels under a sanitizer.
#
#   scripts/emulate-sanitized.sh asan      AddressSanitizer and UBSan
#   scripts/emulate-sanitized.sh tsan      ThreadSanitizer, fibers as threads
#
# Only the kernels are instrumented, so stable Rust does. g++ alone: clang's
# ThreadSanitizer does not see races between fibers of one thread.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
asan)
  export RUSTFLAGS="-Clink-arg=-Wl,--push-state,--whole-archive,-l:libasan.a,--pop-state -Clink-arg=-lubsan -Clink-arg=-ldl -Clink-arg=-lm"
  export ASAN_OPTIONS=detect_leaks=0
  ;;
tsan)
  suppressions=$(mktemp)
  trap 'rm -f "$suppressions"' EXIT
  echo 'race:^_R' > "$suppressions" # Rust's own code is not instrumented
  export RUSTFLAGS="-Clink-arg=-ltsan"
  export TSAN_OPTIONS="suppressions=$suppressions halt_on_error=1"
  ;;
*)
  echo "usage: $0 asan|tsan" >&2
  exit 2
  ;;
esac
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/$1"
cargo test -p kron-kernels --features "$1" --target "$(rustc -vV | sed -n 's/^host: //p')" \
  --test conformance -- fifo_with_lazy_copies --test-threads 1
