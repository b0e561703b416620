//! `kron plan`: the paper's counts, models by their configuration, budgets.

use serde_json::{Value, json};

use crate::golden::kron;
use crate::models::run;

fn json_of(args: &[&str]) -> Value {
    let (code, out, err) = run(["plan", "--json"].iter().chain(args));
    assert_eq!((code, err.as_str()), (0, ""));
    serde_json::from_str(&out).unwrap()
}

fn fails(args: &[&str], code: i32, says: &[&str]) {
    let (got, out, err) = run(["plan"].iter().chain(args));
    assert_eq!((got, out.as_str()), (code, ""), "{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in: {err}");
    }
}

/// Returns (name, d_out, d_in, count) of each layer of a model with this configuration.
fn linears(config: &Value) -> Vec<(String, u64, u64, u64)> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let report = json_of(&["--config", dir.path().to_str().unwrap()]);
    let number = |layer: &Value, field: &str| layer[field].as_u64().unwrap();
    let layers = report["layers"].as_array().unwrap().iter();
    layers
        .map(|layer| {
            let name = layer["name"].as_str().unwrap().to_string();
            (name, number(layer, "d_out"), number(layer, "d_in"), number(layer, "count"))
        })
        .collect()
}

#[test]
fn papers_counts_to_the_unit() {
    let golden = json_of(&["--paper"]);
    let counts = |model: usize| {
        let row = &golden["models"][model];
        ["kron_body", "kron_head", "kron", "lora_body", "lora"].map(|field| row[field].as_u64().unwrap())
    };
    assert_eq!(counts(0), [5_676_032, 32_416, 5_708_448, 20_971_520, 21_260_288]);
    assert_eq!(counts(1), [5_241_856, 32_416, 5_274_272, 19_988_480, 20_277_248]);
    assert_eq!(counts(2), [5_676_032, 80_544, 5_756_576, 20_971_520, 22_030_336]);
    assert_eq!(counts(3), [249_120, 0, 840_481, 1_327_104, 1_918_465]);
}

#[test]
fn tables() {
    for (name, args) in [
        ("plan_paper", vec!["--paper"]),
        ("plan_paper_csv", vec!["--paper", "--csv"]),
        ("plan_mistral", vec!["mistral-7b"]),
        ("plan_csv", vec!["DistilBERT", "--a-out", "5", "--a-in", "3", "--rank", "4", "--csv"]),
        ("plan_reduced", vec!["llama-2-7b", "--a-out", "7", "--a-in", "3", "--layers", "q_proj,down_proj"]),
        ("plan_budget", vec!["mistral-7b", "--budget", "5.7M", "--top", "4"]),
        ("plan_budget_csv", vec!["distilbert", "--budget", "840k", "--top", "3", "--csv"]),
        ("help_plan", vec!["--help"]),
    ] {
        let run = kron().arg("plan").args(args).env("COLUMNS", "100").assert().success();
        insta::assert_snapshot!(name, String::from_utf8_lossy(&run.get_output().stdout));
    }
}

/// Facts of the published configurations.
#[test]
fn families() {
    let row = |name: &str, d_out, d_in, count| (name.to_string(), d_out, d_in, count);
    // Qwen3-0.6B: heads wider than hidden / heads, tied.
    let qwen3 = json!({
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": true
    });
    assert_eq!(
        linears(&qwen3),
        [
            row("q_proj", 2048, 1024, 28),
            row("k_proj", 1024, 1024, 28),
            row("v_proj", 1024, 1024, 28),
            row("o_proj", 1024, 2048, 28),
            row("gate_proj", 3072, 1024, 28),
            row("up_proj", 3072, 1024, 28),
            row("down_proj", 1024, 3072, 28),
        ]
    );
    // Gemma-2B inside a model that also sees images: one key head, tied without saying so.
    let gemma = json!({
        "model_type": "paligemma", "text_config": {
            "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216
        }
    });
    let layers = linears(&gemma);
    assert_eq!(layers[1], row("k_proj", 256, 2048, 18));
    assert_eq!(layers.len(), 7);
    // Qwen2.5-7B: a head of its own.
    let qwen2 = json!({
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": false
    });
    let layers = linears(&qwen2);
    assert_eq!((&layers[1], &layers[7]), (&row("k_proj", 512, 3584, 28), &row("lm_head", 152064, 3584, 1)));
    // LLaMA-7B from before grouped queries.
    let llama = json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "head_dim": null, "vocab_size": 32000
    });
    assert_eq!(linears(&llama)[1], row("k_proj", 4096, 4096, 32));
    let mistral = json!({
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000
    });
    assert_eq!(linears(&mistral)[1], row("k_proj", 1024, 4096, 32));
    for model_type in ["bert", "roberta"] {
        let bert = json!({
            "model_type": model_type, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "vocab_size": 30522
        });
        let layers = linears(&bert);
        assert_eq!(layers.len(), 6);
        assert_eq!(layers[4], row("intermediate.dense", 3072, 768, 12));
        assert_eq!(layers[5], row("output.dense", 768, 3072, 12));
    }
    let distilbert = json!({ "model_type": "distilbert", "dim": 768, "hidden_dim": 3072, "n_layers": 6 });
    assert_eq!(linears(&distilbert)[4], row("lin1", 3072, 768, 6));
    let modern_bert = json!({ "model_type": "modernbert", "hidden_size": 768, "intermediate_size": 1152,
        "num_hidden_layers": 22, "vocab_size": 50368 });
    let blocks = [
        row("attn.Wqkv", 2304, 768, 22),
        row("attn.Wo", 768, 768, 22),
        row("mlp.Wi", 2304, 768, 22),
        row("mlp.Wo", 768, 1152, 22),
    ];
    assert_eq!(linears(&modern_bert), blocks);
    // GPT-2: no width of the feed-forward, q, k and v in one, and an odd vocabulary where it is untied.
    let mut gpt2 =
        json!({ "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_inner": null, "vocab_size": 50257 });
    let blocks = [
        row("attn.c_attn", 2304, 768, 12),
        row("attn.c_proj", 768, 768, 12),
        row("mlp.c_fc", 3072, 768, 12),
        row("mlp.c_proj", 768, 3072, 12),
    ];
    assert_eq!(linears(&gpt2), blocks);
    gpt2["tie_word_embeddings"] = false.into();
    assert_eq!(linears(&gpt2)[4], row("lm_head", 50257, 768, 1));
}

/// The configuration of Gemma-2-2B is complete; that of Gemma-3-4B leaves out transformers' defaults.
#[test]
fn gemma_s_defaults_are_taken_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let plan = |config: &Value| {
        std::fs::write(&path, config.to_string()).unwrap();
        json_of(&["--config", path.to_str().unwrap()])
    };
    let gemma2 = json!({
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000
    });
    let gemma3 = json!({
        "model_type": "gemma3", "vision_config": { "hidden_size": 1152, "num_attention_heads": 16 },
        "text_config": {
            "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
            "num_hidden_layers": 34, "sliding_window": 1024
        }
    });
    for (config, hidden, ffn, blocks, said) in [(gemma2, 2304, 9216, 26, 0), (gemma3, 2560, 10240, 34, 3)] {
        let report = plan(&config);
        let shapes: Vec<_> = report["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| ["d_out", "d_in", "count"].map(|field| layer[field].as_u64().unwrap()))
            .collect();
        let want = [
            [2048, hidden],
            [1024, hidden],
            [1024, hidden],
            [hidden, 2048],
            [ffn, hidden],
            [ffn, hidden],
            [hidden, ffn],
        ];
        assert_eq!(shapes, want.map(|[d_out, d_in]| [d_out, d_in, blocks]));
        let notes: Vec<&str> = report["notes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(
            notes.iter().filter(|note| note.contains("default of gemma3_text")).count(),
            said,
            "{notes:?}"
        );
    }
}

#[test]
fn split_that_does_not_divide_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let gpt2 = json!({
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50257, "tie_word_embeddings": false
    });
    std::fs::write(&path, gpt2.to_string()).unwrap();
    let report = json_of(&["--config", path.to_str().unwrap()]);
    let head = &report["layers"][4];
    assert_eq!((&head["name"], &head["a_out"]), (&json!("lm_head"), &json!(1)));
    assert_eq!(head["notes"], json!(["a_out is 1 instead of 2, which does not divide d_out = 50257"]));
    assert_eq!(report["methods"][0]["exact"], false);
    let (_, out, _) = run(["plan", "--config", path.to_str().unwrap()]);
    assert!(out.contains("lm_head: a_out is 1 instead of 2") && out.contains("Conv1D"), "{out}");
}

#[test]
fn budgets_are_met_from_either_side() {
    let found = json_of(&["mistral-7b", "--budget", "5708448", "--top", "200"]);
    assert_eq!(found["budget"], 5_708_448);
    let choices = found["choices"].as_array().unwrap();
    let paper = choices.iter().find(|c| c["a_in"] == 2 && c["a_out"] == 16).expect("the paper's split");
    assert_eq!((&paper["rank"], &paper["difference"]), (&json!(8), &json!(0)));
    let off: Vec<u64> = choices.iter().map(|c| c["difference"].as_i64().unwrap().unsigned_abs()).collect();
    assert!(off.is_sorted());
    assert_eq!(found["others"].as_array().unwrap().len(), 3);
}

/// `--split` takes the columns first.
#[test]
fn the_older_form_of_a_split_is_understood_and_hidden() {
    let args = ["--layers", "q_proj,down_proj", "--rank", "4", "--csv"];
    let plan = |split: &[&str]| run(["plan", "llama-2-7b"].iter().chain(split).chain(&args));
    let (older, newer) = (plan(&["--split", "2,16"]), plan(&["--a-out", "16", "--a-in", "2"]));
    assert_eq!((older.0, older.2.as_str()), (0, ""));
    assert_eq!(older, newer);
    assert!(older.1.contains("kron 16×2 r 4"), "{}", older.1);
    assert!(!run(["plan", "--help"]).1.contains("--split"));
}

/// CSV has the same values as JSON, with every layer's reductions.
#[test]
fn csv_says_what_the_table_says() {
    let args = ["llama-2-7b", "--a-out", "7", "--a-in", "3", "--layers", "q_proj,down_proj"];
    let (code, csv, _) = run(["plan", "--csv"].iter().chain(&args));
    assert_eq!(code, 0);
    let report = json_of(&args);
    // The reader refuses a line with more or fewer cells than the first.
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let names = reader.headers().unwrap().clone();
    let row = |record: csv::StringRecord| -> Value {
        names.iter().map(String::from).zip(record.iter().map(Value::from)).collect()
    };
    let rows: Vec<Value> = reader.records().map(|record| row(record.unwrap())).collect();
    let (layers, methods) = (report["layers"].as_array().unwrap(), report["methods"].as_array().unwrap());
    assert_eq!(rows.len(), layers.len() + methods.len());
    for (row, layer) in rows.iter().zip(layers) {
        assert_eq!((&row["name"], &row["method"]), (&layer["name"], &json!("kron 7×3 r 8")));
        assert_eq!((&row["params"], &row["exact"]), (&json!(layer["params"].to_string()), &json!("false")));
        let note = row["note"].as_str().unwrap();
        assert_eq!(note.split("; ").collect::<Vec<_>>().len(), 2, "{note}");
        assert!(note.starts_with("a_out is 4 instead of 7, which does not divide"), "{note}");
    }
    for (row, method) in rows[layers.len()..].iter().zip(methods) {
        assert_eq!(
            (&row["name"], &row["why"], &row["method"]),
            (&json!("all"), &method["why"], &method["method"])
        );
        for (name, field) in [
            ("params", "trained_params"),
            ("max_rank", "max_rank"),
            ("multiply_adds", "multiply_adds"),
            ("saved_bytes", "saved_bytes"),
            ("optimizer_bytes", "optimizer_bytes"),
            ("gradient_bytes", "gradient_bytes"),
            ("adapter_bytes", "adapter_bytes"),
            ("exact", "exact"),
        ] {
            assert_eq!(row[name], method[field].to_string(), "{row:#}");
        }
    }
}

/// The head has 50257 = 29·1733 rows, so that only a_out = 1 divides all layers.
#[test]
fn budgets_are_met_by_legal_splits_where_there_are_any() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let mut config = json!({
        "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50257, "tie_word_embeddings": false
    });
    std::fs::write(&path, config.to_string()).unwrap();
    let path = path.to_str().unwrap();
    let found = json_of(&["--config", path, "--budget", "900k", "--top", "500"]);
    let choices = found["choices"].as_array().unwrap();
    assert!(
        choices.len() > 5 && choices.iter().all(|c| c["exact"] == true && c["a_out"] == 1),
        "{choices:?}"
    );
    assert!(found["others"].as_array().unwrap().iter().all(|c| c["exact"] == true));
    let (_, csv, _) = run(["plan", "--config", path, "--budget", "900k", "--csv"]);
    assert!(csv.lines().next().unwrap().ends_with(",exact"), "{csv}");
    assert!(csv.lines().skip(1).all(|line| line.ends_with(",true")), "{csv}");
    // What the configuration says is said here too.
    config["tie_word_embeddings"] = true.into();
    std::fs::write(path, config.to_string()).unwrap();
    let (_, table, _) = run(["plan", "--config", path, "--budget", "900k"]);
    assert!(table.contains("Conv1D") && table.contains("lm_head is tied"), "{table}");
    assert_eq!(json_of(&["--config", path, "--budget", "900k"])["notes"].as_array().unwrap().len(), 3);
}

#[test]
fn calls_and_configurations_that_are_wrong() {
    fails(&[], 2, &["MODEL"]);
    fails(&["gpt-5"], 2, &["gpt-5", "mistral-7b", "--config"]);
    fails(&["distilbert", "--csv", "--json"], 2, &["--csv", "--json"]);
    fails(&["distilbert", "--split", "2"], 2, &["a_in,a_out"]);
    fails(&["distilbert", "--split", "0,4"], 2, &["from 1 to 4294967295"]);
    fails(&["distilbert", "--a-out", "4"], 2, &["--a-in"]);
    fails(&["distilbert", "--a-in", "2"], 2, &["--a-out"]);
    fails(&["distilbert", "--a-out", "0", "--a-in", "2"], 2, &["0 is not in 1.."]);
    fails(
        &["distilbert", "--a-out", "4", "--a-in", "2", "--split", "2,4"],
        2,
        &["--split", "cannot be used with"],
    );
    fails(&["--paper", "--a-out", "4", "--a-in", "2"], 2, &["--paper", "cannot be used with"]);
    fails(&["distilbert", "--layers", "q_lin,q_proj"], 2, &["q_proj", "out_lin"]);
    fails(&["distilbert", "--budget", "many"], 2, &["many", "5.7M"]);
    fails(&["distilbert", "--rank", "0"], 2, &["0"]);
    fails(
        &["distilbert", "--rank", "8", "--budget", "840k"],
        2,
        &["--rank", "--budget", "cannot be used with"],
    );
    fails(&["--paper", "--rank", "8"], 2, &["--rank", "--paper", "cannot be used with"]);
    fails(&["--config", "nowhere"], 1, &["nowhere", "cannot be read"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let llama = |change: &dyn Fn(&mut Value)| {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 61
        });
        change(&mut config);
        config.to_string()
    };
    for (text, says) in [
        ("".to_string(), "not JSON"),
        ("[".repeat(100_000), "not JSON"),
        ("[]".to_string(), "not a JSON object"),
        ("{}".to_string(), "lacks the field model_type"),
        (llama(&|c| c["model_type"] = "mamba".into()), "mamba"),
        (llama(&|c| drop(c.as_object_mut().unwrap().remove("hidden_size"))), "lacks the field hidden_size"),
        (llama(&|c| c["hidden_size"] = "48".into()), "hidden_size is \"48\""),
        (llama(&|c| c["hidden_size"] = 0.into()), "hidden_size is 0"),
        (llama(&|c| c["hidden_size"] = (-48).into()), "hidden_size is -48"),
        (llama(&|c| c["hidden_size"] = u64::MAX.into()), "18446744073709551615"),
        (llama(&|c| c["num_hidden_layers"] = u64::MAX.into()), "18446744073709551615"),
        (llama(&|c| c["num_attention_heads"] = 5.into()), "does not divide hidden_size"),
        (llama(&|c| c["num_key_value_heads"] = 3.into()), "does not divide num_attention_heads"),
        (llama(&|c| c["tie_word_embeddings"] = "no".into()), "boolean"),
        (llama(&|c| c["model_type"] = "qwen3".into()), "lacks the field head_dim"),
        (llama(&|c| c["model_type"] = "mistral".into()), "lacks the field num_key_value_heads"),
    ] {
        std::fs::write(&path, text).unwrap();
        fails(&["--config", path.to_str().unwrap()], 1, &["config.json", says]);
    }
}
