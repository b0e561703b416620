//! Choice among what an adapter's file holds, and the names of what it leaves out.

use std::path::Path;

use kron_adapter::extras::Extras;
use kron_adapter::text::one_line;
use kron_adapter::{Loaded, ReadOptions, Suggestion, read_whole, read_with};

use crate::Result;

/// Options of all commands that read an adapter.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Choice {
    /// Adapter to read, where the names of a PEFT file's tensors have those of several: lora_A.NAME.weight
    #[arg(long, value_name = "NAME")]
    adapter_name: Option<String>,
    /// Read only the modules whose names start so, where a file is for several models: lora_te1_, text_encoder.
    #[arg(long, value_name = "PREFIX")]
    only: Option<String>,
}

impl Choice {
    /// Reads an adapter, or the chosen part of it.
    ///
    /// # Errors
    /// As [`read_with`].
    pub fn read(&self, path: &Path) -> Result<Loaded> {
        read_with(path, &self.options())
    }

    /// Reads an adapter, or the chosen part of it, with what a merge folds beyond ΔW.
    ///
    /// # Errors
    /// As [`read_whole`].
    pub fn read_whole(&self, path: &Path, skip_unsupported: bool) -> Result<(Loaded, Extras)> {
        read_whole(path, &self.options(), skip_unsupported)
    }

    /// Reads one of several adapters; one whose tensors have no names of several adapters needs none.
    ///
    /// # Errors
    /// As [`read_with`].
    pub fn read_each(&self, path: &Path) -> Result<Loaded> {
        self.each(|options| read_with(path, options))
    }

    /// Reads as [`Self::read_each`] does, with what a merge folds beyond ΔW.
    ///
    /// # Errors
    /// As [`read_whole`].
    pub fn read_whole_each(&self, path: &Path, skip_unsupported: bool) -> Result<(Loaded, Extras)> {
        self.each(|options| read_whole(path, options, skip_unsupported))
    }

    /// Returns the choice.
    pub fn options(&self) -> ReadOptions {
        let Self { adapter_name, only } = self.clone();
        ReadOptions { adapter_name, only }
    }

    /// Reads without the adapter's name, and with it where that is needed.
    fn each<T>(&self, read: impl Fn(&ReadOptions) -> Result<T>) -> Result<T> {
        match read(&ReadOptions { adapter_name: None, ..self.options() }) {
            Err(error) if error.suggestion() == Some(Suggestion::AdapterName) => read(&self.options()),
            read => read,
        }
    }
}

/// Returns the line that lists what was left out of an adapter, and nothing where nothing was.
pub fn left_out(names: &[String]) -> String {
    match names {
        [] => String::new(),
        _ => format!("\n\nleft out of the adapter: {}", one_line(&names.join(", "))),
    }
}
