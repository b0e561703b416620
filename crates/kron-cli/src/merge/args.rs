//! Arguments of `kron merge`.

use std::path::PathBuf;

use kron_adapter::io::Flush;

use crate::choice::Choice;
use crate::dtype::DtypeArg;
use crate::error::exit_codes;
use crate::weighted::Weighted;

/// Merge adapters into a model: W + ΔW, rounded once to the model's dtype.
///
/// BASE is one safetensors file, or a folder with model.safetensors or with
/// model.safetensors.index.json and its shards. Its weights are f32, f16 or bf16. ADAPTER is an adapter
/// file of this project, a PEFT folder with LoRA or LoKr, a LyCORIS file, or a LoRA of Kohya's trainers or of
/// diffusers. OUT is a file or a folder, as BASE is. The configuration and the tokenizer are copied too.
///
/// Several adapters are added, each multiplied by its weight: W + 0.7·ΔW₁ − 0.3·ΔW₂. What exists as a path as a
/// whole has the weight 1.
///
/// DoRA is folded too: W' = m·(W + ΔW)/‖W + ΔW‖, from PEFT's lora_magnitude_vector or LyCORIS's dora_scale, with
/// the weight 1 alone. So are LoRAs of embeddings (a copy of the embedding in the adapter's file has to equal
/// BASE's), lora_bias, and LyCORIS's diff, diff_b, w_norm and b_norm. Any other tensor is refused, unless
/// --skip-unsupported is given, which lists it.
///
/// Tensors trained beside the factors, such as a classification head, replace BASE's tensors of the same
/// names, rounded once to their dtype. If BASE lacks one, nothing is written unless --factors-only is given.
///
/// BASE may also be a GGUF of the LLaMA family. It is dequantised to --dtype, and OUT is a .safetensors
/// file with Hugging Face's names and order of rows, or a .gguf file with BASE's metadata.
///
/// A merge cannot be undone, as it rounds every weight. Keep BASE, which is never changed: to undo
/// a merge, use BASE.
#[derive(Debug, clap::Args)]
#[command(after_help = concat!(
    "A file appears under its name only when it is complete, the index of the shards last. An\n",
    "interrupted merge into a folder continues with --resume. It keeps the shards whose size and hash\n",
    "match the journal .kron-merge.json. OUT has one writer at a time. With --force, files of the\n",
    "merged model replace those of the same name, their old index first; when the model is whole,\n",
    "safetensors files and an index of another model in the folder OUT are removed, as a loader might\n",
    "prefer them.\n\n",
    exit_codes!("merged", "the model or the adapter is invalid, they do not match"),
    "Examples:\n",
    "  kron merge llama-3-8b adapter.safetensors merged\n",
    "  kron merge llama-3-8b peft-lora/ merged --resume\n",
    "  kron merge llama-3-8b style/:0.7 chat/:-0.3 merged\n",
    "  kron merge model.safetensors lycoris.safetensors merged.safetensors\n",
    "  kron merge model.gguf adapter.safetensors merged.gguf --dtype f16",
))]
pub struct Args {
    /// Model: a safetensors file, a folder, or a GGUF
    pub(super) base: PathBuf,
    /// Adapters: files or PEFT folders, each with a weight after a colon, `lora:0.7`, or with the weight 1
    #[arg(required = true, value_name = "ADAPTER[:WEIGHT]")]
    pub(super) adapters: Vec<Weighted>,
    /// Merged model: a file or a folder, as BASE is
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) choice: Choice,
    /// Type of the merged weights, required if BASE is a GGUF; vectors of a .gguf file stay f32
    #[arg(long, value_enum)]
    pub(super) dtype: Option<DtypeArg>,
    /// Leave out the tensors that were trained beside the factors, which a note names
    #[arg(long)]
    pub(super) factors_only: bool,
    /// Leave out tensors of the adapters that cannot be merged, and list them
    #[arg(long)]
    pub(super) skip_unsupported: bool,
    /// Replace an existing output
    #[arg(long)]
    pub(super) force: bool,
    /// Continue an interrupted merge into the folder OUT
    #[arg(long, conflicts_with = "force")]
    pub(super) resume: bool,
    /// Flush each file to the disk; without it, as after cp, a power cut soon after may truncate files
    #[arg(long)]
    pub(super) sync: bool,
}

impl Args {
    /// Returns when the shards are flushed to the disk.
    pub(super) const fn flush(&self) -> Flush {
        if self.sync { Flush::Now } else { Flush::Later }
    }
}
