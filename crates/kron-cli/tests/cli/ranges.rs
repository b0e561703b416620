//! Numbers on the command line and in configurations: in their range, or refused with it.

use serde_json::json;

use crate::adapters::peft;
use crate::models::run;

/// Every integer of every command: a number out of its range is refused with the range, and none in it overflows.
#[test]
fn integers_have_ranges() {
    let own = peft("lora");
    let own = own.to_str().unwrap();
    let fit = ["convert", own, "/no/such/folder/out", "--fit", "--a-out", "2", "--a-in", "2", "--rank", "8"];
    let mut trials = 0;
    for (call, option) in [
        (vec!["plan", "mistral-7b"], "--rank"),
        (vec!["plan", "mistral-7b", "--a-in", "2"], "--a-out"),
        (vec!["plan", "mistral-7b", "--a-out", "2"], "--a-in"),
        (vec!["plan", "mistral-7b", "--budget", "5M"], "--top"),
        (vec!["plan", "mistral-7b"], "--budget"),
        (vec!["quantise", own, "--bits", "4"], "--block"),
        (vec!["verify", "/no/such/folder"], "--threads"),
        (vec!["convert", own, "/no/such/folder/out", "--to", "lora"], "--max-size"),
        (fit[..4].iter().chain(&fit[6..]).copied().collect(), "--a-out"),
        (fit[..6].iter().chain(&fit[8..]).copied().collect(), "--a-in"),
        (fit[..8].to_vec(), "--rank"),
    ] {
        for number in ["0", "-1", "1.5", "", "18446744073709551616", "99999999999999999999999"] {
            let argument = format!("{option}={number}");
            let (code, out, err) = run(call.iter().copied().chain([&argument[..]]));
            assert_eq!((code, out.as_str()), (2, ""), "{argument}: {err}");
            assert!(err.contains(option) && !err.contains("panicked"), "{argument}: {err}");
            trials += 1;
        }
        for number in
            ["1", "65537", "2147483648", "4294967295", "9223372036854775808", "18446744073709551615"]
        {
            let argument = format!("{option}={number}");
            let (code, _, err) = run(call.iter().copied().chain([&argument[..]]));
            assert!((0..=2).contains(&code) && !err.contains("panicked"), "{argument}: {code} {err}");
            assert_eq!(err.is_empty(), code == 0, "{argument}: {err}");
            trials += 1;
        }
    }
    assert_eq!(trials, 11 * 12);
}

/// A configuration's sizes: each is planned or refused, and none overflows.
#[test]
fn sizes_of_a_configuration_are_planned_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let fields = [
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "num_hidden_layers",
        "vocab_size",
    ];
    let numbers = [
        json!(0),
        json!(-1),
        json!(1),
        json!(65_537),
        json!(1u64 << 28),
        json!(1u64 << 31),
        json!(u32::MAX),
        json!(1u64 << 63),
        json!(u64::MAX),
        json!(1.5),
        json!(1e300),
        json!("8"),
        json!(null),
    ];
    let (mut planned, mut refused) = (0, 0);
    for field in fields {
        for number in &numbers {
            let mut config = json!({ "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 3,
                "vocab_size": 100, "tie_word_embeddings": false });
            config[field] = number.clone();
            std::fs::write(&path, config.to_string()).unwrap();
            let (code, _, err) = run(["plan", "--config", path.to_str().unwrap()]);
            assert!((0..=2).contains(&code) && !err.contains("panicked"), "{field} {number}: {code} {err}");
            assert_eq!(err.is_empty(), code == 0, "{field} {number}: {err}");
            if code == 0 { planned += 1 } else { refused += 1 }
        }
    }
    assert!(planned > 10 && refused > 40, "{planned} planned, {refused} refused");
}
