# The same steps that .ci/run knows, by name: `just` lists them.

default:
    @just --list

# The suite.
test:
    cargo test --workspace

# Kron-LoRA against LoRA on this machine; options go through, `just bench --model mistral-7b --rows 256`.
bench *options:
    cargo run --release -p kron-bench -- {{options}}

# Format and clippy, warnings as errors.
lint:
    .ci/run format lint

# The documentation, warnings as errors.
doc:
    .ci/run docs

# Undefined behaviour in the portable kernels; needs nightly Rust with Miri.
miri:
    .ci/run miri

# Damaged files for every parser.
fuzz seconds="60":
    cargo run -p kron-tests --example fuzz -- {{seconds}}
    cargo run -p kron-train --example fuzz-train -- {{seconds}}

# A parser under libFuzzer, `adapter` or `cli`; needs nightly Rust and cargo-fuzz.
libfuzzer target="cli" seconds="60":
    cd tests && mkdir -p fuzz/corpus/{{target}} && cargo +nightly fuzz run {{target}} fuzz/corpus/{{target}} fuzz/seeds/{{target}} -- -max_total_time={{seconds}}

# Licences and advisories of the dependencies; needs cargo-deny.
deny:
    cargo deny check

# All that a change must pass.
ci:
    .ci/run
