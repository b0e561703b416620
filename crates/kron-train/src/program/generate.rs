//! The command `generate`: prompts in, text or JSON out.

use std::io::IsTerminal;

use crate::Result;
use crate::data::{Message, read_conversations, read_prompts};
use crate::inference::{Generation, Generator, TrainedModel};
use kron_adapter::text::printable;

use super::cli::Generate;
use super::load::load;
use super::print::{note, put};

/// Continues one prompt as text or JSON, or each line of a file as JSON.
pub fn generate(command: &Generate) -> Result<()> {
    let (config, options) = (command.config(), command.options()?);
    config.check()?;
    let prompts = prompts(command)?;
    let (weights, tokenizer) = load(&config)?;
    let model = TrainedModel::new(&config, &weights, tokenizer, command.adapter.as_deref(), None)?;
    model.notes().iter().for_each(|text| note(text));
    let generator = model.generator(&options)?;
    if command.is_json() {
        return put(
            command.out.as_deref(),
            prompts.iter().enumerate().map(|(i, prompt)| json(&generator, prompt, i)),
        );
    }
    prompts.iter().try_for_each(|prompt| text(prompt.start(&generator, 0)?, command))
}

/// Beginning of a text.
enum Prompt {
    Text(String),
    Chat(Vec<Message>),
}

impl Prompt {
    fn start<'a>(&self, generator: &Generator<'a>, number: usize) -> Result<Generation<'a>> {
        match self {
            Prompt::Text(text) => generator.text(text, number),
            Prompt::Chat(messages) => generator.answer(messages, number),
        }
    }
}

/// Reads the prompts, one or a file of them.
fn prompts(command: &Generate) -> Result<Vec<Prompt>> {
    Ok(match (&command.prompts, command.chat) {
        (Some(path), true) => read_conversations(path)?.into_iter().map(Prompt::Chat).collect(),
        (Some(path), false) => read_prompts(path)?.into_iter().map(Prompt::Text).collect(),
        (None, chat) => {
            let user = |content| Prompt::Chat(vec![Message { role: "user".into(), content }]);
            command
                .prompt
                .iter()
                .cloned()
                .map(|text| if chat { user(text) } else { Prompt::Text(text) })
                .collect()
        }
    })
}

/// Generates the text of a prompt as a line of JSON.
fn json(generator: &Generator, prompt: &Prompt, number: usize) -> Result<String> {
    let mut generation = prompt.start(generator, number)?;
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
