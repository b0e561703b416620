//! The `kron-bench` program.
fn main() {}
