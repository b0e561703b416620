//! A run's state in one safetensors file that is whole or not there: the
//! trained variables, both moments of each, the step, the loss's scale, and the settings.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Tensor, Var};
use kron_adapter::io::write_atomic;
use kron_candle::{AdamW, IfExists};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use xxhash_rust::xxh3::xxh3_64;

use super::scale::LossScale;
use crate::config::Config;
use crate::error::{Result, file, invalid};
use crate::learner::Named;

/// Keys of the file's metadata.
const STEP: &str = "step";
const SETTINGS: &str = "settings";
const SUM: &str = "xxh3";
const SCALE: &str = "loss_scale";

/// Writes variables, moments and the number of steps taken.
///
/// # Errors
/// What the system refuses; the file that was there is then still there.
pub fn write(
    path: &Path,
    config: &Config,
    trained: &[Named],
    optimizer: &AdamW,
    scale: LossScale,
) -> Result<()> {
    let (step, moments) = optimizer.state();
    let mut parts = Vec::new();
    for ((name, group), [m, v]) in trained.iter().zip(moments) {
        for (kind, tensor) in [("value", group.var().as_tensor()), ("m", m), ("v", v)] {
            let numbers: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
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
    let numbers = views.iter().map(|(name, view)| (name.as_str(), view.data()));
    metadata.insert(SUM.into(), sum(&metadata, numbers));
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| file(path, e))?;
    Ok(write_atomic(path, IfExists::Replace, |out| out.write_all(&bytes))?)
}

/// Sets variables, optimizer and scale to what a file holds; returns the number of steps taken.
///
/// # Errors
/// A damaged file, and one of another run: the first setting that differs is named.
pub fn read(
    path: &Path,
    config: &Config,
    trained: &[Named],
    optimizer: &mut AdamW,
    scale: &mut LossScale,
) -> Result<u64> {
    let bytes = std::fs::read(path).map_err(|e| file(path, e))?;
    let broken = |e: safetensors::SafeTensorError| file(path, format!("is damaged: {e}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let of =
        |key: &str| metadata.get(key).ok_or_else(|| file(path, format!("is no checkpoint: it has no {key}")));
    let mut all: Vec<(String, TensorView)> = tensors.tensors();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    if *of(SUM)? != sum(&metadata, all.iter().map(|(name, view)| (name.as_str(), view.data()))) {
        return Err(file(path, "is damaged: it does not have the checksum that was written with it"));
    }
    check_settings(path, of(SETTINGS)?, &settings(config)?)?;
    let step = of(STEP)?.parse().map_err(|e| file(path, format!("has a step that is no number: {e}")))?;
    if scale.text().is_some() {
        let text = of(SCALE)?;
        let wrong = || file(path, format!("has {text:?} as its {SCALE}, which no scale is"));
        *scale = LossScale::parse(text).ok_or_else(wrong)?;
    }
    let get = |name: &str, var: &Var| -> Result<Tensor> {
        let view = tensors.tensor(name).map_err(broken)?;
        if view.shape() != var.dims() {
            return Err(file(
                path,
                format!("{name} is {:?}, but {:?} was expected", view.shape(), var.dims()),
            ));
        }
        let numbers = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Tensor::from_iter(numbers, var.device())?.reshape(var.shape())?)
    };
    let mut moments = Vec::new();
    for (name, group) in trained {
        let var = group.var();
        var.set(&get(&format!("{name}/value"), var)?)?;
        moments.push([get(&format!("{name}/m"), var)?, get(&format!("{name}/v"), var)?]);
    }
    optimizer.restore(step, moments)?;
    Ok(step)
}

/// Everything but how often the run is saved, which changes nothing in it.
fn settings(config: &Config) -> Result<String> {
    let mut config = config.clone();
    config.train.save_every = 0;
    config.text()
}

/// What a program before this one did not know of has its default, in their settings too.
fn check_settings(path: &Path, theirs: &str, ours: &str) -> Result<()> {
    let theirs: Config =
        toml::from_str(theirs).map_err(|e| file(path, format!("has settings that are none here: {e}")))?;
    let theirs = theirs.text()?;
    let differs = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b);
    match differs {
        Some((theirs, ours)) => Err(invalid(format!(
            "{} is of a run with {theirs:?}, but this one has {ours:?}: only the same run can go on",
            path.display()
        ))),
        None if theirs.lines().count() != ours.lines().count() => Err(invalid(format!(
            "{} is of a run with other settings than this one: only the same run can go on",
            path.display()
        ))),
        None => Ok(()),
    }
}

/// A checksum of the metadata but itself and of names and numbers, in the order of the names.
fn sum<'a>(metadata: &HashMap<String, String>, parts: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let said = metadata.iter().filter(|(key, _)| *key != SUM);
    let said = said.map(|(key, value)| (key.as_str(), xxh3_64(value.as_bytes())));
    let mut parts: Vec<_> = parts.map(|(name, data)| (name, xxh3_64(data))).chain(said).collect();
    parts.sort_unstable();
    let text: String = parts.iter().map(|(name, sum)| format!("{name} {sum:016x}\n")).collect();
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_an_earlier_program_have_the_defaults_of_what_it_did_not_know() {
        let (path, mut ours) = (Path::new("c"), Config::default());
        let text = settings(&ours).expect("TOML");
        let earlier = text.replace("fused = true\n", "");
        assert_ne!(earlier, text);
        check_settings(path, &earlier, &text).expect("the same run");
        ours.adapter.fused = false;
        let refused = |theirs: &str| {
            let ours = settings(&ours).expect("TOML");
            check_settings(path, theirs, &ours).expect_err("another run").to_string()
        };
        assert!(refused(&earlier).contains("\"fused = true\", but this one has \"fused = false\""));
        assert!(refused(&text.replace("rank", "tier")).contains("settings that are none here"));
    }
}
