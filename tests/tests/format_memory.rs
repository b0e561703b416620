//! Reading never allocates more than the file's own size justifies.

use kron_adapter::Adapter;
use kron_adapter::gguf::Gguf;
use kron_tests::adapters::seeds;
use kron_tests::gguf::{Tensor, entry, file};
use kron_tests::hostile::{Parts, hostile};
use kron_tests::place::Place;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// The most bytes in use at once while the file is read, and whether it is one.
fn peak(bytes: &[u8]) -> (usize, bool) {
    peak_of(|| Adapter::from_bytes(bytes).is_ok())
}

fn peak_of(read: impl FnOnce() -> bool) -> (usize, bool) {
    let _profiler = dhat::Profiler::builder().testing().build();
    let read = read();
    (dhat::HeapStats::get().max_bytes, read)
}

/// GGUF headers that cost as little to write as they can, each refused at its end.
fn gguf_bombs() -> Vec<(&'static str, Vec<u8>)> {
    let array = |kind: u32, count: usize, item: &[u8]| {
        [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), &item.repeat(count)].concat()
    };
    // A type that does not exist.
    let last = || entry("last", 13, &[]);
    let entries = (0..229_377).map(|i| entry(&format!("{i:x}"), 0, &[7])).chain([last()]);
    // Tensors without bytes of their own: all begin at the end of the file or behind it.
    let tensor = |i| Tensor { name: format!("{i:x}"), shape: vec![1; 4], id: 0, bytes: vec![] };
    let tensors: Vec<Tensor> = (0..100_000).map(tensor).collect();
    let huge = u64::MAX.to_le_bytes();
    let claims = |kind: u32| entry("a", 9, &[&kind.to_le_bytes()[..], &huge].concat());
    vec![
        ("empty texts", file(&[entry("a", 9, &array(8, (1 << 19) + 1, &[0; 8])), last()], &[])),
        ("bytes", file(&[entry("a", 9, &array(0, (2 << 20) + 1, &[1])), last()], &[])),
        ("truth values", file(&[entry("a", 9, &array(7, (2 << 20) + 1, &[1])), last()], &[])),
        ("entries", file(&entries.collect::<Vec<_>>(), &[])),
        ("tensors", file(&[], &tensors)),
        ("one long key", file(&[entry(&"x".repeat(4 << 20), 13, &[])], &[])),
        ("one long text", file(&[entry("a", 8, &kron_tests::gguf::text(&"x".repeat(4 << 20))), last()], &[])),
        ("a long text that is claimed", file(&[entry("a", 8, &huge)], &[])),
        ("texts that are claimed", file(&[claims(8)], &[])),
        ("bytes that are claimed", file(&[claims(0)], &[])),
    ]
}

/// Headers of some megabytes that cost as little to write as they can.
fn bombs() -> Vec<(&'static str, Parts)> {
    let list = |item: &str, count: usize| vec![item; count].join(",");
    let header = |name, header: String| (name, Parts { header, data: vec![] });
    let tensors = |count: usize| {
        let tensor = |i| format!(r#""{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
        (0..count).map(tensor).collect::<Vec<_>>().join(",")
    };
    let own = |json: &str| format!(r#"{{"__metadata__":{{"kron-lora":"{json}"}}}}"#);
    let texts = (0..200_000).map(|i| format!(r#""{i:x}":"""#)).collect::<Vec<_>>().join(",");
    let (_, valid) = seeds().remove(0);
    let valid = Parts::of(&valid.to_bytes().unwrap());
    let layer =
        valid.header.split_once(r#"\"layers\":["#).unwrap().1.split_once(r#"]}"}"#).unwrap().0.to_string();
    let layers = (0..30_000).map(|i| layer.replace(r#"\"q\""#, &format!(r#"\"q{i}\""#))).collect::<Vec<_>>();
    vec![
        ("trained tensors", trained(&valid)),
        header("tensors", format!("{{{}}}", tensors(60_000))),
        header(
            "dimensions",
            format!(r#"{{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[0,0]}}}}"#, list("0", 2_000_000)),
        ),
        header("one long name", format!(r#"{{"{}":1}}"#, "x".repeat(4_000_000))),
        header("metadata", format!(r#"{{"__metadata__":{{{texts}}}}}"#)),
        header("ignored fields", format!(r#"{{"a":{{"x":[{}]}}}}"#, list("[]", 1_000_000))),
        header("deep", format!(r#"{{"a":{{"x":{}"#, "[".repeat(4_000_000))),
        header(
            "targets",
            own(&format!(
                r#"{{\"version\":1,\"target_modules\":[{}],\"layers\":[]}}"#,
                list(r#"\"\""#, 800_000)
            )),
        ),
        header(
            "layers without tensors",
            own(&format!(r#"{{\"version\":1,\"target_modules\":[],\"layers\":[{}]}}"#, layers.join(","))),
        ),
        header("one long dtype", format!(r#"{{"a":{{"dtype":"{}"}}}}"#, "F".repeat(4_000_000))),
        header("one long field", own(&format!(r#"{{\"version\":1,\"{}\":1}}"#, "x".repeat(4_000_000)))),
    ]
}

/// A file of many trained tensors of one value, the last of which is NaN.
fn trained(valid: &Parts) -> Parts {
    let name = |i: usize| format!("{i:x}");
    let count = 60_000;
    let start = valid.data.len();
    let tensors: String = (0..count)
        .map(|i| {
            let at = start + 4 * i;
            format!(r#","{}":{{"dtype":"F32","shape":[1],"data_offsets":[{at},{}]}}"#, name(i), at + 4)
        })
        .collect();
    let names: Vec<String> = (0..count).map(|i| format!(r#"\"{}\""#, name(i))).collect();
    let listed = format!(r#"],\"trained_tensors\":[{}]}}"}}"#, names.join(","));
    let mut parts = valid.edit(r#"\"version\":1"#, r#"\"version\":2"#).edit(r#"]}"}"#, &listed);
    let end = parts.header.trim_end().len() - 1;
    parts.header = format!("{}{tensors}}}", &parts.header[..end]);
    parts.data.resize(start + 4 * count, 0);
    parts.data[start + 4 * (count - 1)..].copy_from_slice(&f32::NAN.to_le_bytes());
    parts
}

// One test: the allocator counts for the whole process.
#[test]
fn the_size_of_the_file_bounds_the_memory_of_reading_it() {
    for case in hostile() {
        let (peak, read) = peak(&case.bytes);
        assert!(!read, "{} was read", case.name);
        assert!(peak <= 16 * case.bytes.len() + (16 << 10), "{}: {peak} of {}", case.name, case.bytes.len());
    }
    for (name, parts) in bombs() {
        let bytes = parts.join();
        let (peak, read) = peak(&bytes);
        eprintln!("{name}: {:.1} of {:.1} MB", peak as f64 / 1e6, bytes.len() as f64 / 1e6);
        assert!(!read, "{name} was read");
        // This one is refused when all else has been read.
        if name == "trained tensors" {
            assert!(Adapter::from_bytes(&bytes).is_err_and(|e| e.to_string().contains(" is NaN")));
        }
        assert!(peak <= 16 * bytes.len(), "{name}: {peak} of {}", bytes.len());
    }
    let place = Place::new();
    for (name, bytes) in gguf_bombs() {
        let path = place.write("model.gguf", &bytes);
        let (peak, read) = peak_of(|| Gguf::open(&path).is_ok());
        eprintln!("GGUF, {name}: {:.1} of {:.1} MB", peak as f64 / 1e6, bytes.len() as f64 / 1e6);
        assert!(!read, "{name} was read");
        assert!(peak <= 16 * bytes.len() + (16 << 10), "GGUF, {name}: {peak} of {}", bytes.len());
    }
    let (_, valid) = seeds().remove(0);
    assert!(peak(&valid.to_bytes().unwrap()).1);
}
