//! Small files that ask for much: each command answers within a second and 200 MB.
#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::adapters::dir;
use crate::golden::kron;

/// Address space of a command in KiB, beside that of the program's own file.
pub(crate) const MEMORY: u64 = 200_000_000 >> 10;
/// Seconds of one core: one in the release build. The dev profile optimises this program little.
pub(crate) const SECONDS: u64 = if cfg!(debug_assertions) { 6 } else { 1 };

/// Runs the program within these limits, and asserts an answer or one short sentence.
pub(crate) fn run_within(seconds: u64, memory: u64, args: &[&str]) -> Output {
    let program = kron().get_program().to_owned();
    let memory = memory + (std::fs::metadata(&program).expect("the program").len() >> 10);
    let limits = format!("ulimit -v {memory}; ulimit -t {seconds}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limits, "sh"]).arg(program).args(args);
    // Each thread may reserve an arena of 64 MiB.
    command.env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "1");
    let run = command.output().expect("a shell");
    let err = String::from_utf8_lossy(&run.stderr);
    let args: Vec<String> = args.iter().map(|arg| arg.chars().take(200).collect()).collect();
    assert!(matches!(run.status.code(), Some(0..=2)), "{args:?}: {} {err:.500}", run.status);
    let answered = run.status.success() && err.is_empty();
    let refused = err.starts_with("error: ") && err.lines().count() == 1 && err.len() < 5000;
    assert!((answered || refused) && !err.contains("panicked"), "{args:?}: {err:.5000}");
    run
}

/// A tensor's name, rows and columns.
pub(crate) type Shape = (String, usize, usize);

/// A safetensors file of float32 numbers near 1.
pub(crate) fn file(tensors: &[Shape]) -> Vec<u8> {
    let (mut header, mut at) = (String::from("{"), 0);
    for (name, rows, cols) in tensors {
        let end = at + 4 * rows * cols;
        let comma = if header.len() > 1 { "," } else { "" };
        header += &format!(
            r#"{comma}"{name}":{{"dtype":"F32","shape":[{rows},{cols}],"data_offsets":[{at},{end}]}}"#
        );
        at = end;
    }
    header.push('}');
    let numbers = (0..at / 4).flat_map(|i| (1.0 + (i * i % 1009) as f32 / 1009.0).to_le_bytes());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()]
        .concat()
        .into_iter()
        .chain(numbers)
        .collect()
}

fn lycoris(layers: impl IntoIterator<Item = Vec<(&'static str, usize, usize)>>) -> Vec<u8> {
    let layers = layers.into_iter().enumerate();
    let name = |i: usize, part: &str| format!("l{i:05}.{part}");
    let tensors =
        layers.flat_map(|(i, parts)| parts.into_iter().map(move |(part, m, n)| (name(i, part), m, n)));
    file(&tensors.collect::<Vec<_>>())
}

/// A PEFT folder with the fields of a configuration.
pub(crate) fn peft(path: &Path, fields: Value, tensors: &[Shape]) {
    std::fs::create_dir(path).expect("a folder");
    let mut config = json!({ "r": 1 });
    config.as_object_mut().expect("a map").extend(fields.as_object().expect("a map").clone());
    std::fs::write(path.join("adapter_config.json"), serde_json::to_vec(&config).expect("JSON"))
        .expect("written");
    std::fs::write(path.join("adapter_model.safetensors"), file(tensors)).expect("written");
}

/// LoRAs of rank 1 on so many modules of 1 × 1.
fn loras(path: &Path, count: usize, pattern: impl Fn(usize) -> Option<String>) {
    let name = |i: usize, part: &str| format!("base_model.model.{}.{part}.weight", module(i));
    let tensors: Vec<Shape> =
        (0..count).flat_map(|i| [(name(i, "lora_A"), 1, 1), (name(i, "lora_B"), 1, 1)]).collect();
    let patterns: serde_json::Map<_, _> =
        (0..count).filter_map(|i| Some((pattern(i)?, json!(2.0 + i as f64)))).collect();
    peft(path, json!({ "peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": patterns }), &tensors);
}

fn module(i: usize) -> String {
    format!("model.layers.{}.self_attn.{}_proj", i / 4, ["q", "k", "v", "o"][i % 4])
}

/// One LoRA with many patterns.
fn patterned(path: &Path, patterns: impl IntoIterator<Item = String>) {
    let name = |part: &str| format!("base_model.model.q.{part}.weight");
    let patterns: serde_json::Map<_, _> = patterns.into_iter().map(|key| (key, json!(2.0))).collect();
    let fields = json!({ "peft_type": "LORA", "lora_alpha": 1, "alpha_pattern": patterns });
    peft(path, fields, &[(name("lora_A"), 1, 5), (name("lora_B"), 3, 1)]);
}

/// Adapters of less than 1 MB, by name.
fn small(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut made = Vec::new();
    let mut add = |name: &'static str, bytes: Vec<u8>| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).expect("written");
        made.push((name, path));
    };
    let w2 = ("lokr_w2", 1, 1);
    for (m, k, n) in [(2, 0, 2), (0, 2, 2), (2, 2, 0), (0, 0, 0), (1000, 0, 1000)] {
        let name: &'static str = format!("empty {m} {k} {n}").leak();
        add(name, lycoris([vec![("lokr_w1_a", m, k), ("lokr_w1_b", k, n), w2]]));
        let name: &'static str = format!("empty w2 {m} {k} {n}").leak();
        add(name, lycoris([vec![("lokr_w1", 1, 1), ("lokr_w2_a", m, k), ("lokr_w2_b", k, n)]]));
    }
    let product = |n: usize, r: usize| vec![("lokr_w1_a", n, r), ("lokr_w1_b", r, n), w2];
    add("products", lycoris((0..60).map(|_| product(1600, 1))));
    add("one product", lycoris([product(90_000, 1)]));
    add("product of rank 1", lycoris([product(2000, 1)]));
    add("product of rank 40", lycoris([product(2800, 40)]));
    add("products of rank 8", lycoris((0..16).map(|_| product(700, 8))));
    add("large w1", lycoris([vec![("lokr_w1", 490, 490), w2]]));
    add("large w2", lycoris([vec![("lokr_w1", 1, 1), ("lokr_w2", 490, 490)]]));
    add("many w1", lycoris((0..60).map(|_| vec![("lokr_w1", 64, 64), w2])));
    add("many small w1", lycoris((0..240).map(|_| vec![("lokr_w1", 32, 32), w2])));
    add("both large", lycoris([vec![("lokr_w1", 340, 340), ("lokr_w2", 340, 340)]]));
    let inner =
        |r: usize, m: usize, n: usize| vec![("lokr_w1", 1, 1), ("lokr_w2_a", m, r), ("lokr_w2_b", r, n)];
    add("high rank", lycoris([inner(340, 340, 340)]));
    add("rank above the sides", lycoris([inner(100_000, 1, 1)]));
    add("rank between the sides", lycoris([inner(500, 1, 490)]));
    let amplified = vec![("lokr_w1", 300, 300), ("lokr_w2_a", 200, 200), ("lokr_w2_b", 200, 200)];
    add("large LoRA", lycoris([amplified]));
    for (name, [w1, w2]) in [
        ("many pieces", [(45, 5500), (600, 1)]),
        ("many pieces, split another way", [(45, 2750), (600, 2)]),
        ("pieces again", [(45, 5500), (1200, 1)]),
        ("pieces again, split another way", [(90, 2750), (600, 2)]),
    ] {
        add(name, lycoris([vec![("lokr_w1", w1.0, w1.1), ("lokr_w2", w2.0, w2.1)]]));
    }
    // One module of one size in two splits, and as a LoRA.
    add("split one way", lycoris([vec![("lokr_w1", 300, 300), ("lokr_w2", 200, 200)]]));
    add("split another way", lycoris([vec![("lokr_w1", 200, 200), ("lokr_w2", 300, 300)]]));
    let one = |i: usize| if i == 0 { inner(300, 300, 300) } else { inner(1, 1, 1) };
    add("uniform", lycoris((0..2000).map(one)));
    add("splits", lycoris((0..120).map(|i| vec![("lokr_w1", 700 + i, 1), ("lokr_w2", 900 + i, 1)])));
    add("long name", file(&[("x".repeat(900_000) + ".lokr_w1", 1, 1)]));
    add(
        "long names",
        file(&[("x".repeat(400_000) + ".lokr_w1_a", 2, 3), ("x".repeat(400_000) + ".lokr_w1_b", 1, 2)]),
    );
    add("many tensors", file(&(0..9000).map(|i| (format!("l{i}.lokr_w1"), 1, 1)).collect::<Vec<_>>()));
    let folder = |name: &str| dir.join(name);
    let mut add = |name: &'static str, write: &dyn Fn(&Path)| {
        write(&folder(name));
        made.push((name, folder(name)));
    };
    add("regexes", &|path| patterned(path, (0..2000).map(|i| format!(r"(a|{i}){{200}}\w*"))));
    add("classes", &|path| patterned(path, [r"\w".repeat(4000)]));
    add("many classes", &|path| patterned(path, [r"\w".repeat(400_000)]));
    add("repetition", &|path| patterned(path, ["((a{99}){99}){99}".to_string()]));
    add("alternatives", &|path| patterned(path, [vec!["a.*b"; 1600].join("|")]));
    add("large factors to fit", &|path| {
        let name = |part: &str| format!("base_model.model.q.{part}.weight");
        let sides = [(name("lora_A"), 60, 2000), (name("lora_B"), 2000, 60)];
        peft(path, json!({ "peft_type": "LORA", "r": 60, "lora_alpha": 1 }), &sides);
    });
    add("masks", &|path| {
        patterned(path, (0..20_000u32).map(|i| format!("{i:015b}").replace('0', ".").replace('1', "a")));
    });
    add("exact patterns", &|path| loras(path, 3000, |i| Some(format!("^{}", module(i).replace('.', r"\.")))));
    add("names as patterns", &|path| loras(path, 3000, |i| Some(module(i))));
    add("regexes on many layers", &|path| {
        loras(path, 4000, |i| (i < 100).then(|| format!(r"layers\.{i}\d*\..*(k|q)_proj")));
    });
    made
}

#[test]
fn a_small_file_costs_little() {
    let dir = dir();
    let files = small(dir.path());
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let (mut answered, mut refused) = (0, 0);
    for (at, (name, path)) in files.iter().enumerate() {
        let (path, other) = (path.to_str().unwrap(), files[(at + 1) % files.len()].1.to_str().unwrap());
        for args in [
            vec!["inspect", path],
            vec!["convert", path, out, "--force"],
            vec!["export", "--lora", path, out],
            vec!["export", "--lora", path, out, "--uniform"],
            vec!["convert", path, out, "--to", "peft-lokr"],
            vec!["convert", path, out, "--to", "lycoris", "--force"],
            vec!["convert", path, out, "--fit", "--a-out", "1", "--a-in", "5", "--rank", "1", "--force"],
            vec!["inspect", path, "--html", out],
            vec!["diff", path, path],
            vec!["diff", path, other],
            vec!["quantise", path, "--bits", "4"],
        ] {
            let begun = std::time::Instant::now();
            let run = run_within(SECONDS, MEMORY, &args);
            eprintln!(
                "{name}: {} {:?} {:.160}",
                args[0],
                begun.elapsed(),
                String::from_utf8_lossy(&run.stderr)
            );
            if run.status.success() {
                answered += 1
            } else {
                refused += 1
            }
            let place = Path::new(out);
            let _ = if place.is_dir() { std::fs::remove_dir_all(place) } else { std::fs::remove_file(place) };
        }
    }
    assert!(answered > 60 && refused > 60, "{answered} answered, {refused} refused");
}

/// A thousand times as many layers as a model has take a thousand times as long, not a million times.
#[test]
fn a_hundred_thousand_layers_take_seconds() {
    const LAYERS: usize = 100_000;
    /// Ten in the release build.
    const SECONDS: u64 = if cfg!(debug_assertions) { 60 } else { 10 };
    let dir = dir();
    let [path, exact, out] = ["layers", "exact", "out"].map(|name| dir.path().join(name));
    loras(&path, LAYERS, |i| (i % 2 == 0).then(|| module(i)));
    loras(&exact, LAYERS, |i| (i % 2 == 0).then(|| format!("^{}", module(i).replace('.', r"\."))));
    let [path, exact, out] = [&path, &exact, &out].map(|path| path.to_str().unwrap());
    for args in [
        vec!["inspect", path],
        vec!["inspect", exact, "--json"],
        vec!["diff", path, exact],
        vec!["export", "--lora", path, out],
        vec!["quantise", path, "--bits", "4"],
    ] {
        let begun = std::time::Instant::now();
        let run = run_within(SECONDS, 4 * MEMORY, &args);
        eprintln!("{} {:?}", args[0], begun.elapsed());
        assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
    }
}
