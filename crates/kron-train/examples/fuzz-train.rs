//! Damaged inputs for every reader of `kron-train`, for so many seconds: tokenizers, settings, grids, examples,
//! conversations and their template, a model's configuration, a checkpoint and a head; each run has other ones.
//!
//! `cargo run -p kron-train --example fuzz-train -- 60`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kron_candle::Inject;
use kron_tests::fuzz::main_loop;
use kron_tests::mutate::mutate;
use kron_train::config::Task;
use kron_train::data::{ChatTemplate, Dataset, Message, Tokenizer};
use kron_train::model::{Files, Weights, build};
use kron_train::run::{OutputFolder, Stop, head_of_adapter, read_adapter, read_head, run};
use kron_train::studies::chains::ChainGrid;
use kron_train::studies::compare::ComparisonGrid;
use kron_train::{Config, Progress, Result};
use rand::RngExt;

/// Folder of `kron-train`'s own fixtures.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// Folder of a model with a chat template, among the inputs.
const CHAT: &str = "chat";

/// Template with the constructs that real ones have.
const TEMPLATE: &str = "{{ bos_token }}{% set ns = namespace(last='') %}{% for m in messages %}\
     {% if loop.first and m['role'] != 'system' %}{{ 'You are ' + eos_token }}{% endif %}\
     {{ '<' + m['role'] + '>' + m['content'] | trim }}{% set ns.last = m.role %}{% endfor %}\
     {% if add_generation_prompt and ns.last == 'user' %}{{ '<assistant>' }}{% endif %}";

const ENTRY: &str =
    "reference = 'a'\n[[entries]]\nname = 'a'\nlrs = [1e-3]\nadapter = { a_out = 4, a_in = 2 }\n";

/// Names of the inputs, each with the reader that its end selects.
const NAMES: [&str; 15] = [
    "bert.tokenizer.json",
    "llama.tokenizer.json",
    "tok.bin",
    "run.toml",
    "rates.grid.toml",
    "chains.grid.toml",
    "classify.jsonl",
    "lm.jsonl",
    "choice.jsonl",
    "chat/messages.jsonl",
    "chat/config.json",
    "chat/tokenizer_config.json",
    "chat/chat_template.jinja",
    "checkpoint.safetensors",
    "head.safetensors",
];

fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let readers = Readers::new(folder.path()).expect("fixtures");
    for (name, bytes) in &readers.seeds {
        assert!(readers.read(name, bytes), "{name} is refused before it is damaged");
    }
    main_loop(|rng| readers.damaged(rng), |name, bytes| readers.read(name, bytes))
}

/// Readers of `kron-train`, with a valid input of each kind.
struct Readers {
    folder: PathBuf,
    seeds: Vec<(&'static str, Vec<u8>)>,
    config: Config,
    tokenizer: Tokenizer,
    weights: Weights,
    data: Dataset,
}

impl Readers {
    /// Makes the valid inputs; a run of one step in the folder makes the checkpoint.
    fn new(folder: &Path) -> Result<Self> {
        let fixture = |name: &str| Path::new(DATA).join(name);
        let mut config = Config { model: fixture("stories260K.bin"), ..Config::default() };
        config.data.train = fixture("snips.train.jsonl");
        (config.data.limit_train, config.data.max_len, config.train.epochs) = (4, 16, 1);
        (config.adapter.a_out, config.adapter.a_in, config.adapter.rank) = (4, 2, 2);
        let files = Files::find(&config.model)?;
        let (weights, tokenizer) = (Weights::read(&files)?, Tokenizer::read(&files.tokenizer)?);
        let data = Dataset::read(&config, &tokenizer)?;
        let output = OutputFolder { path: folder.join("run"), resume: false };
        run(&config, &weights, &data, Some(&output), &Stop::default(), &Progress::Hidden)?;
        copy(&fixture("models/llama"), &folder.join(CHAT));
        let settings = config.text()?;
        let base = settings.replace("\n[", "\n[base.");
        let read = |path: PathBuf| std::fs::read(path).expect("a fixture");
        let seed = |name: &'static str| {
            let bytes = match name {
                "tok.bin" => read(fixture("tok512.bin")),
                "run.toml" => settings.clone().into_bytes(),
                "rates.grid.toml" => format!("lrs = [1e-3]\nseeds = [1]\n{ENTRY}[base]\n{base}").into_bytes(),
                "chains.grid.toml" => {
                    format!("pairs = ['a', 'b']\nseeds = [1]\n{ENTRY}[base]\n{base}").into_bytes()
                }
                "classify.jsonl" => {
                    b"{\"text\": \"play a song\", \"label\": 3, \"domain\": \"d\"}\n".repeat(3)
                }
                "lm.jsonl" => {
                    b"{\"text\": \"One day, Tom went out to see the big dog and the cat.\"}\n".repeat(3)
                }
                "choice.jsonl" => {
                    b"{\"q\": \"Grass is\", \"choices\": [\"green\", \"red\"], \"answer\": 0}\n".repeat(3)
                }
                "chat/messages.jsonl" => {
                    let user = r#"{"role": "user", "content": "the big dog"}"#;
                    let answer = r#"{"role": "assistant", "content": "Tom went out"}"#;
                    format!("{{\"messages\": [{user}, {answer}]}}\n").repeat(3).into_bytes()
                }
                "chat/config.json" => read(fixture("models/llama/config.json")),
                "chat/tokenizer_config.json" => {
                    br#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "none"}"#
                        .to_vec()
                }
                "chat/chat_template.jinja" => TEMPLATE.into(),
                "checkpoint.safetensors" => read(output.path.join(name)),
                // An adapter's file is one of its head, too.
                "head.safetensors" => read(output.path.join("adapter.safetensors")),
                _ => read(fixture("models").join(name.replace(".token", "/token"))),
            };
            (name, bytes)
        };
        let seeds: Vec<(&str, Vec<u8>)> = NAMES.into_iter().map(seed).collect();
        for (name, bytes) in seeds.iter().filter(|(name, _)| name.starts_with(CHAT)) {
            std::fs::write(folder.join(name), bytes).expect("room");
        }
        Ok(Self { folder: folder.into(), seeds, config, tokenizer, weights, data })
    }

    /// Damages a valid input in one to three places.
    fn damaged(&self, rng: &mut impl RngExt) -> (&'static str, Vec<u8>) {
        let (name, seed) = &self.seeds[rng.random_range(0..self.seeds.len())];
        if name.ends_with(".bin") || name.ends_with(".safetensors") {
            return (name, mutate(seed, seed, rng));
        }
        // As the header of a file without tensors: what is damaged is the text.
        let framed = [&(seed.len() as u64).to_le_bytes(), &seed[..]].concat();
        (name, mutate(&framed, seed, rng).get(8..).unwrap_or_default().to_vec())
    }

    /// Reads an input as the program does; returns `true` if it is accepted.
    ///
    /// # Panics
    /// A reader panicked, which is what a fuzzer looks for, or its message is no sentence.
    fn read(&self, name: &str, bytes: &[u8]) -> bool {
        let folder =
            if name.ends_with(".safetensors") { self.folder.join("run") } else { self.folder.clone() };
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("a folder that can be written");
        let read_examples = |task, tokenizer: &Tokenizer| {
            let mut config = Config { task, ..self.config.clone() };
            config.data.train = path.clone();
            if task == Task::Chat {
                // A layout takes more tokens than a text.
                config.data.max_len = 256;
            }
            Dataset::read(&config, tokenizer).map(drop)
        };
        let examples = |task| read_examples(task, &self.tokenizer);
        let chat = || Tokenizer::read(&self.folder.join(CHAT).join("tokenizer.json"));
        let done = match name {
            "run.toml" => Config::read(&path).and_then(|config| config.check()),
            "rates.grid.toml" => ComparisonGrid::read(&path).and_then(|grid| grid.text()).map(drop),
            "chains.grid.toml" => ChainGrid::read(&path).and_then(|grid| grid.text()).map(drop),
            "classify.jsonl" => examples(Task::Classify),
            "lm.jsonl" => examples(Task::Lm),
            "choice.jsonl" => examples(Task::Choice),
            "chat/messages.jsonl" => chat().and_then(|tokenizer| read_examples(Task::Chat, &tokenizer)),
            "chat/config.json" => Files::find(&self.folder.join(CHAT))
                .and_then(|files| build(&Weights::read(&files)?, &Inject::nothing()).map(drop)),
            "chat/tokenizer_config.json" | "chat/chat_template.jinja" => chat().and_then(|tokenizer| {
                let message = Message { role: "user".into(), content: " <s>{{ 1 }} dog".into() };
                ChatTemplate::of(&tokenizer.conventions()?)?.render(&[message], true).map(drop)
            }),
            "checkpoint.safetensors" => {
                let output = OutputFolder { path: folder, resume: true };
                let (stop, progress) = (Stop::default(), Progress::Hidden);
                run(&self.config, &self.weights, &self.data, Some(&output), &stop, &progress).map(drop)
            }
            "head.safetensors" => {
                let adapter = read_adapter(&path, &self.config.model, &self.weights);
                let own = adapter.and_then(|read| head_of_adapter(&path, &read.adapter, &self.weights));
                let head = read_head(&path, &self.weights);
                own.and(head.map(drop))
            }
            _ => Tokenizer::read(&path).and_then(|tokenizer| {
                let ids = tokenizer.encode("Hello, the  wörld 12 [CLS] <s>", 64)?;
                tokenizer.encode_more("a tale")?;
                tokenizer.decode(&ids).map(drop)
            }),
        };
        // The other files of the folder belong to the valid model again.
        if let Some((_, seed)) = self.seeds.iter().find(|(seed, _)| *seed == name && name.starts_with(CHAT)) {
            std::fs::write(&path, seed).expect("a folder that can be written");
        }
        done.map_err(|error| {
            let message = error.to_string();
            assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
        })
        .is_ok()
    }
}

/// Copies the files of a folder into a new one.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("room");
    for entry in std::fs::read_dir(from).expect("a fixture") {
        let entry = entry.expect("a file");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("room");
    }
}
