//! Adapters of others drawn from their grammar: well formed as files, with any sizes, number of modules
//! and patterns. Damage to bytes seldom makes a whole factor empty, or a thousand modules.

use rand::{Rng, RngExt};
use serde_json::{Map, Value, json};

use crate::foreign::{Kind, file, pack, text};

/// Sides of factors; most are small, so that factors often fit.
const SIDES: [usize; 12] = [1, 1, 1, 2, 2, 3, 3, 4, 6, 0, 33, 257];

/// Pieces of patterns.
const PIECES: [&str; 13] =
    ["q", "k_proj", "layers", "0", "1", ".", r"\.", "^", "$", ".*", r"[0-9]+", "[a-z]", "|"];
/// A large one, which takes long to compile.
const LARGE: &str = r"(\w{9}){9}";

/// Draws packed files: a PEFT folder or a LyCORIS file.
pub fn structured(rng: &mut impl Rng) -> Vec<u8> {
    let modules = if rng.random_range(0..32) == 0 { 100 } else { rng.random_range(1..=4) };
    let rank = side(rng);
    let saved = rng.random_range(0..4) == 0;
    let head =
        |rng: &mut _| saved.then(|| ("base_model.model.score.weight".into(), vec![side(rng), side(rng)]));
    match rng.random_range(0..3) {
        0 => pack(Kind::File, &file(&lokr("", modules, None, rng)), &[]),
        1 => {
            let mut tensors = lokr("base_model.model.", modules, Some(rank), rng);
            tensors.extend(head(rng));
            pack(Kind::Peft, &config("LOKR", "alpha", (rank, saved), rng), &file(&tensors))
        }
        _ => {
            let mut tensors = Vec::new();
            for i in 0..modules {
                let name = |part| format!("base_model.model.layers.{i}.q.{part}");
                let (m, n) = (side(rng), side(rng));
                tensors.push((name("lora_A.weight"), vec![changed(rank, rng), n]));
                tensors.push((name("lora_B.weight"), vec![m, changed(rank, rng)]));
                let parts = ["lora_magnitude_vector", "lora_B.bias", "base_layer.bias"];
                let beyond = parts
                    .map(|part| (rng.random_range(0..8) == 0).then(|| (name(part), vec![changed(m, rng)])));
                tensors.extend(beyond.into_iter().flatten());
            }
            if rng.random_range(0..8) == 0 {
                let rows = "base_model.model.layers.0.q.token_adapter.trainable_tokens_delta";
                tensors.push((rows.into(), vec![side(rng), side(rng)]));
            }
            tensors.extend(head(rng));
            pack(Kind::Peft, &config("LORA", "lora_alpha", (rank, saved), rng), &file(&tensors))
        }
    }
}

fn side(rng: &mut impl Rng) -> usize {
    SIDES[rng.random_range(0..SIDES.len())]
}

/// The same side, seldom another.
fn changed(of: usize, rng: &mut impl Rng) -> usize {
    if rng.random_range(0..24) == 0 { side(rng) } else { of }
}

/// Tensors of LoKr modules; a rank of `None` is drawn for each.
fn lokr(prefix: &str, modules: usize, rank: Option<usize>, rng: &mut impl Rng) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    for i in 0..modules {
        let rank = rank.unwrap_or_else(|| side(rng));
        for part in ["lokr_w1", "lokr_w2"] {
            let name = |end| format!("{prefix}layers.{i}.q.{part}{end}");
            let (m, n) = (side(rng), side(rng));
            match rng.random_range(0..16) {
                0 => {}
                1..=8 => tensors.push((name(""), vec![m, n])),
                _ => {
                    tensors.push((name("_a"), vec![m, changed(rank, rng)]));
                    tensors.push((name("_b"), vec![changed(rank, rng), n]));
                }
            }
        }
        if prefix.is_empty() && rng.random() {
            tensors.push((format!("layers.{i}.q.alpha"), vec![]));
            let beyond = [("dora_scale", vec![side(rng), side(rng)]), ("diff", vec![side(rng), side(rng)])];
            let beyond = beyond.into_iter().chain([("w_norm", vec![side(rng)]), ("diff_b", vec![side(rng)])]);
            for (part, shape) in beyond.filter(|_| rng.random_range(0..8) == 0) {
                tensors.push((format!("layers.{i}.q.{part}"), shape));
            }
        }
    }
    tensors
}

/// Draws a configuration of this rank, with or without a head in `modules_to_save`.
fn config(kind: &str, alpha: &str, (rank, saved): (usize, bool), rng: &mut impl Rng) -> Vec<u8> {
    let mut patterns = |value: &Value| {
        let count = if rng.random_range(0..32) == 0 { 500 } else { rng.random_range(0..4) };
        let pattern = |_| {
            let len = rng.random_range(1..=6);
            let piece = |_| match rng.random_range(0..1000) {
                0 => LARGE,
                other => PIECES[other % PIECES.len()],
            };
            ((0..len).map(piece).collect::<String>(), value.clone())
        };
        Value::Object((0..count).map(pattern).collect::<Map<_, _>>())
    };
    let mut fields = json!({ "peft_type": kind, "r": rank, "rank_pattern": patterns(&json!(rank)),
        "alpha_pattern": patterns(&json!(2.5)), "modules_to_save": saved.then_some(["score"]) });
    fields[alpha] = json!(3);
    fields["use_dora"] = json!(rng.random_range(0..4) == 0);
    fields["lora_bias"] = json!(rng.random_range(0..4) == 0);
    if rng.random_range(0..4) == 0 {
        fields["target_parameters"] = json!(["layers.0.q.gate_up", "layers.0.q.down"]);
    }
    if rng.random_range(0..4) == 0 {
        fields["trainable_token_indices"] = json!({ "layers.0.q": (0..side(rng)).collect::<Vec<_>>() });
    }
    text(&fields)
}
