//! Generated text is that of the forward pass without a cache, by every road to the model's weights.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, IndexOp};
use candle_nn::Linear;
use common::{config, data};
use kron_adapter::gguf::{LlamaTensors, write_lora};
use kron_adapter::peft::LoraOptions;
use kron_adapter::write_output;
use kron_candle::{IfExists, Inject};
use kron_core::Dtype;
use kron_train::config::{Method, Task};
use kron_train::data::{Tokenizer, Tokens};
use kron_train::inference::{Ended, GenerateOptions, Generated, TrainedModel};
use kron_train::model::{Files, KvCache, Weights, build};
use kron_train::run::{Stop, run};
use kron_train::{Config, Progress};
use serde_json::Value;

fn model(path: &Path, adapter: Option<&Path>) -> TrainedModel {
    let mut config = Config { model: path.into(), task: Task::Lm, ..Config::default() };
    config.data.train = "-".into();
    let files = Files::find(path).expect("a model");
    let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
    let weights = Weights::read(&files).expect("weights");
    TrainedModel::new(&config, &weights, tokenizer, adapter, None).expect("a model")
}

fn generated(model: &TrainedModel, prompt: &str, options: &GenerateOptions) -> Generated {
    model.generator(options).and_then(|all| all.text(prompt, 0)?.finish()).expect("a text")
}

fn stories() -> Value {
    let text = std::fs::read_to_string(data("stories260k_reference.json")).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn greedy_tokens_are_those_of_the_reference() {
    let (want, model) = (stories(), model(&data("stories260K.bin"), None));
    let all = ids(&want["greedy_120_ids"]);
    let prompt = ids(&want["prompt_ids"]).len();
    let options = GenerateOptions { max_tokens: (all.len() - prompt) as u64, ..GenerateOptions::default() };
    let begin = want["prompt"].as_str().expect("a prompt");
    let got = generated(&model, begin, &options);
    assert_eq!((got.prompt_tokens, &got.ids[..], got.ended), (prompt, &all[prompt..], Ended::Length));
    assert_eq!(format!("{begin}{}", got.text), want["greedy_120_text"].as_str().expect("a text"));
}

/// The cache is filled in parts of several sizes, across the growth of its room.
#[test]
fn hidden_states_with_a_cache_are_those_of_the_whole_text() {
    for name in ["stories260K.bin", "models/llama", "models/llama3", "models/mistral"] {
        let path = data(name);
        let weights = Weights::read(&Files { tokenizer: path.join("none"), model: path }).expect("weights");
        let body = build(&weights, &Inject::nothing()).expect("a body");
        let len = weights.positions().min(200);
        let text: Vec<u32> = (0..len as u32).map(|i| 3 + i * i % 53).collect();
        let whole = body.hidden(&Tokens::new(&[&text]), None).expect("states");
        let (mut cache, mut start) = (KvCache::default(), 0);
        for size in [3, 1, 1, 7, 4].into_iter().chain(std::iter::repeat(13)) {
            let end = (start + size).min(len);
            let state = body.continued(&text[start..end], &mut cache).expect("a state");
            let [got, want]: [Vec<f32>; 2] = [state.i((0, 0)), whole.i((0, end - 1))]
                .map(|state| state.and_then(|state| state.to_vec1()).expect("values"));
            let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-5 && want.iter().any(|v| v.abs() > 0.1), "{name}: {off} at {end}");
            start = end;
            if start == len {
                break;
            }
        }
        assert!(cache.len() == len && cache.bytes() > 0);
        let more = body.continued(&[3; 2000], &mut cache).expect_err("too many").to_string();
        assert!(more.contains("positions") && cache.len() == len, "{more}");
        assert!(body.continued(&[], &mut cache).is_err());
    }
}

/// Settings of a run on the small decoder of the folder `models/llama`.
fn folder_run() -> Config {
    let mut config = Config { model: data("models/llama"), task: Task::Lm, ..config(Method::Kron) };
    (config.data.max_len, config.train.lr) = (16, 3e-2);
    config
}

#[test]
fn an_adapter_and_its_merged_model_generate_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder_run();
    let (weights, examples) = common::load(&config);
    let outcome =
        run(&config, &weights, &examples, None, &Stop::default(), &Progress::Hidden).expect("a run");
    let adapters = outcome.learner.adapters().expect("an adapter");
    let adapter = folder.path().join("adapter.safetensors");
    adapters.save(&adapter, IfExists::Refuse).expect("room");

    let merged = folder.path().join("merged");
    std::fs::create_dir(&merged).expect("room");
    let mut tensors = std::collections::HashMap::new();
    for part in 1..=3 {
        let part = config.model.join(format!("model-0000{part}-of-00003.safetensors"));
        tensors.extend(candle_core::safetensors::load(part, &Device::Cpu).expect("a shard"));
    }
    let inject = Inject::trained(adapters.to_adapter().expect("an adapter"));
    for (name, tensor) in &mut tensors {
        if let Some(module) = name.strip_suffix("_proj.weight").map(|name| format!("{name}_proj")) {
            let base = tensor.to_dtype(candle_core::DType::F32).map(|weight| Linear::new(weight, None));
            let layer = inject.wrap(base.expect("a matrix"), &module).expect("a layer");
            *tensor = layer.merge().expect("a sum").weight().clone();
        }
    }
    candle_core::safetensors::save(&tensors, merged.join("model.safetensors")).expect("room");
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(config.model.join(name), merged.join(name)).expect("room");
    }

    // llama.cpp's form of the adapter: a LoRA, with the rows of q and k in a GGUF's order.
    let llama_cpp = folder.path().join("adapter.gguf");
    let names = LlamaTensors::of_config(&config.model.join("config.json")).expect("a configuration");
    let whole = adapters.to_adapter().expect("an adapter");
    let lora = write_lora(&whole, &names, LoraOptions::default(), Dtype::F32, &|_| Ok(())).expect("a LoRA");
    write_output(&llama_cpp, &lora.output, IfExists::Refuse, &|_| Ok(())).expect("room");

    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    let (mut changed, mut tokens) = (0, 0);
    let (with, base) = (model(&config.model, Some(&adapter)), model(&config.model, None));
    let merged = model(&merged, None);
    let llama_cpp = model(&config.model, Some(&llama_cpp));
    for prompt in ["the dog", "play the", "a", "what is it"] {
        let got = generated(&with, prompt, &options);
        assert_eq!(got, generated(&merged, prompt, &options));
        assert_eq!(got, generated(&llama_cpp, prompt, &options));
        tokens += got.ids.len();
        changed += usize::from(got != generated(&base, prompt, &options));
    }
    assert!(changed > 0 && tokens > 20, "{changed} of 4 changed, {tokens} tokens");
}

#[test]
fn draws_are_reproducible_and_differ_by_seed_and_text() {
    let model = model(&data("stories260K.bin"), None);
    let options = |seed| GenerateOptions {
        temperature: 1.0,
        top_p: 0.9,
        seed,
        max_tokens: 40,
        ..GenerateOptions::default()
    };
    let text = |seed, number| {
        let options = options(seed);
        model.generator(&options).and_then(|all| all.text("One day", number)?.finish()).expect("a text")
    };
    assert_eq!(text(1, 0), text(1, 0));
    assert_ne!(text(1, 0).ids, text(2, 0).ids);
    assert_ne!(text(1, 0).ids, text(1, 1).ids);
    let greedy = GenerateOptions { max_tokens: 40, ..GenerateOptions::default() };
    let kept = GenerateOptions { top_p: 0.0, ..options(1) };
    assert_eq!(generated(&model, "One day", &kept), generated(&model, "One day", &greedy));
}

#[test]
fn a_text_ends_at_stops_end_tokens_and_positions() {
    let model = model(&data("stories260K.bin"), None);
    let options = GenerateOptions { max_tokens: 60, ..GenerateOptions::default() };
    let free = generated(&model, "Once upon a time", &options);
    let stop = free.text[20..26].to_owned();
    let stopped = generated(
        &model,
        "Once upon a time",
        &GenerateOptions { stops: vec!["\u{1f600}".into(), stop.clone()], ..options },
    );
    assert_eq!(stopped.text, free.text[..free.text.find(&stop).expect("the stop")]);
    assert_eq!(stopped.ended, Ended::Stop);
    assert!(stopped.ids.len() < free.ids.len() && free.ids.starts_with(&stopped.ids));
    // The model has 512 positions, and ends its stories before that.
    let long = GenerateOptions { max_tokens: 1 << 20, ..GenerateOptions::default() };
    let whole = generated(&model, "Once upon a time", &long);
    assert!(whole.ids.len() <= 512 && !whole.ids.contains(&1) && !whole.ids.contains(&2));
    let short = self::model(&data("models/llama"), None);
    let whole = generated(&short, "the dog", &long);
    let last = whole.prompt_tokens + whole.ids.len();
    assert!(whole.ended == Ended::End || last == 41, "{whole:?}");
}

/// End tokens come from every file of a folder that has them.
#[test]
fn the_end_tokens_of_a_folder_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tokenizer.json");
    std::fs::copy(data("models/llama/tokenizer.json"), &path).expect("room");
    let tokenizer = Tokenizer::read(&path).expect("a tokenizer");
    let ends = || tokenizer.conventions().map(|c| c.ends).map_err(|e| e.to_string());
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("room");
    assert_eq!(ends(), Ok(vec![]));
    write("config.json", r#"{"eos_token_id": 2}"#);
    assert_eq!(ends(), Ok(vec![2]));
    write("generation_config.json", r#"{"eos_token_id": [7, 5, 7]}"#);
    assert_eq!(ends(), Ok(vec![5, 7]));
    write("tokenizer_config.json", r#"{"eos_token": {"content": "</s>"}, "bos_token": "<s>"}"#);
    assert_eq!(ends(), Ok(vec![2, 5, 7]));
    let conventions = tokenizer.conventions().expect("conventions");
    assert_eq!((conventions.bos_token.as_str(), conventions.eos_token.as_str()), ("<s>", "</s>"));
    for (id, shown) in [("-1", "-1"), ("[1, \"x\"]", "x"), ("4294967296", "4294967296"), ("{}", "{}")] {
        write("generation_config.json", &format!("{{\"eos_token_id\": {id}}}"));
        let message = ends().expect_err(id);
        assert!(message.contains(shown) && message.contains("a list of ids"), "{message}");
    }
    write("generation_config.json", "{");
    assert!(ends().expect_err("no JSON").contains("generation_config.json"));
}

fn program(arguments: &[&str]) -> Output {
    let model = data("stories260K.bin");
    Command::new(env!("CARGO_BIN_EXE_kron-train"))
        .arg("generate")
        .arg(model)
        .args(arguments)
        .output()
        .expect("it starts")
}

fn stdout(ended: &Output) -> &str {
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    std::str::from_utf8(&ended.stdout).expect("text")
}

#[test]
fn the_program_prints_text_json_and_jsonl() {
    let folder = tempfile::tempdir().expect("a folder");
    let short = ["--prompt", "Once upon a time", "--max-tokens", "20"];
    let text = program(&short);
    let json = program(&[&short[..], &["--json"]].concat());
    let object: Value = serde_json::from_str(stdout(&json)).expect("JSON");
    assert_eq!(stdout(&text), format!("{}\n", object["text"].as_str().expect("a text")));
    assert_eq!((&object["ended"], object["prompt_tokens"].as_u64()), (&"length".into(), Some(5)));
    let probable: Value =
        serde_json::from_str(stdout(&program(&[&short[..], &["--json", "--log-probs", "3"]].concat())))
            .expect("JSON");
    assert!(object.get("log_probs").is_none() && probable["ids"] == object["ids"]);
    let places = probable["log_probs"].as_array().expect("places");
    assert_eq!(places.len(), 20);
    for (place, id) in places.iter().zip(ids(&probable["ids"])) {
        let (first, ln) = (&place[0], |i: usize| place[i][1].as_f64().expect("ln p"));
        assert!(place.as_array().expect("tokens").len() == 3 && first[0] == id, "{place}");
        assert!(0.0 >= ln(0) && ln(0) >= ln(1) && ln(1) >= ln(2) && ln(2) > -30.0, "{place}");
    }
    let refused = program(&[&short[..], &["--log-probs", "3"]].concat());
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("error: --log-probs is given, but only"));
    assert_eq!(program(&[&short[..], &["--json", "--log-probs", "1001"]].concat()).status.code(), Some(1));
    for (max_tokens, taken) in [(16_777, true), (16_778, false)] {
        let checked = GenerateOptions { max_tokens, log_probs: 1000, ..GenerateOptions::default() }.check();
        let said = checked.map_err(|e| e.to_string());
        let want = "max_tokens is 16778 and log_probs is 1000, but their product is at most 16777216";
        assert_eq!(said, if taken { Ok(()) } else { Err(want.to_string()) });
    }
    let told = String::from_utf8_lossy(&text.stderr).into_owned();
    assert!(told.contains("text: 20 tokens") && told.contains("cache: 0."), "{told}");

    let (prompts, out) = (folder.path().join("prompts.jsonl"), folder.path().join("out.jsonl"));
    std::fs::write(&prompts, "{\"prompt\": \"Once upon a time\"}\n{\"prompt\": \"\"}\n").expect("room");
    let [prompts, path] = [&prompts, &out].map(|path| path.to_str().expect("Unicode"));
    let many = ["--prompts", prompts, "--max-tokens", "20", "--out", path];
    assert_eq!(stdout(&program(&many)), "");
    let written = std::fs::read_to_string(&out).expect("the result");
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(lines.len() == 2 && lines[0] == object, "{written}");
    assert_eq!(program(&many).status.code(), Some(1), "an existing file stays");
    assert_eq!(std::fs::read_to_string(&out).expect("the result"), written);
}

#[test]
fn options_out_of_range_and_hostile_inputs_are_refused_with_the_rule() {
    let (long, many) = ("x".repeat(1025), ["--stop", "x"].repeat(65));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompts.jsonl");
    std::fs::write(&file, "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n").expect("room");
    let (file, words) = (file.to_str().expect("Unicode"), "word ".repeat(2000));
    let huge = "x".repeat(100_000);
    for (arguments, want) in [
        (&["--temperature", "-0.1"][..], "temperature is -0.1, but it is a number from 0 to 100"),
        (&["--temperature", "NaN"], "temperature is NaN, but it is a number from 0 to 100"),
        (&["--temperature", "101"], "temperature is 101.0, but"),
        (&["--top-p", "1.5"], "top_p is 1.5, but it is a number from 0 to 1"),
        (&["--top-p", "inf"], "top_p is inf, but"),
        (&["--max-tokens", "0"], "max_tokens is 0, but it is an integer from 1 to 1048576"),
        (&["--max-tokens", "1048577"], "max_tokens is 1048577, but"),
        (&["--seed", "9223372036854775808"], "but it is an integer from 0 to 9223372036854775807"),
        (&["--stop", ""], "a stop text has 0 bytes, but it has from 1 to 1024"),
        (&["--stop", &long], "a stop text has 1025 bytes"),
        (&many, "there are 65 stop texts, but at most 64"),
    ] {
        let ended = program(&[&["--prompt", "a"], arguments].concat());
        let message = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{message}");
        assert!(message.starts_with("error: ") && message.contains(want), "{message}\nwithout\n{want}");
    }
    for (arguments, code, want) in [
        (&["--prompts", file][..], 1, "line 2 is malformed"),
        (&["--prompt", &words], 1, "but the model has 512 positions"),
        (&["--prompt", &huge], 1, "but the model has 512 positions"),
        (&[], 2, "--prompt"),
        (&["--prompt", "a", "--prompts", file], 2, "cannot be used with"),
        (&["--prompt", "a", "--max-tokens=-1"], 2, "--max-tokens"),
    ] {
        let ended = program(arguments);
        let message = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(code), "{message}");
        assert!(message.starts_with("error: ") && message.contains(want), "{message}\nwithout\n{want}");
        assert!(ended.stdout.is_empty());
    }
    let encoder = model(&data("models/bert"), None);
    let refused = encoder.generator(&GenerateOptions::default()).map(drop).expect_err("an encoder");
    assert!(refused.to_string().contains("it is an encoder"), "{refused}");
}
