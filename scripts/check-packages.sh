#!/usr/bin/env bash
# Packages every published crate as crates.io would get it, then builds and runs the README's first
# Rust example in a crate outside the workspace that depends on the packages.
#   scripts/check-packages.sh FOLDER      # FOLDER takes the crate outside, and its target folder
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
(($# == 1)) || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
outside=$(cd "$1" && pwd)/outside
packed=${CARGO_TARGET_DIR:-target}/package

rm -rf "$packed" "$outside/packages" "$outside/src" "$outside/Cargo.lock"
# Cargo unpacks the packages to verify them against each other, and does not unpack a version again
# that an earlier run from the same folder left: that run's sources would be compiled.
rm -rf "${CARGO_HOME:-$HOME/.cargo}"/registry/src/-*/kron-*
cargo publish --dry-run --workspace --allow-dirty --locked 2>&1 | tee "$outside.log"
# What a user builds has other features than the workspace's tests, and so warnings of its own.
if grep 'generated [0-9]* warning' "$outside.log"; then
  echo "$0: a package does not compile without warnings" >&2
  exit 1
fi
# The same packages once more, where they are documented to lie.
cargo package --quiet --workspace --exclude kron-bench --exclude kron-tests --exclude kron-fake-driver --allow-dirty --locked --no-verify

mkdir -p "$outside/packages" "$outside/src"
patches=
for crate in "$packed"/*.crate; do
  tar -xzf "$crate" -C "$outside/packages"
  package=$(basename "$crate" .crate)
  patches+="${package%-*} = { path = \"packages/$package\" }"$'\n'
done
[[ -n $patches ]] || { echo "$0: nothing was packaged in $packed" >&2; exit 1; }

version() { sed -n "s/^$1 = .*version = \"\([^\"]*\)\".*/\1/p" Cargo.toml; }
cat > "$outside/Cargo.toml" <<MANIFEST
[package]
name = "outside"
version = "0.0.0"
edition = "2024"

[dependencies]
kron-lora = "*"
kron-candle = "*"
candle-core = { version = "$(version candle-core)", default-features = false }
candle-nn = { version = "$(version candle-nn)", default-features = false }

[patch.crates-io]
$patches
[workspace]
exclude = ["packages"]
MANIFEST
# A whole program: the README's first Rust block.
sed -n '/^```rust$/,/^```$/p' README.md | sed -n '2,/^```$/p' | sed '$d' > "$outside/src/main.rs"
grep -q '^fn main' "$outside/src/main.rs" || { echo "$0: the README's first Rust block has no main" >&2; exit 1; }
CARGO_TARGET_DIR="$outside/target" cargo run --quiet --manifest-path "$outside/Cargo.toml"
echo "the README's example ran outside the workspace"
