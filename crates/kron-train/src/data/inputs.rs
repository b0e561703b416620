//! Texts and questions without answers, as token ids.

use std::path::Path;

use super::jsonl::{read_questions, read_texts};
use super::set::{Row, encode_question, encode_text};
use super::tokenizer::Tokenizer;
use crate::config::Task;
use crate::error::{Result, invalid};

/// Texts or questions, in the order of their file.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// Texts to classify.
    Texts(Vec<Vec<u32>>),
    /// Multiple-choice questions, each with its encoded continuations.
    Questions(Vec<Vec<Row>>),
}

impl Inputs {
    /// Reads and encodes a JSONL file; other fields of a line, such as the answer, are ignored.
    ///
    /// # Errors
    /// The file is malformed, or the task has no answers.
    pub fn read(path: &Path, task: Task, max_len: usize, tokenizer: &Tokenizer) -> Result<Self> {
        match task {
            Task::Classify => {
                let texts = (1..).zip(read_texts(path)?);
                let ids = texts.map(|(line, text)| encode_text(path, line, &text, tokenizer, max_len));
                Ok(Inputs::Texts(ids.collect::<Result<_>>()?))
            }
            Task::Choice => {
                let rows = (1..).zip(read_questions(path)?);
                let encode = |(line, (q, choices)): (usize, (String, Vec<String>))| {
                    encode_question(path, line, &q, &choices, tokenizer, max_len)
                };
                Ok(Inputs::Questions(rows.map(encode).collect::<Result<_>>()?))
            }
            Task::Lm | Task::Chat => {
                Err(invalid("the tasks lm and chat have no answers to predict, but classify and choice have"))
            }
        }
    }

    /// Returns the number of inputs.
    pub const fn len(&self) -> usize {
        match self {
            Inputs::Texts(all) => all.len(),
            Inputs::Questions(all) => all.len(),
        }
    }

    /// Returns `true` without inputs.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
