#!/usr/bin/env bash
# Clippy over every line of Rust that the feature `cuda` turns on, of all crates at
# once, without nvcc: no kernel is compiled.
#
# candle's kernels take nvcc minutes, and ours are checked by cuda-gates.sh. So
# a stand-in for nvcc writes empty outputs, into a target folder of its own:
# a real build must never find them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

nvcc=$(mktemp)
trap 'rm -f "$nvcc"' EXIT
cat > "$nvcc" <<'SCRIPT'
#!/usr/bin/env bash
while (($#)); do
  case $1 in
    -o) output=$2; shift ;;
    --output-directory) folder=$2; shift ;;
    *.cu) source=$1 ;;
  esac
  shift
done
[[ -z ${folder-} ]] || output=$folder/$(basename "$source" .cu).ptx
[[ -z ${output-} ]] || : > "$output"
SCRIPT
chmod +x "$nvcc"

# DOCS_RS leaves our own kernels out, as on docs.rs.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/cuda-clippy
features=kron-bench/nvtx,kron-train/nccl,
for crate in kernels capi candle train bench tests; do
  features+=kron-$crate/cuda,
done
export NVCC=$nvcc DOCS_RS=1 CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=13000
cargo clippy --locked --manifest-path crates/kron-py/Cargo.toml --all-targets --no-default-features --features cuda -- -D warnings
cargo clippy --locked -p kron-kernels -p kron-capi -p kron-candle -p kron-train \
  -p kron-bench -p kron-tests -p kron-fake-driver --lib --bins --examples --test gpu --test fake_driver --test primitives --test device \
  --test gradients --test finetune --bench gpu_engines \
  --features "${features%,}" -- -D warnings
