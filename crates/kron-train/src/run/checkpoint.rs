//! State of a run in one safetensors file, written atomically: the trained variables, both moments of each,
//! the step, the scale of the loss, and the settings.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use kron_adapter::Tensors;
use kron_adapter::elements::decode;
use kron_adapter::io::{self, write_atomic};
use kron_candle::{AdamW, IfExists};
use safetensors::tensor::{Dtype, TensorView};
use xxhash_rust::xxh3::xxh3_64;

use super::learner::NamedGroup;
use super::loss_scale::LossScale;
use crate::config::Config;
use crate::error::{Result, file, invalid};
use crate::files;

/// Keys of the file's metadata.
const STEP: &str = "step";
const SETTINGS: &str = "settings";
const SUM: &str = "xxh3";
const SCALE: &str = "loss_scale";

/// Writes variables, moments and the number of steps taken.
///
/// # Errors
/// The file cannot be written; an earlier checkpoint is then unchanged.
pub fn write(
    path: &Path,
    config: &Config,
    trained: &[NamedGroup],
    optimizer: &AdamW,
    scale: LossScale,
) -> Result<()> {
    let (step, moments) = optimizer.state();
    let mut parts = Vec::new();
    for ((name, group), [m, v]) in trained.iter().zip(moments) {
        for (kind, tensor) in [("value", group.var().as_tensor()), ("m", m), ("v", v)] {
            let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            parts.push((format!("{name}/{kind}"), tensor.dims().to_vec(), bytes));
        }
    }
    let views = parts.iter().map(|(name, dims, bytes)| {
        let view = TensorView::new(Dtype::F32, dims.clone(), bytes).map_err(|e| file(path, e))?;
        Ok((name.clone(), view))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let mut metadata: HashMap<String, String> =
        HashMap::from([(STEP.into(), step.to_string()), (SETTINGS.into(), settings(config)?)]);
    metadata.extend(scale.text().map(|scale| (SCALE.into(), scale)));
    let contents = views.iter().map(|(name, view)| (name.as_str(), view.data()));
    let entries = metadata.iter().map(|(key, text)| (key.as_str(), text.as_str()));
    let sum = checksum(entries, contents);
    metadata.insert(SUM.into(), sum);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| file(path, e))?;
    Ok(write_atomic(path, IfExists::Replace, |out| out.write_all(&bytes))?)
}

/// Reads the bytes of a checkpoint.
///
/// # Errors
/// The file cannot be read, or is too long.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    Ok(io::read(path, files::MAX_WEIGHTS)?)
}

/// Restores variables, optimizer and scale from the bytes of a file; returns the number of steps taken.
///
/// # Errors
/// The file is damaged, or belongs to another run: the message names the first setting that differs.
pub fn restore(
    path: &Path,
    bytes: Vec<u8>,
    config: &Config,
    trained: &[NamedGroup],
    optimizer: &mut AdamW,
    scale: &mut LossScale,
) -> Result<u64> {
    let tensors = Tensors::from_bytes(path.display().to_string(), bytes)
        .map_err(|e| file(path, format!("is damaged: {e}")))?;
    let of = |key: &str| {
        tensors.metadata(key).ok_or_else(|| file(path, format!("is not a checkpoint: it has no {key}")))
    };
    let names = tensors.names();
    let contents = names.iter().map(|name| -> Result<_> { Ok((name.as_str(), tensors.data(name)?)) });
    let contents = contents.collect::<Result<Vec<_>>>()?;
    if of(SUM)? != checksum(tensors.metadata_entries(), contents) {
        return Err(file(path, "is damaged: it does not have the checksum that was written with it"));
    }
    check_settings(path, of(SETTINGS)?, config)?;
    let step = of(STEP)?.parse().map_err(|e| file(path, format!("has a step that is not a number: {e}")))?;
    if scale.text().is_some() {
        let text = of(SCALE)?;
        let wrong = || file(path, format!("has {text:?} as its {SCALE}, which is not a scale"));
        *scale = LossScale::parse(text).ok_or_else(wrong)?;
    }
    let get = |name: &str, var: &Var| tensor(path, &tensors, name, var.dims(), var.device());
    let mut moments = Vec::new();
    for (name, group) in trained {
        let var = group.var();
        var.set(&get(&format!("{name}/value"), var)?)?;
        moments.push([get(&format!("{name}/m"), var)?, get(&format!("{name}/v"), var)?]);
    }
    optimizer.restore(step, moments)?;
    Ok(step)
}

/// Copies a float32 tensor of a file to a device.
///
/// # Errors
/// The file lacks the tensor, or it has another type or shape.
pub(super) fn tensor(
    path: &Path,
    tensors: &Tensors,
    name: &str,
    dims: &[usize],
    device: &Device,
) -> Result<Tensor> {
    let info = tensors.info(name)?;
    if info.dtype != Dtype::F32 || info.shape != dims {
        let (dtype, shape) = (info.dtype, &info.shape);
        let message = format!("{name} is {dtype} {shape:?}, but F32 {dims:?} was expected");
        return Err(file(path, message));
    }
    Ok(Tensor::from_iter(decode::<f32>(tensors.data(name)?), device)?.reshape(dims)?)
}

/// Renders the settings without the checkpoint interval, which does not change a run's results.
fn settings(config: &Config) -> Result<String> {
    let mut config = config.clone();
    config.train.save_every = 0;
    // Both ways give the same bits.
    config.train.checkpointing = false;
    config.text()
}

/// Fails if the settings that a file holds differ from those of the run.
///
/// Settings that an earlier version did not have take their defaults.
pub(super) fn check_settings(path: &Path, theirs: &str, ours: &Config) -> Result<()> {
    let theirs: Config =
        toml::from_str(theirs).map_err(|e| file(path, format!("has unknown settings: {e}")))?;
    let (theirs, ours) = (settings(&theirs)?, settings(ours)?);
    let differs = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b);
    match differs {
        Some((theirs, ours)) => Err(invalid(format!(
            "{} belongs to a run with {theirs:?}, but this one has {ours:?}: only the same run can resume",
            path.display()
        ))),
        None if theirs.lines().count() != ours.lines().count() => Err(invalid(format!(
            "{} belongs to a run with other settings: only the same run can resume",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// Returns the checksum over the metadata (except the checksum itself) and the tensors, sorted by name.
fn checksum<'a>(
    metadata: impl Iterator<Item = (&'a str, &'a str)>,
    tensors: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> String {
    let entries = metadata.filter(|(key, _)| *key != SUM);
    let entries = entries.map(|(key, value)| (key, xxh3_64(value.as_bytes())));
    let mut parts: Vec<_> =
        tensors.into_iter().map(|(name, data)| (name, xxh3_64(data))).chain(entries).collect();
    parts.sort_unstable();
    let text: String = parts.iter().map(|(name, hash)| format!("{name} {hash:016x}\n")).collect();
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_an_earlier_version_did_not_have_take_their_defaults() {
        let (path, mut ours) = (Path::new("c"), Config::default());
        let text = settings(&ours).expect("TOML");
        let earlier = text.replace("fused = true\n", "");
        assert_ne!(earlier, text);
        // Earlier versions named the learning rates so.
        let renamed = text.replace("\nlr = ", "\nrate = ").replace("\nhead_lr = ", "\nhead_rate = ");
        assert_eq!(renamed.matches("rate = ").count(), 2);
        check_settings(path, &renamed, &ours).expect("the same run");
        check_settings(path, &earlier, &ours).expect("the same run");
        ours.adapter.fused = false;
        let refused =
            |theirs: &str| check_settings(path, theirs, &ours).expect_err("another run").to_string();
        assert!(refused(&earlier).contains("\"fused = true\", but this one has \"fused = false\""));
        assert!(refused(&text.replace("rank", "tier")).contains("unknown settings"));
    }
}
