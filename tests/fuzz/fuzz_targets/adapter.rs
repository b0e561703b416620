//! Any bytes as an adapter file: an error or an adapter, never a panic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    kron_tests::adapters::read_any(bytes);
});
