//! Runs the examples, whose assertions then are tests.

#[path = "../examples/03_dropout.rs"]
mod dropout;
#[path = "../examples/01_forward_backward.rs"]
mod forward_backward;
#[path = "../examples/02_merge.rs"]
mod merge;

#[test]
fn forward_and_backward() {
    forward_backward::main().expect("the example runs");
}

#[test]
fn merge() {
    merge::main().expect("the example runs");
}

#[test]
fn dropout() {
    dropout::main().expect("the example runs");
}
