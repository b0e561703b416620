//! Adapter files that must be refused, one for each way of being wrong.

mod terms;

use crate::adapters::seeds;

/// A file that must be refused.
#[derive(Clone, Debug)]
pub struct Hostile {
    /// The fault.
    pub name: &'static str,
    /// The file.
    pub bytes: Vec<u8>,
    /// Text that the message contains.
    pub says: &'static str,
}

/// A safetensors file in two parts; the length in front is made when they are joined.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The JSON.
    pub header: String,
    /// Bytes after it.
    pub data: Vec<u8>,
}

impl Parts {
    /// Takes a valid file apart.
    ///
    /// # Panics
    /// Panics on bytes that are not a safetensors file.
    pub fn of(bytes: &[u8]) -> Self {
        let (len, rest) = bytes.split_first_chunk::<8>().expect("a length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        Self { header: String::from_utf8(header.to_vec()).expect("UTF-8"), data: data.to_vec() }
    }

    /// The file.
    pub fn join(&self) -> Vec<u8> {
        [&(self.header.len() as u64).to_le_bytes(), self.header.as_bytes(), &self.data].concat()
    }

    /// The same with a piece of the header replaced.
    ///
    /// # Panics
    /// Panics unless the piece occurs exactly once: the case would test nothing.
    pub fn edit(&self, piece: &str, by: &str) -> Self {
        assert_eq!(self.header.matches(piece).count(), 1, "{piece} in {}", self.header);
        Self { header: self.header.replace(piece, by), ..self.clone() }
    }

    /// Text between two pieces of the header.
    fn between(&self, before: &str, after: &str) -> String {
        let (_, rest) = self.header.split_once(before).expect("the piece before");
        rest.split_once(after).expect("the piece after").0.into()
    }
}

// The valid file: layer q of 6 × 10 by (a_in 2, a_out 3), r 1.
const A: &str = r#""q.kron_a":{"dtype":"F32","shape":[3,2],"data_offsets":[0,24]}"#;
const B: &str = r#""q.kron_b":{"dtype":"F32","shape":[2,1],"data_offsets":[24,32]}"#;
const C: &str = r#""q.kron_c":{"dtype":"F32","shape":[1,5],"data_offsets":[32,52]}"#;
const OWN: &str = r#""kron-lora":"#;
const MODULE: &str = r#"\"module\":\"q\""#;

/// The file that every case is made from by one change.
fn valid() -> Parts {
    let (_, adapter) = seeds().remove(0);
    Parts::of(&adapter.to_bytes().expect("a valid adapter"))
}

/// All of them.
///
/// # Panics
/// Panics if a case no longer fits the valid file that it is made from.
pub fn hostile() -> Vec<Hostile> {
    let parts = [
        frame(),
        twice(),
        places(),
        tensors(),
        document(),
        shapes(),
        scales(),
        names(),
        numbers(),
        trained(),
        terms::terms(),
    ];
    parts.concat()
}

/// The valid file with a piece of its header replaced.
fn edit(name: &'static str, piece: &str, by: &str, says: &'static str) -> Hostile {
    Hostile { name, bytes: valid().edit(piece, by).join(), says }
}

/// The valid file with other data.
fn data(name: &'static str, change: impl Fn(&mut Vec<u8>), says: &'static str) -> Hostile {
    let mut parts = valid();
    change(&mut parts.data);
    Hostile { name, bytes: parts.join(), says }
}

/// Another header, without data.
fn whole(name: &'static str, json: impl Into<String>, says: &'static str) -> Hostile {
    Hostile { name, bytes: Parts { header: json.into(), data: vec![] }.join(), says }
}

/// Length, JSON, and nothing in between.
fn frame() -> Vec<Hostile> {
    let raw = |name, bytes: &[u8], says| Hostile { name, bytes: bytes.to_vec(), says };
    let length = |name, len: u64, says| {
        let mut bytes = valid().join();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        Hostile { name, bytes, says }
    };
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let ignored = format!(r#"{{"a":{{"x":{}}}}}"#, deep("[", "]"));
    vec![
        raw("no byte", b"", "is 0 bytes long"),
        raw("seven bytes", b"\x10\0\0\0\0\0\0", "is 7 bytes long"),
        raw("length alone", &8u64.to_le_bytes(), "cut short"),
        raw("header that is not UTF-8", b"\x04\0\0\0\0\0\0\0{\"\xff\"", "not safetensors JSON"),
        length("header length of 2⁶⁴ − 1", u64::MAX, "header of 18446744073709551615 bytes"),
        length("header length of 2⁶³", 1 << 63, "header of 9223372036854775808 bytes"),
        length("header length above the limit", (1 << 24) + 1, "limit is 16777216"),
        length("header length past the end", 1 << 20, "cut short"),
        length("header length of 0", 0, "not safetensors JSON"),
        length("header cut by its length", 100, "not safetensors JSON"),
        whole("header that is a list", "[]", "expected a map of tensors"),
        whole("header that is a number", "1e9", "expected a map of tensors"),
        whole("empty map", "{}", "has no __metadata__"),
        whole("text after the header", "{} {}", "trailing characters"),
        whole("deep lists", deep("[", "]"), "not safetensors JSON"),
        whole("deep maps", deep("{\"a\":", "}"), "not safetensors JSON"),
        whole("deep lists in an ignored field", ignored, "not safetensors JSON"),
    ]
}

/// Names that occur twice: which one counts would depend on the reader.
fn twice() -> Vec<Hostile> {
    let elsewhere = C.replace("32,52", "52,72");
    let layer = valid().between(r#"\"layers\":["#, r#"]}"}"#);
    let layers = r#"\"layers\":["#;
    vec![
        edit("tensor twice", B, &format!("{B},{B}"), r#""q.kron_b" occurs twice"#),
        edit("tensor twice, elsewhere", C, &format!("{C},{elsewhere}"), r#""q.kron_c" occurs twice"#),
        edit("metadata twice", A, &format!(r#""__metadata__":{{}},{A}"#), r#""__metadata__" occurs twice"#),
        edit("key of metadata twice", OWN, &format!(r#"{OWN}"",{OWN}"#), r#""kron-lora" occurs twice"#),
        edit("field twice", MODULE, &format!("{MODULE},{MODULE}"), "duplicate field `module`"),
        edit("layer twice", layers, &format!("{layers}{layer},"), r#"two layers of module "q""#),
    ]
}

/// Wrong positions of the tensors.
fn places() -> Vec<Hostile> {
    // Eight tensors of 2⁶¹ − 1 bytes end at 2⁶⁴ − 8: any sum with that end overflows.
    let size = (1u64 << 61) - 1;
    let huge = (0..8).map(|i| {
        let (start, end) = (i * size, (i + 1) * size);
        format!(r#""{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#)
    });
    let huge = format!("{{{}}}", huge.collect::<Vec<_>>().join(","));
    let backwards = [B.replace("[24,32]", "[0,8]"), A.replace("[0,24]", "[8,32]")];
    vec![
        edit("offset of 2⁶⁴ − 1", "[32,52]", "[32,18446744073709551615]", "cut short"),
        edit("offset of 2⁶⁴", "[32,52]", "[32,18446744073709551616]", "not safetensors JSON"),
        edit("negative offset", "[0,24]", "[-24,0]", "not safetensors JSON"),
        edit("fractional offset", "[0,24]", "[0.0,24.0]", "not safetensors JSON"),
        edit("three offsets", "[0,24]", "[0,24,24]", "not safetensors JSON"),
        edit("offsets backwards", "[0,24]", "[24,0]", "24..0"),
        edit("offset past the end", "[32,52]", "[32,56]", "32..56 of 52 bytes"),
        edit("overlap", "[24,32]", "[20,28]", "invalid offset"),
        edit("gap", "[24,32]", "[28,32]", "invalid offset"),
        edit("same place twice", "[32,52]", "[24,32]", "breaks safetensors' rules"),
        edit("factors in another order", &format!("{A},{B}"), &backwards.join(","), "follow each other"),
        whole("offsets whose sum overflows", huge, "cut short"),
        data("a byte missing", |d| d.truncate(51), "32..52 of 51 bytes"),
        data("no data", |d| d.clear(), "0..24 of 0 bytes"),
        data("a byte too many", |d| d.push(0), "end at 52 of 53 bytes"),
        data("data twice", |d| d.extend_from_within(..), "end at 52 of 104 bytes"),
    ]
}

/// Names, dtypes and dimensions of the tensors.
fn tensors() -> Vec<Hostile> {
    let empty = format!(r#""q.bias":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},{A}"#);
    let many = format!("[3,2{}]", ",1".repeat(5000));
    let mut half = valid().edit("[0,24]", "[0,12]").edit("[24,32]", "[12,16]").edit("[32,52]", "[16,26]");
    half.header = half.header.replace("F32", "BF16");
    half.data.truncate(26);
    vec![
        Hostile { name: "bfloat16", bytes: half.join(), says: "in BF16, but factors are F32" },
        edit("integers", B, &B.replace("F32", "I32"), r#""q.kron_b" in I32"#),
        edit("unknown dtype", B, &B.replace("F32", "F7"), "unknown variant `F7`"),
        edit("transposed", "[3,2]", "[2,3]", "of 2 × 3, but its layer needs 3 × 2"),
        edit("one dimension", "[3,2]", "[6]", "of 6, but"),
        edit("three dimensions", "[3,2]", "[3,2,1]", "of 3 × 2 × 1, but"),
        edit("5002 dimensions", "[3,2]", &many, "of 5002 dimensions, but"),
        edit("dimensions that overflow", "[3,2]", "[9223372036854775807,4]", "overflow"),
        edit("dimension of 0", "[2,1]", "[0,1]", "breaks safetensors' rules"),
        edit("missing factor", B, &B.replace("kron_b", "kron_x"), r#"lacks the tensor "q.kron_b""#),
        edit("factor of another kind", C, &C.replace("kron_c", "kron_m"), r#"lacks the tensor "q.kron_c""#),
        edit("extra tensor of no bytes", A, &empty, r#""q.bias" that belongs to no layer"#),
        edit("LoRA that brings an A", r#"\"trained\""#, r#"\"one\""#, "outer factor is the number 1"),
    ]
}

/// Faults of the JSON document in the metadata.
fn document() -> Vec<Hostile> {
    let metadata = valid().between(r#""__metadata__":"#, &format!(",{A}"));
    let layer = valid().between(r#"\"layers\":["#, r#"]}"}"#);
    let empty = r#"{"__metadata__":{"kron-lora":"{\"version\":1,\"target_modules\":[],\"layers\":[]}"}}"#;
    let deep = format!(r#"{OWN}"{}","x":"#, "[".repeat(100_000));
    let version = r#"\"version\":1"#;
    vec![
        edit("no metadata", "\"__metadata__\"", "\"metadata\"", "not safetensors JSON"),
        edit("metadata that is null", &metadata, "null", "expected a map of strings"),
        edit("metadata that is not text", OWN, &format!(r#""n":1,{OWN}"#), "expected a string"),
        edit("no key of ours", OWN, r#""lora":"#, "has no key kron-lora"),
        edit("document that is not JSON", OWN, &format!(r#"{OWN}"no","x":"#), "breaks the format"),
        edit("deep document", OWN, &deep, "breaks the format"),
        edit("version 0", version, r#"\"version\":0"#, "is of version 0"),
        edit("version 5", version, r#"\"version\":5,\"new\":[]"#, "reads versions 1 to 4"),
        edit("version as text", version, r#"\"version\":\"1\""#, "breaks the format"),
        edit("no version", r#"\"version\":1,"#, "", "missing field `version`"),
        edit("unknown field", MODULE, &format!(r#"\"dropout\":0.1,{MODULE}"#), "unknown field `dropout`"),
        edit(
            "escape in a field",
            MODULE,
            &format!(r#"\"\\u001b[2J\":1,{MODULE}"#),
            "unknown field `\u{fffd}[2J`",
        ),
        edit("missing field", r#"\"a_in\":2,"#, "", "missing field `a_in`"),
        edit("tensors of no layer", &layer, "", "belongs to no layer"),
        whole("no layer and no tensor", empty, "an adapter of 0 layers"),
    ]
}

/// Shapes that cannot be, or that the tensors do not have.
fn shapes() -> Vec<Hostile> {
    let rank = r#"{\"rank\":1}"#;
    let d_out = r#"\"d_out\":6"#;
    vec![
        edit("a_out that does not divide", r#"\"a_out\":3"#, r#"\"a_out\":4"#, "does not divide d_out = 6"),
        edit("a_in of 0", r#"\"a_in\":2"#, r#"\"a_in\":0"#, "a_in is 0"),
        edit("rank 0", rank, r#"{\"rank\":0}"#, "rank is 0"),
        edit("rank 2⁶³", rank, r#"{\"rank\":9223372036854775808}"#, "above the limit of"),
        edit("rank of a billion", rank, r#"{\"rank\":1000000000}"#, "needs 2 × 1000000000"),
        edit("d_in of 2⁴⁰", r#"\"d_in\":10"#, r#"\"d_in\":1099511627776"#, "needs 1 × 549755813888"),
        edit("d_out of 2⁶⁴", d_out, r#"\"d_out\":18446744073709551616"#, "breaks the format"),
        edit("negative d_out", d_out, r#"\"d_out\":-6"#, "breaks the format"),
        edit("unknown inner factor", rank, r#"\"half\""#, "unknown variant `half`"),
    ]
}

fn scales() -> Vec<Hostile> {
    let alpha = r#"\"alpha\":8.0"#;
    vec![
        edit("alpha NaN", alpha, r#"\"alpha\":NaN"#, "breaks the format"),
        edit("alpha null", alpha, r#"\"alpha\":null"#, "breaks the format"),
        edit("alpha as text", alpha, r#"\"alpha\":\"8\""#, "breaks the format"),
        edit("alpha beyond float64", alpha, r#"\"alpha\":1e999"#, "out of range"),
        edit("alpha beyond float32", alpha, r#"\"alpha\":1e39"#, "out of range"),
        edit("alpha over rank 0", r#"\"alpha_rank\":1"#, r#"\"alpha_rank\":0"#, "over rank 0"),
        edit("unknown rule", r#"\"alpha/r\""#, r#"\"alpha\""#, "unknown variant `alpha`"),
    ]
}

/// Names that could mean something elsewhere.
fn names() -> Vec<Hostile> {
    let target = r#"\"target_modules\":["#;
    vec![
        renamed("path upwards", "../../etc/passwd"),
        renamed("absolute path", "/etc/passwd"),
        renamed("folder", "layers/0"),
        renamed("Windows path", "c:\\x"),
        renamed("two dots", "layers..0"),
        renamed("dot in front", ".q"),
        renamed("no name", ""),
        renamed("blank", "q q"),
        renamed("NUL", "q\0"),
        renamed("line feed", "q\nq"),
        renamed("Cyrillic letter", "ԛ"),
        renamed("513 bytes", &"x".repeat(513)),
        edit("empty target", target, &format!(r#"{target}\"\""#), "target module \"\" is refused"),
        edit("target with an escape", target, &format!(r#"{target}\"\\u001b[2J\""#), "is refused"),
    ]
}

/// The valid file, consistent but for the name of its module.
fn renamed(name: &'static str, module: &str) -> Hostile {
    let json = |text: &str| serde_json::to_string(text).expect("JSON of a text");
    let twice = json(&json(module));
    let mut parts = valid().edit(MODULE, &format!(r#"\"module\":{}"#, &twice[1..twice.len() - 1]));
    for factor in ["kron_a", "kron_b", "kron_c"] {
        parts = parts.edit(&format!(r#""q.{factor}""#), &json(&format!("{module}.{factor}")));
    }
    Hostile { name, bytes: parts.join(), says: "is refused: a module's name is" }
}

fn numbers() -> Vec<Hostile> {
    let put = |at: usize, v: f32| move |d: &mut Vec<u8>| d[4 * at..][..4].copy_from_slice(&v.to_le_bytes());
    vec![
        data("NaN", put(1, f32::NAN), "value 1 of θ of q is NaN"),
        data("infinity", put(12, f32::NEG_INFINITY), "value 12 of θ of q is -inf"),
    ]
}

/// Faults of trained tensors, in version 2: beside layer q, gain of no dimension, head.bias [3], head.weight [3, 2].
fn trained() -> Vec<Hostile> {
    let seeds = seeds();
    let (_, adapter) = seeds.iter().find(|(name, _)| *name == "head").expect("a seed");
    let whole = Parts::of(&adapter.to_bytes().expect("a valid adapter"));
    let edit =
        |name, piece: &str, by: &str, says| Hostile { name, bytes: whole.edit(piece, by).join(), says };
    let renamed = |name, to: &str, says| {
        let parts = whole.edit(r#"\"gain\""#, &format!(r#"\"{to}\""#));
        Hostile { name, bytes: parts.edit(r#""gain":"#, &format!(r#""{to}":"#)).join(), says }
    };
    let names = r#"\"trained_tensors\":[\"gain\",\"head.bias\",\"head.weight\"]"#;
    let bias = r#"\"head.bias\","#;
    let shape = |name, shape: &str, says| edit(name, r#""shape":[]"#, &format!(r#""shape":{shape}"#), says);
    let rows = |name, version: u64, rows: &str, says| {
        let parts = whole.edit(r#"\"version\":2"#, &format!(r#"\"version\":{version}"#));
        let by = format!(r#"{names},\"trained_rows\":{rows}"#);
        Hostile { name, bytes: parts.edit(names, &by).join(), says }
    };
    let mut not_a_number = whole.clone();
    let last = not_a_number.data.len() - 4;
    not_a_number.data[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let half = whole.edit(r#"{"dtype":"F32","shape":[]"#, r#"{"dtype":"BF16","shape":[2]"#);
    vec![
        edit(
            "trained tensors in version 1",
            r#"\"version\":2"#,
            r#"\"version\":1"#,
            "has the fields of version 2",
        ),
        edit("no trained tensors in version 2", &format!(",{names}"), "", "has the fields of version 1"),
        edit("empty list of trained tensors", names, r#"\"trained_tensors\":[]"#, "that name none"),
        edit("trained tensors that are null", names, r#"\"trained_tensors\":null"#, "breaks the format"),
        edit("trained tensors that are a map", names, r#"\"trained_tensors\":{}"#, "breaks the format"),
        edit(
            "trained tensor that is not listed",
            bias,
            "",
            r#""head.bias" that belongs to no layer and is not among the trained tensors"#,
        ),
        edit(
            "trained tensor that is missing",
            bias,
            r#"\"head.b\","#,
            r#"lacks the trained tensor "head.b""#,
        ),
        edit("trained tensor listed twice", bias, &bias.repeat(2), r#"trained tensor "head.bias" twice"#),
        edit("factor listed as trained", bias, &format!(r#"\"q.kron_a\",{bias}"#), r#""q.kron_a" twice"#),
        Hostile {
            name: "trained bfloat16",
            bytes: half.join(),
            says: "in BF16, but trained tensors are F32",
        },
        shape("trained tensor of 9 dimensions", "[1,1,1,1,1,1,1,1,1]", "has 9 dimensions"),
        shape(
            "trained tensor of 5000 dimensions",
            &format!("[1{}]", ",1".repeat(4999)),
            "has 5000 dimensions",
        ),
        shape("trained tensor of another size", "[2]", "breaks safetensors' rules"),
        renamed("trained tensor in a layer's module", "q.gain", "lies in module \"q\", which has a layer"),
        renamed("trained tensor below a layer's module", "q.x.bias", "lies in module \"q\""),
        renamed("trained tensor named as a layer's module", "q", "lies in module \"q\""),
        renamed("trained tensor with a path", "../gain", "a trained tensor's name is"),
        renamed("trained tensor without a name", "", "a trained tensor's name is"),
        renamed("trained tensor of 513 bytes", &"x".repeat(513), "a trained tensor's name is"),
        rows("rows in version 2", 2, r#"{\"head.weight\":[0,1,2]}"#, "has the fields of version 3"),
        rows("rows that are null", 3, "null", "breaks the format"),
        rows("rows of nothing", 3, "{}", "that name none"),
        rows("rows of no tensor", 3, r#"{\"head\":[0,1,2]}"#, "\"head\", which is no trained tensor"),
        rows("rows of a vector", 3, r#"{\"head.bias\":[0,1,2]}"#, "trained_rows has other rows"),
        rows("two rows for three", 3, r#"{\"head.weight\":[0,1]}"#, "trained_rows has other rows"),
        rows("rows of one index", 3, r#"{\"head.weight\":[1,0,1]}"#, "two rows of one index"),
        rows("rows below 0", 3, r#"{\"head.weight\":[-1,0,1]}"#, "breaks the format"),
        Hostile {
            name: "NaN in a trained tensor",
            bytes: not_a_number.join(),
            says: "value 5 of head.weight is NaN",
        },
    ]
}
