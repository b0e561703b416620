//! Writing an adapter in a chosen format.

use std::path::Path;

use kron_core::KronShape;

use crate::combine::sums_as_lora;
use crate::left_out::LeftOut;
use crate::limits::Limits;
use crate::output::{Output, write_output};
use crate::{Adapter, IfExists, Progress, Result, Suggestion, lycoris, peft};

/// A format to write, with its options.
#[derive(Clone, Copy, Debug)]
pub enum OutputFormat {
    /// One safetensors file of this project.
    Kron,
    /// A PEFT folder, every layer as a LoRA of rank a_in·r or a_out·r.
    Lora(peft::LoraOptions),
    /// A PEFT folder, LoKr.
    PeftLokr,
    /// One safetensors file of LyCORIS, LoKr.
    Lycoris,
}

impl OutputFormat {
    /// Returns the trained tensors that the format cannot hold, which a file of it lacks.
    pub fn left_out(self, adapter: &Adapter) -> Vec<LeftOut> {
        match self {
            OutputFormat::Kron => Vec::new(),
            OutputFormat::Lora(_) => peft::left_out(adapter, true),
            OutputFormat::PeftLokr => peft::left_out(adapter, false),
            OutputFormat::Lycoris => {
                LeftOut::of(adapter, "LyCORIS holds factors alone", |_| true).into_iter().collect()
            }
        }
    }

    /// Checks that a file of the format can hold layers of these modules and shapes together, where s = 1.
    ///
    /// ```
    /// use kron_adapter::OutputFormat;
    /// use kron_core::{KronShape, LayerDims, Split};
    ///
    /// let shape = |a_out, a_in| {
    ///     KronShape::kron(LayerDims { d_out: 64, d_in: 64 }, Split { a_out, a_in }, 2)
    /// };
    /// assert!(OutputFormat::PeftLokr.check_shapes(&[("q", shape(4, 4)?)]).is_ok());
    /// assert!(OutputFormat::PeftLokr.check_shapes(&[("q", shape(16, 2)?)]).is_err());
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails on a LoRA and on a shape that PEFT's LoKr or LyCORIS would derive differently from the file.
    pub fn check_shapes(self, layers: &[(&str, KronShape)]) -> Result<()> {
        match self {
            OutputFormat::Kron | OutputFormat::Lora(_) => Ok(()),
            OutputFormat::PeftLokr => peft::check_shapes(layers).map(drop),
            OutputFormat::Lycoris => layers.iter().try_for_each(|layer| lycoris::check_shape(*layer)),
        }
    }

    /// Encodes an adapter for [`write_output`]. Equal adapters give equal bytes.
    /// `progress` counts the layers that a LoRA is made of.
    ///
    /// Factors are copied bit for bit. In a LoRA each product A_ij·B_pq is rounded once to float32, and nothing else is;
    /// a sum of terms is one LoRA of all their ranks, see [`sums_as_lora`]. Trained tensors go along, except those that
    /// [`OutputFormat::left_out`] names.
    ///
    /// # Errors
    /// Fails on NaN or infinity in a factor or a trained tensor, if `progress` fails, and if a layer does not
    /// fit the format:
    ///
    /// * [`PeftLokr`](Self::PeftLokr): a LoRA, a sum of terms, or a shape that PEFT would derive
    ///   differently when it loads the folder; a trained tensor in no module.
    /// * [`Lycoris`](Self::Lycoris): a LoRA, a sum of terms, a shape that LyCORIS would derive
    ///   differently, or a scale that it cannot express.
    /// * [`Lora`](Self::Lora): a product beyond float32, or LoRAs larger than
    ///   [`LoraOptions::max_bytes`](peft::LoraOptions::max_bytes) allows; a trained tensor in no module.
    pub fn encode(self, adapter: &Adapter, progress: Progress) -> Result<Output> {
        adapter.check_finite()?;
        let check_no_sums =
            |holder| adapter.check_no_sums(holder).map_err(|e| e.with(Suggestion::LosslessLora));
        Ok(match self {
            OutputFormat::Kron => Output::File(adapter.to_bytes()?),
            OutputFormat::Lora(options) => {
                let mut limits = Limits { bytes: options.budget(adapter), ..Limits::new(0) };
                let adapter = sums_as_lora(adapter, options.join, &mut limits)
                    .map_err(|e| e.with(Suggestion::MaxBytes))?;
                peft::write_lora(&adapter, options, progress)?
            }
            OutputFormat::PeftLokr => {
                check_no_sums("PEFT's LoKr")?;
                peft::write_lokr(adapter)?
            }
            OutputFormat::Lycoris => {
                check_no_sums("LyCORIS")?;
                Output::File(lycoris::write(adapter)?)
            }
        })
    }
}

/// Writes an adapter in a format, whole or not at all.
///
/// # Errors
/// Fails as [`OutputFormat::encode`] and [`write_output`] do.
pub fn write(
    adapter: &Adapter,
    format: OutputFormat,
    out: impl AsRef<Path>,
    if_exists: IfExists,
) -> Result<()> {
    let progress: Progress = &|_| Ok(());
    write_output(out.as_ref(), &format.encode(adapter, progress)?, if_exists, progress)
}
