//! Every case × dtype × instruction set against the float64 oracle, with the
//! tolerances of `kron_tests::compare`.

use half::{bf16, f16};
use kron_tests::{backends, cases, suite};

#[test]
fn f32_agrees_with_the_oracle() {
    suite::agrees_with_the_oracle::<f32>(&backends(), &cases::all());
}

#[test]
fn f16_agrees_with_the_oracle() {
    suite::agrees_with_the_oracle::<f16>(&backends(), &cases::all());
}

#[test]
fn bf16_agrees_with_the_oracle() {
    suite::agrees_with_the_oracle::<bf16>(&backends(), &cases::all());
}

#[test]
fn zero_rows_change_nothing() {
    backends().iter().for_each(suite::zero_rows_change_nothing);
}
