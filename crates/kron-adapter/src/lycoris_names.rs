//! Names of modules as LyCORIS and Kohya's trainers write them: a prefix, and an underscore for each dot.

/// Prefix that LyCORIS writes.
pub const OWN_PREFIX: &str = "lycoris_";

/// Prefixes of the known parts: LyCORIS's own, then those of Kohya's trainers for a denoiser and its text encoders.
const PREFIXES: [&str; 6] = [OWN_PREFIX, "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_"];

/// Start of the prefixes of other trainers, `lora_transformer_` or `lora_prior_unet_`.
const TRAINERS: &str = "lora_";

/// Returns true if LyCORIS or a trainer that names modules as it does made the name.
///
/// ```
/// use kron_adapter::lycoris::is_lycoris;
///
/// assert!(is_lycoris("lycoris_model_layers_0_q_proj") && is_lycoris("lora_te_mlp_fc1"));
/// assert!(is_lycoris("lora_transformer_blocks_0_to_q"));
/// assert!(!is_lycoris("model.layers.0.q_proj") && !is_lycoris("lora_te.q"));
/// ```
pub fn is_lycoris(module: &str) -> bool {
    part(module).is_some()
}

/// Returns the prefix of the part of a file that the module belongs to: a known one, or `lora_` with one word
/// more; `None` if the name has no such prefix.
pub fn part(module: &str) -> Option<&str> {
    if module.contains('.') {
        return None;
    }
    let known = PREFIXES.into_iter().find(|prefix| module.starts_with(prefix));
    let of_trainer = || {
        let word = module.strip_prefix(TRAINERS)?.find('_')?;
        Some(TRAINERS.len() + word + 1)
    };
    known.map(str::len).or_else(of_trainer).filter(|len| *len < module.len()).map(|len| &module[..len])
}

/// True for a prefix that says exactly where the module's own name begins.
pub fn is_known(prefix: &str) -> bool {
    PREFIXES.contains(&prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_their_prefix() {
        for (module, want) in [
            ("lycoris_a_b", Some("lycoris_")),
            ("lora_te1_text_model_q", Some("lora_te1_")),
            ("lora_te_text_model_q", Some("lora_te_")),
            ("lora_transformer_blocks_0", Some("lora_transformer_")),
            ("lora_prior_unet_q", Some("lora_prior_")),
            ("lora_q", None),
            ("lora_unet_", None),
            ("lora_unet_a.b", None),
            ("q", None),
        ] {
            assert_eq!(part(module), want, "{module}");
        }
        assert!(is_known("lora_te2_") && !is_known("lora_prior_"));
    }
}
