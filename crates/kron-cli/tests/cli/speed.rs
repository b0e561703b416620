//! Commands that a reader waits for answer at once.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::folder::golden;
use crate::toy::run;

/// The release build is held to 100 ms; an unoptimised one on a busy machine to more.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 100 });

/// The best of some runs: a busy machine makes any one of them slow.
#[test]
fn plan_and_inspect_answer_at_once() {
    let path = |name: &str| golden().join("model_llama").join(name);
    let word = PathBuf::from;
    for call in [
        vec![word("plan"), word("mistral-7b")],
        vec![word("plan"), word("llama-3-8b"), word("--budget"), word("5.7M")],
        vec![word("plan"), word("--paper")],
        vec![word("plan"), word("--config"), path("config.json")],
        vec![word("inspect"), path("lokr")],
        vec![word("inspect"), path("lokr_mix")],
        vec![word("inspect"), path("lora")],
    ] {
        let times = (0..5).map(|_| {
            let begun = Instant::now();
            let (code, _, err) = run(&call);
            assert_eq!(code, 0, "{err}");
            begun.elapsed()
        });
        let best = times.min().unwrap();
        assert!(best < LIMIT, "{call:?} takes {best:?}");
    }
}
