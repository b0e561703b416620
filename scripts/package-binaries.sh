#!/usr/bin/env bash
# Packs the release build of kron and kron-train, with man pages, completions, README and licences.
#   scripts/package-binaries.sh v0.1.0 x86_64-unknown-linux-gnu dist
# Reads target/TARGET/release, where `cargo build --release --target TARGET` leaves the programs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
(($# == 3)) || { echo "usage: $0 VERSION TARGET FOLDER" >&2; exit 2; }
version=$1 target=$2 out=$3

built=${CARGO_TARGET_DIR:-target}/$target/release
name=kron-lora-$version-$target
folder=$out/$name
mkdir -p "$folder/man" "$folder/completions"
for program in kron kron-train; do
  binary=$built/$program
  [[ ! -e $binary.exe ]] || binary=$binary.exe
  cp "$binary" "$folder/"
  "$binary" man "$folder/man"
  for shell in bash zsh fish powershell; do
    "$binary" completions "$shell" > "$folder/completions/$program.$shell"
  done
done
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$folder/"
tar -C "$out" -czf "$out/$name.tar.gz" "$name"
rm -r "$folder"
