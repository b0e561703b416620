//! A tokenizer that multiplies its text is refused; all others encode as the library does.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::data;
use kron_train::Result;
use kron_train::data::{Dataset, Examples, MAX_TEXT, Tokenizer};
use serde_json::{Value, json};

fn fixture() -> Value {
    let path = data("models/bert/tokenizer.json");
    serde_json::from_slice(&std::fs::read(path).expect("a fixture")).expect("JSON")
}

/// Encodes a text by the fixture with one part replaced.
fn encode(pointer: &str, part: Value, text: &str) -> Result<Vec<u32>> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut whole = fixture();
    match whole.pointer_mut(pointer) {
        Some(place) => *place = part,
        None => panic!("the fixture has no {pointer}"),
    }
    write(folder.path(), &whole)?.encode(text, 64)
}

fn write(folder: &Path, whole: &Value) -> Result<Tokenizer> {
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, whole.to_string()).expect("written");
    Tokenizer::read(&path)
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({ "type": "Sequence", "normalizers": steps })
}

fn replace(pattern: Value, content: &str) -> Value {
    json!({ "type": "Replace", "pattern": pattern, "content": content })
}

/// Encodes bytes in base64, for a map of one long replacement.
fn charsmap(replacement: usize) -> String {
    let bytes = [&0u32.to_le_bytes()[..], &vec![b'a'; replacement], &[0]].concat();
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |three: &[u8]| {
        let word = three.iter().chain([&0; 2]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let digit = |i: usize| match i <= three.len() {
            true => char::from(digits[(word >> (18 - 6 * i) & 63) as usize]),
            false => '=',
        };
        [0, 1, 2, 3].map(digit)
    };
    bytes.chunks(3).flat_map(group).collect()
}

#[test]
fn a_tokenizer_that_multiplies_its_text_is_refused() {
    let double = || replace(json!({ "String": "a" }), "aa");
    let long = "x".repeat(1 << 20);
    let nested = (0..30).fold(double(), |inner, _| sequence(vec![inner, double()]));
    let text_part = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let template = |single: Vec<Value>| json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {} });
    let special = |n: usize| json!({ "id": "s", "ids": vec![0; n], "tokens": vec!["s"; n] });
    let tokens: Vec<Value> = (0..9).map(|_| json!({ "SpecialToken": { "id": "s", "type_id": 0 } })).collect();
    let cases = [
        ("/normalizer", sequence(vec![double(); 30]), "but at most 1.7e7 may become of it"),
        ("/normalizer", nested, "but at most 1.7e7 may become of it"),
        (
            "/normalizer",
            sequence(vec![replace(json!({ "Regex": "(?=.)" }), "aaaa"); 20]),
            "but at most 1.7e7 may become of it",
        ),
        ("/normalizer", replace(json!({ "String": "" }), &long), "but at most 1.7e7 may become of it"),
        ("/normalizer", replace(json!({ "String": "a" }), &long), "but at most 1.7e7 may become of it"),
        ("/normalizer", json!({ "type": "Prepend", "prepend": long }), "but at most 1.7e7 may become of it"),
        ("/normalizer", sequence(vec![json!({ "type": "NFC" }); 1000]), "a normalizer of 1000 steps"),
        (
            "/normalizer",
            json!({ "type": "Precompiled", "precompiled_charsmap": charsmap(1 << 20) }),
            "but at most 1.7e7 may become of it",
        ),
        ("/normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "////////" }), "not a map"),
        ("/normalizer", json!({ "type": "Double" }), "a normalizer of the type \"Double\""),
        (
            "/pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": vec![json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true }); 30] }),
            "but at most 1.7e7 may become of it",
        ),
        ("/pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "length = 0"),
        (
            "/pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": vec![json!({ "type": "Whitespace" }); 100] }),
            "of 100 steps",
        ),
        ("/post_processor", template(vec![text_part.clone(), text_part.clone()]), "repeats a text"),
        (
            "/post_processor",
            template([tokens, vec![text_part]].concat()),
            "with \"s\", which is not one of its special_tokens",
        ),
        ("/model/unk_token", json!(long), "a model.unk_token of 1048576 bytes"),
        ("/model/continuing_subword_prefix", json!(long), "continuing_subword_prefix of 1048576 bytes"),
        (
            "/model/max_input_chars_per_word",
            json!(u64::MAX),
            "max_input_chars_per_word = 18446744073709551615",
        ),
    ];
    let text = "a".repeat(1000);
    for (pointer, part, want) in cases {
        let begin = Instant::now();
        let message = encode(pointer, part, &text).expect_err(want).to_string();
        assert!(message.contains(want) && message.lines().count() == 1, "{message}\nwithout\n{want}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{want}: {:?}", begin.elapsed());
    }
    // Eight doublings are refused for a long text alone.
    let doublings = sequence(vec![double(); 8]);
    encode("/normalizer", doublings.clone(), &text).expect("256 times a short text");
    let message = encode("/normalizer", doublings, &text.repeat(100)).expect_err("long").to_string();
    assert!(message.contains("may make 2.6e7 bytes of a text of 100000, but at most 1.7e7"), "{message}");
    let many = json!({
        "type": "TemplateProcessing", "pair": [], "special_tokens": { "s": special(1000) },
        "single": [{ "SpecialToken": { "id": "s", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
    });
    let message = encode("/post_processor", many, &text).expect_err("many").to_string();
    assert!(message.contains("adds 1000 special tokens"), "{message}");
    // An added token is normalized when the file is read.
    let mut whole = fixture();
    whole["normalizer"] = sequence(vec![double(); 20]);
    whole["added_tokens"][1]["normalized"] = json!(true);
    let folder = tempfile::tempdir().expect("a folder");
    let message = write(folder.path(), &whole).expect_err("many").to_string();
    assert!(message.contains("but at most 1.7e7 may become of it"), "{message}");
}

/// The library panics on some files that contradict themselves.
#[test]
fn a_tokenizer_that_contradicts_itself_is_refused_without_a_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let bpe = |merges: Value, prefix: Value| json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2 }, "merges": merges, "continuing_subword_prefix": prefix });
    for (model, want) in [
        (bpe(json!([["a", "b"]]), json!(null)), "the tokenizer contradicts itself"),
        (bpe(json!([]), json!("##")), "has a continuing_subword_prefix"),
    ] {
        let whole = json!({ "version": "1.0", "model": model });
        let message = write(folder.path(), &whole).expect_err(want).to_string();
        assert!(message.contains(want), "{message}");
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_kron-train"));
        program.args(["train", "--out", "none", "--tokenizer"]).arg(folder.path().join("tokenizer.json"));
        program.arg("--model").arg(data("stories260K.bin")).arg("--train").arg(data("snips.train.jsonl"));
        let ended = program.env("RUST_BACKTRACE", "1").output().expect("it starts");
        let message = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!((ended.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    }
}

#[test]
fn usual_tokenizers_encode_as_the_library_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let quote = || json!({ "String": "``" });
    let normalizers = [
        json!(null),
        fixture()["normalizer"].clone(),
        // Those of LLaMA 2, T5 and XLM-R.
        sequence(vec![json!({ "type": "Prepend", "prepend": "▁" }), replace(json!({ "String": " " }), "▁")]),
        sequence(vec![
            replace(quote(), "\""),
            json!({ "type": "NFKD" }),
            json!({ "type": "StripAccents" }),
            json!({ "type": "Lowercase" }),
            replace(json!({ "Regex": " {2,}" }), " "),
        ]),
        sequence(vec![json!({ "type": "NFKC" }); 3]),
    ];
    let pre_tokenizers = [
        json!(null),
        json!({ "type": "BertPreTokenizer" }),
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }),
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }),
        json!({ "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, { "type": "Punctuation", "behavior": "Isolated" }] }),
    ];
    let texts = ["", "Hello, the  wörld 12", "``ﷺ`` ﬁ", &"a word of the text, ".repeat(2000)];
    let mut trials = 0;
    for normalizer in &normalizers {
        for pre_tokenizer in &pre_tokenizers {
            let mut whole = fixture();
            (whole["normalizer"], whole["pre_tokenizer"]) = (normalizer.clone(), pre_tokenizer.clone());
            let ours = write(folder.path(), &whole).expect("a usual tokenizer");
            let theirs =
                tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).expect("JSON");
            for text in texts {
                let want = theirs.encode(text, true).expect("a text");
                assert_eq!(
                    ours.encode(text, usize::MAX).expect("a text"),
                    want.get_ids(),
                    "{normalizer} {pre_tokenizer}"
                );
                trials += 1;
            }
        }
    }
    assert_eq!(trials, 100);
}

#[test]
fn texts_have_a_largest_size_and_long_paragraphs_are_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.txt");
    let line = "One day, Tom went out to see the big dog.\n";
    let text = line.repeat(2 * MAX_TEXT / line.len());
    std::fs::write(&file, &text).expect("written");
    let mut config = common::config(kron_train::config::Method::Kron);
    (config.task, config.data.limit_train) = (kron_train::config::Task::Lm, 0);
    (config.data.train, config.data.validation) = (file, None);
    let tokenizer = Tokenizer::read(&data("tok512.bin")).expect("a tokenizer");
    let Examples::Plain(all) = Dataset::read(&config, &tokenizer).expect("data").train else {
        panic!("plain")
    };
    let decoded = tokenizer.decode(&all.concat()).expect("ids");
    assert!(text.starts_with(&decoded) && decoded.len() + 500 > text.len(), "{}", decoded.len());

    for name in ["models/bert/tokenizer.json", "tok512.bin"] {
        let tokenizer = Tokenizer::read(&data(name)).expect("a tokenizer");
        let both = |text: &str| [tokenizer.encode(text, 8), tokenizer.encode_more(text)];
        assert!(both(&text[..MAX_TEXT]).iter().all(Result::is_ok), "{name}: the longest text");
        for refused in both(&text[..MAX_TEXT + 1]) {
            let message = refused.expect_err("too long").to_string();
            assert!(message.contains("a text has 524289 bytes, but a text may have 524288"), "{message}");
        }
    }
}

/// Makes one piece of llama2.c's tokenizer longer; a pair of pieces is joined at every place of a text.
#[test]
fn a_piece_of_llama2c_has_a_longest_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tok.bin");
    let whole = std::fs::read(data("tok512.bin")).expect("a fixture");
    for (len, taken) in [(256u32, true), (257, false), (1 << 20, false)] {
        let piece = [&0f32.to_le_bytes()[..], &len.to_le_bytes(), &vec![b'x'; len as usize]].concat();
        std::fs::write(&path, [&whole[..], &piece].concat()).expect("written");
        match Tokenizer::read(&path) {
            Ok(tokenizer) => assert!(taken && tokenizer.vocabulary() == 513, "{len}"),
            Err(e) => {
                let want = format!("has a piece 512 of {len} bytes, but at most 256");
                assert!(!taken && e.to_string().contains(&want), "{e}");
            }
        }
    }
}

/// The file of the model is named by the environment variable `KRON_SMOLLM2`, as scripts/check-smollm2.sh sets it.
#[test]
fn smollm2_has_the_tokens_of_llama_cpp() {
    let Some(model) = std::env::var_os("KRON_SMOLLM2") else {
        return eprintln!("skipped: KRON_SMOLLM2 names no GGUF, scripts/fetch-smollm2.sh fetches it");
    };
    let tokenizer = Tokenizer::read(Path::new(&model)).expect("a tokenizer");
    let text = std::fs::read(data("smollm2_tokens.json")).expect("a fixture");
    let all: Vec<(String, Vec<u32>)> = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(all.len(), 60);
    for (text, want) in all {
        assert_eq!(tokenizer.encode_more(&text).expect("tokens"), want, "{text:?}");
    }
}
