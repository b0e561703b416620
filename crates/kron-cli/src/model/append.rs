//! Texts of a model with one tensor more: a shard's header, and the index of shards.

use serde_json::{Value, json};

/// Returns the header of a safetensors file, length and JSON, with one tensor more. The JSON is valid and not empty.
pub fn header(header: &[u8], name: &str, dtype: &str, shape: &[usize], offsets: (u64, u64)) -> Vec<u8> {
    let json = header[8..].trim_ascii_end();
    let json = json.strip_suffix(b"}").unwrap_or(json);
    let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [offsets.0, offsets.1] });
    let comma = if json.trim_ascii_end().ends_with(b"{") { "" } else { "," };
    let entry = format!("{comma}{}:{entry}}}", Value::from(name));
    // The data are aligned to 8 bytes by spaces after the JSON.
    let len = (json.len() + entry.len()).next_multiple_of(8);
    let spaces = vec![b' '; len - json.len() - entry.len()];
    [&(len as u64).to_le_bytes(), json, entry.as_bytes(), &spaces].concat()
}

/// Returns the text of an index with one tensor more in this shard.
///
/// # Errors
/// The text is no index.
pub fn index(text: &[u8], tensor: &str, shard: &str, bytes: u64) -> Result<Vec<u8>, String> {
    let mut value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let map = value.get_mut("weight_map").and_then(Value::as_object_mut).ok_or("it has no weight_map")?;
    map.insert(tensor.into(), shard.into());
    if let Some(size) = value.get_mut("metadata").and_then(|metadata| metadata.get_mut("total_size"))
        // Some programs write it as a float.
        && let Some(old) = size.as_u64().or_else(|| size.as_f64().map(|old| old as u64))
    {
        *size = (old + bytes).into();
    }
    let mut text = serde_json::to_vec_pretty(&value).map_err(|e| e.to_string())?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_one_tensor_more() {
        for size in ["8", "8.0"] {
            let text =
                format!(r#"{{"metadata":{{"total_size":{size}}},"weight_map":{{"a":"m.safetensors"}}}}"#);
            let new: Value =
                serde_json::from_slice(&index(text.as_bytes(), "b", "m.safetensors", 12).unwrap()).unwrap();
            let map = json!({ "a": "m.safetensors", "b": "m.safetensors" });
            assert_eq!(new, json!({ "metadata": { "total_size": 20 }, "weight_map": map }));
        }
    }

    #[test]
    fn a_header_has_one_tensor_more() {
        let old =
            br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   "#;
        let old = [&(old.len() as u64).to_le_bytes()[..], old].concat();
        let new = header(&old, "b\"c", "BF16", &[2, 3], (8, 20));
        let (len, json) = new.split_first_chunk::<8>().expect("a length");
        assert_eq!((u64::from_le_bytes(*len), json.len() % 8), (json.len() as u64, 0));
        let json: Value = serde_json::from_slice(json).expect("JSON");
        assert_eq!(json["b\"c"], json!({ "dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20] }));
        assert_eq!(
            (json.as_object().map(|map| map.len()), &json["__metadata__"]["format"]),
            (Some(3), &json!("pt"))
        );
    }
}
