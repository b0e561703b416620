//! Models written as GGUF again: what is kept, what changes, and in which order of rows.

use kron_adapter::Error;
use kron_adapter::gguf::{BlockType, Gguf, HuggingFaceTensor, Value};
use kron_core::Dtype;
use kron_tests::gguf::{Tensor, entry, file, llama_metadata, llama_tensors, seeded, text};
use kron_tests::place::Place;

fn open(place: &Place, bytes: &[u8]) -> Gguf {
    Gguf::open(&place.write("model.gguf", bytes)).unwrap()
}

fn unchanged(_: &HuggingFaceTensor, _: usize, _: &mut [f32]) -> kron_adapter::Result<()> {
    Ok(())
}

fn values(gguf: &mut Gguf, name: &str) -> Vec<f32> {
    let blocks = gguf.blocks(name).unwrap();
    let mut values = vec![0.0; blocks.rows() * blocks.columns()];
    blocks.dequantise(0..blocks.rows(), &mut values).unwrap();
    values
}

/// Factors of scaled rotations, which have no name of Hugging Face.
fn factors(shape: &[u64]) -> Tensor {
    let count = shape.iter().product::<u64>() as usize;
    let bytes = (0..count).flat_map(|i| (1.5 + i as f32).to_le_bytes()).collect();
    Tensor { name: "rope_freqs.weight".into(), shape: shape.into(), id: 0, bytes }
}

/// Scaled rotations and other metadata stay; only what describes the quantisation changes.
#[test]
fn a_model_keeps_its_metadata_and_every_tensor() {
    let place = Place::new();
    let mut metadata = llama_metadata();
    metadata.insert(1, entry("general.file_type", 4, &3u32.to_le_bytes()));
    metadata.insert(2, entry("quantize.imatrix.file", 8, &text("x")));
    metadata.push(entry("llama.rope.scaling.type", 8, &text("linear")));
    metadata.push(entry("general.alignment", 4, &32u32.to_le_bytes()));
    let tensors = [&llama_tensors()[..], &[factors(&[8])]].concat();
    let mut base = open(&place, &file(&metadata, &tensors));
    assert!(base.hugging_face().unwrap_err().message().contains("rope_freqs.weight"));
    let llama = base.llama_tensors().unwrap();
    assert_eq!(llama.all().len() + 1, tensors.len());
    let (mut bytes, counted) = (Vec::new(), std::cell::Cell::new(0));
    let progress = |more| {
        counted.set(counted.get() + more);
        Ok(())
    };
    base.write_gguf(&llama, Dtype::F16, &mut unchanged, &mut bytes, &progress).unwrap();
    assert_eq!(counted.get(), bytes.len() as u64);
    let mut written = Gguf::open(&place.write("written.gguf", &bytes)).unwrap();
    let mut want = base.metadata().clone();
    want.insert("general.file_type".into(), Value::Unsigned(1));
    want.remove("quantize.imatrix.file");
    want.remove("general.alignment");
    assert_eq!(written.metadata(), &want);
    for tensor in &tensors {
        let name = tensor.name.as_str();
        let (got, mut want) = (values(&mut written, name), values(&mut base, name));
        if tensor.shape.len() > 1 {
            want.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32());
        }
        assert!(got == want, "{name}");
        let kind = if tensor.shape.len() > 1 { BlockType::F16 } else { BlockType::F32 };
        assert_eq!(written.tensors()[name].block_type, kind);
    }
    for shape in [&[9][..], &[8, 1], &[1, 8]] {
        let tensors = [&llama_tensors()[..], &[factors(shape)]].concat();
        let error = open(&place, &file(&llama_metadata(), &tensors)).llama_tensors().unwrap_err().to_string();
        assert!(error.contains("rope_freqs.weight") && error.contains("[8] follows"), "{error}");
    }
}

/// Tensors of several bands: rows are given once each and in Hugging Face's order, and end in a GGUF's.
#[test]
fn bands_are_whole_heads_in_hugging_face_s_order() {
    let (place, mut rng) = (Place::new(), seeded(4));
    let (heads, head) = (2049usize, 16);
    let mut metadata = llama_metadata();
    metadata.retain(|entry| !entry.windows(12).any(|part| part == b".head_count\x04".as_slice()));
    metadata.push(entry("llama.attention.head_count", 4, &(heads as u32).to_le_bytes()));
    metadata.push(entry("llama.attention.key_length", 4, &(head as u32).to_le_bytes()));
    let mut tensors = llama_tensors();
    for tensor in &mut tensors {
        let (rows, blocks) = match tensor.name.as_str() {
            "blk.0.attn_q.weight" => (heads * head, 32),
            "blk.0.attn_output.weight" => (32, heads * head),
            _ => continue,
        };
        *tensor = Tensor::random(&tensor.name, BlockType::F16, rows, blocks, &mut rng);
    }
    let mut base = open(&place, &file(&metadata, &tensors));
    let llama = base.llama_tensors().unwrap();
    let mut bands: Vec<(String, usize, usize)> = Vec::new();
    let mut number = |tensor: &HuggingFaceTensor, first: usize, rows: &mut [f32]| {
        let columns = tensor.shape.last().copied().unwrap();
        bands.push((tensor.name.clone(), first, rows.len() / columns));
        if tensor.name.ends_with("q_proj.weight") {
            rows.chunks_exact_mut(columns).zip(first..).for_each(|(row, i)| row[0] = i as f32);
        }
        Ok(())
    };
    let mut bytes = Vec::new();
    base.write_gguf(&llama, Dtype::F32, &mut number, &mut bytes, &|_| Ok(())).unwrap();
    let mut written = Gguf::open(&place.write("written.gguf", &bytes)).unwrap();
    for tensor in llama.all() {
        let mut next = 0;
        let own: Vec<_> = bands.iter().filter(|(name, ..)| *name == tensor.name).collect();
        for (_, first, rows) in &own {
            assert_eq!(*first, next);
            next += rows;
        }
        let columns = tensor.shape.last().unwrap();
        assert_eq!(next, tensor.shape.iter().product::<usize>() / columns, "{}", tensor.name);
        let large = ["q_proj", "o_proj"].iter().any(|part| tensor.name.contains(part));
        assert_eq!(own.len() > 1, large, "{}", tensor.name);
    }
    for tensor in &tensors {
        let (got, mut want) = (values(&mut written, &tensor.name), values(&mut base, &tensor.name));
        if tensor.name == "blk.0.attn_q.weight" {
            for (row, values) in want.chunks_exact_mut(32).enumerate() {
                let (pair, half) = (row % head / 2, row % 2);
                values[0] = (row / head * head + half * (head / 2) + pair) as f32;
            }
        }
        assert!(got == want, "{}", tensor.name);
    }
    let q = llama.find("model.layers.0.self_attn.q_proj.weight").unwrap();
    assert_eq!(base.hugging_face_rows(q, head..3 * head).unwrap().rows(), 2 * head);
    assert!(base.hugging_face_rows(q, 8..24).unwrap_err().message().contains("are not heads of 16"));
    assert!(base.rows("blk.0.attn_q.weight", 0..heads * head + 1).is_err());
    assert!(base.rows("other", 0..1).is_err());
}

#[test]
fn an_error_on_the_way_ends_the_file() {
    let place = Place::new();
    let mut base = open(&place, &file(&llama_metadata(), &llama_tensors()));
    let llama = base.llama_tensors().unwrap();
    let stop = |_| Err(Error::data("stopped"));
    let stopped = base.write_gguf(&llama, Dtype::F32, &mut unchanged, &mut std::io::sink(), &stop);
    assert_eq!(stopped.unwrap_err().to_string(), "stopped");
    let mut refuse =
        |tensor: &HuggingFaceTensor, _: usize, _: &mut [f32]| Err(Error::data(tensor.name.clone()));
    let refused = base.write_gguf(&llama, Dtype::F32, &mut refuse, &mut std::io::sink(), &|_| Ok(()));
    assert_eq!(refused.unwrap_err().to_string(), "model.embed_tokens.weight");
    let full = base.write_gguf(&llama, Dtype::F32, &mut unchanged, &mut &mut [0; 100][..], &|_| Ok(()));
    assert!(full.unwrap_err().to_string().contains("cannot be written"));
    // The file became another one.
    place.write("model.gguf", &vec![0; base.len() as usize]);
    let changed = base.write_gguf(&llama, Dtype::F32, &mut unchanged, &mut std::io::sink(), &|_| Ok(()));
    assert!(changed.unwrap_err().to_string().contains("changed while it was read"));
}
