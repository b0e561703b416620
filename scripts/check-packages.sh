#!/usr/bin/env bash
# Packages every published crate as `packed=${CARGO_TARGET_DIR:-target}/package
rm -f "$packed"/*.crate
cargo publish --dry-run --workspace --allow-dirty --locked

rm -rf "$outside/packages" "$outside/src" "$outside/Cargo.lock"
mkdir -p "$outside/packages" "$outside/src"
patches=
for crate in "$packed"/*.crate; do
  tar -xzf "$crate" -C "$outside/packages"
  package=$(basename "$crate" .crate)
  patches+="${package%-*} = { path = \"packages/$package\" }"$'\n'
done

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
# The first Rust block of the README, which is a whole program.
sed -n '/^```rust$/,/^```$/p' README.md | sed -n '2,/^```$/p' | sed '$d' > "$outside/src/main.rs"
grep -q '^fn main' "$outside/src/main.rs" || { echo "$0: the README's first Rust block has no main" >&2; exit 1; }
CARGO_TARGET_DIR="$outside/target" cargo run --quiet --manifest-path "$outside/Cargo.toml"
echo "the README's example ran outside the workspace"
