//! The command `generate`: prompts in, text or JSON out.

use std::io::IsTerminal;

use kron_adapter::text::printable;
use kron_train::Result;
use kron_train::data::read_prompts;
use kron_train::inference::{Generation, Generator, TrainedModel};

use crate::cli::Generate;
use crate::{load, note, put};

/// Continues one prompt as text or JSON, or each line of a file as JSON.
pub fn generate(command: &Generate) -> Result<()> {
    let (config, options) = (command.config(), command.options()?);
    config.check()?;
    let prompts = match (&command.prompts, &command.prompt) {
        (Some(path), _) => read_prompts(path)?,
        (None, prompt) => prompt.iter().cloned().collect(),
    };
    let (weights, tokenizer) = load(&config)?;
    let model = TrainedModel::new(&config, &weights, tokenizer, command.adapter.as_deref(), None)?;
    model.notes().iter().for_each(|text| note(text));
    let generator = model.generator(&options)?;
    if command.json || command.prompts.is_some() {
        return put(
            command.out.as_deref(),
            prompts.iter().enumerate().map(|(i, prompt)| json(&generator, prompt, i)),
        );
    }
    prompts.iter().try_for_each(|prompt| text(generator.text(prompt, 0)?, command))
}

/// Generates the text of a prompt as a line of JSON.
fn json(generator: &Generator, prompt: &str, number: usize) -> Result<String> {
    let mut generation = generator.text(prompt, number)?;
    let result = generation.finish()?;
    note(&generation.speed());
    result.json()
}

/// Prints a text part by part, and a line end after it.
fn text(mut generation: Generation, command: &Generate) -> Result<()> {
    // A terminal would obey a model's control characters.
    let visible = command.out.is_none() && std::io::stdout().is_terminal();
    let shown =
        |part: String| if visible { printable(&part.replace('\t', "    ")).into_owned() } else { part };
    let parts = generation.by_ref().map(|part| part.map(shown)).chain(std::iter::once(Ok("\n".into())));
    put(command.out.as_deref(), parts)?;
    note(&generation.speed());
    Ok(())
}
