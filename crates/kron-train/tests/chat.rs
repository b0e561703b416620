//! Conversations in the layout of a model's chat template: answers, training on answers alone, refusals.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{config, data};
use kron_train::config::{Method, Task};
use kron_train::data::{Examples, Message, Tokenizer};
use kron_train::inference::{GenerateOptions, TrainedModel};
use kron_train::model::{Files, Weights};
use kron_train::run::{OutputFolder, Stop, run};
use kron_train::{Config, Progress};
use serde_json::{Value, json};

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }} {{ m.content }}{{ eos_token }}{% endfor %}\
     {% if add_generation_prompt %}a {% endif %}";

/// Copies the small decoder, with a chat template in `tokenizer_config.json`.
fn model(folder: &Path, template: &Value) -> PathBuf {
    let path = folder.join("model");
    std::fs::create_dir_all(&path).expect("room");
    for entry in std::fs::read_dir(data("models/llama")).expect("the model") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), path.join(entry.file_name())).expect("room");
    }
    let config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" }, "chat_template": template });
    std::fs::write(path.join("tokenizer_config.json"), config.to_string()).expect("room");
    path
}

fn trained(model: &Path) -> TrainedModel {
    let mut config = Config { model: model.into(), task: Task::Lm, ..Config::default() };
    config.data.train = "-".into();
    let files = Files::find(model).expect("a model");
    let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
    TrainedModel::new(&config, &Weights::read(&files).expect("weights"), tokenizer, None, None)
        .expect("a model")
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kron-train")).args(arguments).output().expect("it starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("Unicode")
}

fn refused(ended: &Output) -> String {
    assert_eq!(ended.status.code(), Some(1), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[test]
fn a_template_is_found_in_each_of_its_places() {
    let folder = tempfile::tempdir().expect("a folder");
    let find = |path: &Path| {
        let tokenizer = Tokenizer::read(&path.join("tokenizer.json")).expect("a tokenizer");
        tokenizer.conventions().expect("conventions").chat_template
    };
    assert_eq!(find(&model(folder.path(), &json!("one"))).as_deref(), Some("one"));
    let many = json!([{ "name": "tool_use", "template": "two" }, { "name": "default", "template": "three" }]);
    assert_eq!(find(&model(folder.path(), &many)).as_deref(), Some("three"));
    assert_eq!(find(&model(folder.path(), &json!(null))), None);
    let path = model(folder.path(), &json!("one"));
    std::fs::write(path.join("chat_template.jinja"), "four").expect("room");
    assert_eq!(find(&path).as_deref(), Some("four"));
}

/// The prompt is encoded with the special tokens that the template spells, and without others.
#[test]
fn an_answer_follows_the_rendered_conversation() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = model(folder.path(), &json!(TEMPLATE));
    let model = trained(&path);
    let tokenizer = Tokenizer::read(&path.join("tokenizer.json")).expect("a tokenizer");
    let ids = tokenizer.encode_more("<s>u the dog</s>a ").expect("a text");
    assert!(ids[0] == 1 && ids.iter().filter(|&&id| id == 1).count() == 1 && ids.contains(&2), "{ids:?}");
    let options = GenerateOptions { max_tokens: 5, ..GenerateOptions::default() };
    let message = Message { role: "user".into(), content: "the dog".into() };
    let got =
        model.generator(&options).and_then(|all| all.answer(&[message], 0)?.finish()).expect("an answer");
    assert_eq!(got.prompt_tokens, ids.len());

    let generate = ["generate", text(&path), "--chat", "--max-tokens", "5"];
    let one = program(&[&generate[..], &["--prompt", "the dog", "--json"]].concat());
    let object: Value = serde_json::from_slice(&one.stdout).expect("JSON");
    assert_eq!(object["ids"], json!(got.ids));
    let prompts = folder.path().join("prompts.jsonl");
    let line = json!({ "messages": [{ "role": "user", "content": "the dog" }] });
    std::fs::write(&prompts, format!("{line}\n")).expect("room");
    let many = program(&[&generate[..], &["--prompts", text(&prompts)]].concat());
    assert_eq!(many.stdout, one.stdout);
    for (line, want) in [
        (json!({ "messages": [] }), "line 1 has 0 messages, but a conversation has from 1 to 256"),
        (
            json!({ "messages": vec![json!({ "role": "user", "content": "" }); 257] }),
            "line 1 has 257 messages",
        ),
        (json!({ "messages": [{ "role": "user", "content": null }] }), "line 1 is malformed"),
        (json!({ "messages": [{ "role": "user", "content": "", "name": "x" }] }), "unknown field `name`"),
        (json!({ "prompt": "a" }), "line 1 is malformed: missing field `messages`"),
    ] {
        std::fs::write(&prompts, format!("{line}\n")).expect("room");
        let message = refused(&program(&[&generate[..], &["--prompts", text(&prompts)]].concat()));
        assert!(message.contains(want), "{message}");
    }
    let stories = data("stories260K.bin");
    let message = refused(&program(&["generate", text(&stories), "--chat", "--prompt", "a"]));
    assert!(message.contains("the model has no chat template"), "{message}");
}

/// Settings of a run on a file of conversations.
fn chat(folder: &Path, rows: &[Value]) -> Config {
    let file = folder.join("chat.jsonl");
    std::fs::write(&file, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).expect("room");
    let mut config = Config { model: folder.join("model"), task: Task::Chat, ..config(Method::Kron) };
    config.data.max_len = 40;
    (config.data.train, config.data.validation) = (file.clone(), Some(file));
    (config.train.lr, config.train.epochs) = (2e-2, 6);
    config
}

fn talk(messages: &[(&str, &str)]) -> Value {
    let message = |(role, content): &(&str, &str)| json!({ "role": role, "content": content });
    json!({ "messages": messages.iter().map(message).collect::<Vec<_>>() })
}

#[test]
fn answers_alone_are_learned() {
    let folder = tempfile::tempdir().expect("a folder");
    model(folder.path(), &json!(TEMPLATE));
    let rows: Vec<Value> = (0..16)
        .map(|i| {
            let question = ["the dog", "the cat", "what"][i % 3];
            talk(&[
                ("system", "s"),
                ("user", question),
                ("assistant", "at"),
                ("user", "a"),
                ("assistant", "it"),
            ])
        })
        .collect();
    let config = chat(folder.path(), &rows);
    let (weights, examples) = common::load(&config);
    let Examples::Conversations(all) = &examples.train else { panic!("conversations") };
    let tokenizer = Tokenizer::read(&config.model.join("tokenizer.json")).expect("a tokenizer");
    for one in all {
        let learned: Vec<u32> = one.answers.iter().map(|&i| one.ids[i]).collect();
        // A piece may begin with the space before the answer.
        assert_eq!(tokenizer.decode(&learned).expect("ids").replace([' ', '▁'], ""), "atit");
        assert_eq!(learned.iter().filter(|&&id| id == 2).count(), 2, "each answer has its end token");
        assert!(one.answers.len() * 2 < one.ids.len() && one.ids[0] == 1);
    }

    let output = OutputFolder { path: folder.path().join("run"), resume: false };
    let outcome = run(&config, &weights, &examples, Some(&output), &Stop::default(), &Progress::Hidden);
    let score = outcome.expect("a run").validation.expect("a score");
    let eval = |adapter: bool| -> f64 {
        let settings = output.path.join("config.toml");
        let file = output.path.join("adapter.safetensors");
        let mut arguments = vec!["eval", text(&config.model), "--config", text(&settings)];
        arguments.extend(["--data", text(&config.data.train)]);
        if adapter {
            arguments.extend(["--adapter", text(&file)]);
        }
        let ended = program(&arguments);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let result: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
        assert_eq!((&result["task"], result.get("accuracy")), (&json!("chat"), None));
        result["loss"].as_f64().expect("a loss")
    };
    assert_eq!(eval(true), score.loss);
    assert!(score.loss < 0.5 * eval(false), "{score}");
    let predicted =
        program(&["predict", text(&config.model), "--task", "chat", "--data", text(&config.data.train)]);
    assert!(refused(&predicted).contains("the tasks lm and chat have no answers to predict"));
}

#[test]
fn conversations_that_cannot_be_learned_are_refused_with_the_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = talk(&[("user", "a"), ("assistant", "it")]);
    let thinking = format!("{TEMPLATE}{{% if add_generation_prompt %}}so {{% endif %}}");
    let raises = "{{ raise_exception('no such role') }}";
    for (template, row, want) in [
        (TEMPLATE, talk(&[("user", "a")]), "line 2: a conversation has no message of the role assistant"),
        (
            TEMPLATE,
            talk(&[("user", &"the dog ".repeat(40)), ("assistant", "it")]),
            "has no answer within max_len = 40",
        ),
        (
            &thinking,
            good.clone(),
            "line 1: the chat template changes the text before message 2 by the answer itself",
        ),
        (raises, good.clone(), "line 1: the model's chat template refuses a conversation"),
        ("{% for", good.clone(), "the model's chat template is malformed"),
    ] {
        model(folder.path(), &json!(template));
        let config = chat(folder.path(), &[good.clone(), row]);
        let tokenizer = Tokenizer::read(&config.model.join("tokenizer.json")).expect("a tokenizer");
        let message =
            kron_train::data::Dataset::read(&config, &tokenizer).map(drop).expect_err(want).to_string();
        assert!(message.contains(want) && message.lines().count() == 1, "{message}\nwithout\n{want}");
    }
}
