//! The `kron` program.
fn main() {}
