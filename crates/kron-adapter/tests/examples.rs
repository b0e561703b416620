//! The example runs on its own data and on a folder of PEFT's.

use std::path::Path;

#[path = "../examples/01_convert.rs"]
#[expect(dead_code, reason = "main reads the command line, which is the test's here")]
mod example;

#[test]
fn the_conversion_checks_its_round_trip() {
    example::convert(None).expect("a small adapter");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/model_llama/lokr_mix");
    example::convert(Some(golden)).expect("a folder that PEFT wrote");
}
