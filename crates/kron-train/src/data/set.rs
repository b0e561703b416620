//! Examples of a task as token ids.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::chat::{ChatTemplate, Message};
use super::conversation::Conversation;
use super::jsonl::{Choice, Labelled, read_choices, read_conversations, read_labelled, read_texts};
use super::order::permutation;
use super::tokenizer::{MAX_TEXT, Tokenizer};
use crate::config::{Config, Data, Task};
use crate::error::{Result, file};
use crate::files;

/// Largest number of classes of a head.
const MAX_CLASSES: usize = 1 << 16;

/// Stream of the draw of held-out examples; limits draw from stream 0.
const HOLDOUT: u64 = 1;

/// Ids of question and choice, and the index at which the choice starts.
pub type Row = (Vec<u32>, usize);

/// Multiple-choice question with its encoded continuations.
#[derive(Clone, Debug, Hash, PartialEq)]
pub struct Question {
    /// Question with each of its choices.
    pub rows: Vec<Row>,
    /// Index of the correct choice.
    pub answer: usize,
}

/// Examples of one task.
#[derive(Clone, Debug, Hash, PartialEq)]
pub enum Examples {
    /// Texts with their classes.
    Labelled(Vec<(Vec<u32>, u32)>),
    /// Plain text.
    Plain(Vec<Vec<u32>>),
    /// Conversations, whose answers are learned.
    Conversations(Vec<Conversation>),
    /// Multiple-choice questions.
    Questions(Vec<Question>),
}

impl Examples {
    /// Reads and encodes at most `limit` examples of a file; the task `classify` knows the sorted `labels`.
    ///
    /// # Errors
    /// The file is malformed, or has another label.
    pub fn read(
        path: &Path,
        task: Task,
        labels: &[String],
        data: &Data,
        limit: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let max_len = data.max_len;
        match task {
            Task::Classify => {
                encode_labelled(path, drawn(labelled(path, data)?, limit), labels, tokenizer, max_len)
            }
            Task::Lm => plain(path, tokenizer, max_len, limit),
            Task::Chat => conversations(path, tokenizer, max_len, limit),
            Task::Choice => questions(path, tokenizer, data, limit),
        }
    }

    /// Returns the number of examples.
    pub const fn len(&self) -> usize {
        match self {
            Examples::Labelled(all) => all.len(),
            Examples::Plain(all) => all.len(),
            Examples::Conversations(all) => all.len(),
            Examples::Questions(all) => all.len(),
        }
    }

    /// Splits off `count` examples, independently of the run's seed; returns the others first.
    fn hold_out(self, count: usize) -> (Self, Self) {
        fn split<T>(all: Vec<T>, count: usize, kind: fn(Vec<T>) -> Examples) -> (Examples, Examples) {
            let mut held = vec![false; all.len()];
            permutation(all.len(), 0, HOLDOUT).into_iter().take(count).for_each(|i| held[i] = true);
            let (held, others): (Vec<_>, Vec<_>) = all.into_iter().zip(held).partition(|(_, held)| *held);
            let items = |part: Vec<(T, bool)>| kind(part.into_iter().map(|(item, _)| item).collect());
            (items(others), items(held))
        }
        match self {
            Examples::Labelled(all) => split(all, count, Examples::Labelled),
            Examples::Plain(all) => split(all, count, Examples::Plain),
            Examples::Conversations(all) => split(all, count, Examples::Conversations),
            Examples::Questions(all) => split(all, count, Examples::Questions),
        }
    }

    /// Draws at most `limit` examples.
    fn limited(self, limit: usize) -> Self {
        match self {
            Examples::Labelled(all) => Examples::Labelled(drawn(all, limit)),
            Examples::Plain(all) => Examples::Plain(drawn(all, limit)),
            Examples::Conversations(all) => Examples::Conversations(drawn(all, limit)),
            Examples::Questions(all) => Examples::Questions(drawn(all, limit)),
        }
    }

    /// Returns `true` without examples.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Training, validation and test examples of a run.
#[derive(Clone, Debug, Hash)]
pub struct Dataset {
    /// Names of the classes, sorted; empty for other tasks.
    pub labels: Vec<String>,
    /// Training examples.
    pub train: Examples,
    /// Validation examples: of a file, or held out of the training examples.
    pub validation: Option<Examples>,
    /// Test examples.
    pub test: Option<Examples>,
}

impl Dataset {
    /// Reads and encodes the files that the settings name.
    ///
    /// # Errors
    /// A file is malformed, a class occurs in the validation or test set alone, or all training examples are held
    /// out.
    pub fn read(config: &Config, tokenizer: &Tokenizer) -> Result<Self> {
        let data = &config.data;
        // What is held out is drawn from the whole file, whatever the limit of the others.
        let limit = if data.holdout > 0 { 0 } else { data.limit_train };
        let (labels, train) = match config.task {
            Task::Classify => {
                let rows = labelled(&data.train, data)?;
                let labels = classes(&data.train, &rows)?;
                let rows = drawn(rows, limit);
                let train = encode_labelled(&data.train, rows, &labels, tokenizer, data.max_len)?;
                (labels, train)
            }
            task => (Vec::new(), Examples::read(&data.train, task, &[], data, limit, tokenizer)?),
        };
        let read =
            |path: &PathBuf| Examples::read(path, config.task, &labels, data, data.limit_eval, tokenizer);
        let test = data.test.as_ref().map(read).transpose()?;
        if data.holdout == 0 {
            let validation = data.validation.as_ref().map(read).transpose()?;
            return Ok(Self { labels, train, validation, test });
        }
        let n = train.len();
        if n <= data.holdout {
            let holdout = data.holdout;
            return Err(file(
                &data.train,
                format!("has {n} examples, but data.holdout takes {holdout} of more"),
            ));
        }
        let (train, held) = train.hold_out(data.holdout);
        Ok(Self { labels, train: train.limited(data.limit_train), validation: Some(held), test })
    }
}

/// Lists all classes of a file, sorted: a class that is not drawn is still known.
fn classes(path: &Path, rows: &[(usize, Labelled)]) -> Result<Vec<String>> {
    let labels: BTreeSet<&String> = rows.iter().map(|(_, row)| &row.label).collect();
    match labels.len() {
        0..=MAX_CLASSES => Ok(labels.into_iter().cloned().collect()),
        n => Err(file(path, format!("has {n} labels, but at most {MAX_CLASSES} are learnt"))),
    }
}

/// Reads the rows of the selected domain, with their line numbers.
fn labelled(path: &Path, data: &Data) -> Result<Vec<(usize, Labelled)>> {
    of_domain(path, read_labelled(path)?, data, |row| row.domain.as_ref())
}

/// Numbers rows by their lines, and keeps those of the selected domain.
fn of_domain<T>(
    path: &Path,
    rows: Vec<T>,
    data: &Data,
    domain_of: impl Fn(&T) -> Option<&String>,
) -> Result<Vec<(usize, T)>> {
    let mut rows: Vec<_> = (1..).zip(rows).collect();
    if let Some(domain) = &data.domain {
        rows.retain(|(_, row)| domain_of(row) == Some(domain));
        if rows.is_empty() {
            return Err(file(path, format!("has no line of domain {domain}")));
        }
    }
    Ok(rows)
}

/// Draws at most `limit` items, independently of the run's seed.
fn drawn<T>(all: Vec<T>, limit: usize) -> Vec<T> {
    if limit == 0 || all.len() <= limit {
        return all;
    }
    let order = permutation(all.len(), 0, 0);
    let mut all: Vec<Option<T>> = all.into_iter().map(Some).collect();
    order[..limit].iter().filter_map(|&i| all[i].take()).collect()
}

fn encode_labelled(
    path: &Path,
    rows: Vec<(usize, Labelled)>,
    labels: &[String],
    tokenizer: &Tokenizer,
    max_len: usize,
) -> Result<Examples> {
    let encode = |(line, row): (usize, Labelled)| {
        let Ok(class) = labels.binary_search(&row.label) else {
            return Err(file(
                path,
                format!(
                    "line {line} has label {:?}, which is not one of the training set's {}",
                    row.label,
                    labels.len()
                ),
            ));
        };
        Ok((encode_text(path, line, &row.text, tokenizer, max_len)?, class as u32))
    };
    Ok(Examples::Labelled(rows.into_iter().map(encode).collect::<Result<_>>()?))
}

/// Encodes a text to classify, into at most `max_len` ids.
///
/// # Errors
/// The text has no token.
pub(super) fn encode_text(
    path: &Path,
    line: usize,
    text: &str,
    tokenizer: &Tokenizer,
    max_len: usize,
) -> Result<Vec<u32>> {
    let ids = tokenizer.encode(text, max_len)?;
    match ids.is_empty() {
        true => Err(file(path, format!("line {line} has a text of no token, but a text has at least one"))),
        false => Ok(ids),
    }
}

/// Cuts a text into pieces of `max_len` tokens; a `.jsonl` file is the sequence of its lines' texts.
fn plain(path: &Path, tokenizer: &Tokenizer, max_len: usize, limit: usize) -> Result<Examples> {
    let texts = match path.extension().is_some_and(|e| e == "jsonl") {
        true => read_texts(path)?,
        false => vec![files::text(path, files::MAX_DATA)?],
    };
    let mut ids = Vec::new();
    for text in texts {
        // Paragraph by paragraph, because a text may be longer than what is encoded at once.
        let paragraphs = text.split_inclusive("\n\n").flat_map(|text| cut(text, MAX_TEXT));
        for (i, paragraph) in paragraphs.enumerate() {
            match i {
                0 => ids.extend(tokenizer.encode(paragraph, usize::MAX)?),
                _ => ids.extend(tokenizer.encode_more(paragraph)?),
            }
        }
    }
    let pieces: Vec<Vec<u32>> = ids.chunks_exact(max_len).map(<[u32]>::to_vec).collect();
    match pieces.is_empty() {
        true => {
            Err(file(path, format!("has {} tokens, but one example takes max_len = {max_len}", ids.len())))
        }
        false => Ok(Examples::Plain(drawn(pieces, limit))),
    }
}

/// Cuts a text into pieces of at most `most` bytes: after the last line end in reach, else between two characters.
fn cut(text: &str, most: usize) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    while rest.len() > most {
        let reach = &rest[..rest.floor_char_boundary(most)];
        let at = reach.rfind('\n').map_or(reach.len(), |end| end + 1);
        pieces.push(&rest[..at]);
        rest = &rest[at..];
    }
    pieces.push(rest);
    pieces
}

fn conversations(path: &Path, tokenizer: &Tokenizer, max_len: usize, limit: usize) -> Result<Examples> {
    let template = ChatTemplate::of(&tokenizer.conventions()?)?;
    let rows: Vec<_> = (1..).zip(read_conversations(path)?).collect();
    let encode = |(line, messages): (usize, Vec<Message>)| {
        Conversation::new(&messages, &template, tokenizer, max_len)
            .map_err(|e| file(path, format!("line {line}: {e}")))
    };
    Ok(Examples::Conversations(drawn(rows, limit).into_iter().map(encode).collect::<Result<_>>()?))
}

fn questions(path: &Path, tokenizer: &Tokenizer, data: &Data, limit: usize) -> Result<Examples> {
    let encode = |(line, row): (usize, Choice)| {
        let rows = encode_question(path, line, &row.q, &row.choices, tokenizer, data.max_len)?;
        Ok(Question { rows, answer: row.answer })
    };
    let rows = of_domain(path, read_choices(path)?, data, |row| row.domain.as_ref())?;
    Ok(Examples::Questions(drawn(rows, limit).into_iter().map(encode).collect::<Result<_>>()?))
}

/// Encodes a question with each of its choices, into at most `max_len` ids.
///
/// # Errors
/// A choice has no token, or too many of them.
pub(super) fn encode_question(
    path: &Path,
    line: usize,
    q: &str,
    choices: &[String],
    tokenizer: &Tokenizer,
    max_len: usize,
) -> Result<Vec<Row>> {
    let at = |message: String| file(path, format!("line {line} {message}"));
    let start = tokenizer.encode(q, usize::MAX)?.len();
    let encode = |choice: &String| {
        let mut ids = tokenizer.encode(&format!("{q} {choice}"), usize::MAX)?;
        if ids.len() < 2 {
            return Err(at("has a choice of no token".into()));
        }
        // A token may span the end of the question and the start of the choice.
        let start = start.min(ids.len() - 1).max(1);
        let max_choice = max_len - 1;
        if ids.len() - start > max_choice {
            let n = ids.len() - start;
            return Err(at(format!(
                "has a choice of {n} tokens, but max_len = {max_len} has room for {max_choice}"
            )));
        }
        // Only the choice is scored, so the question is truncated, at its beginning after the first token.
        let excess = ids.len().saturating_sub(max_len);
        ids.drain(1..1 + excess);
        Ok((ids, start - excess))
    };
    choices.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_paragraph_is_cut_at_line_ends_or_between_characters() {
        assert_eq!(cut("ab\ncd\nef", 100), ["ab\ncd\nef"]);
        assert_eq!(cut("ab\ncd\nef", 7), ["ab\ncd\n", "ef"]);
        assert_eq!(cut("ab\ncd\nef", 4), ["ab\n", "cd\n", "ef"]);
        assert_eq!(cut("äöüß", 5), ["äö", "üß"]);
        assert_eq!(cut("", 5), [""]);
    }
}
