//! Examples of a task as token ids.

use std::collections::BTreeSet;
use std::path::Path;

use super::jsonl::{Choice, Labelled, read_choices, read_labelled, read_texts};
use super::order::permutation;
use super::tokenizer::{MAX_TEXT, Tokenizer};
use crate::config::{Config, Data, Task};
use crate::error::{Result, file, invalid};
use crate::files;

/// Largest number of classes of a head.
const MAX_CLASSES: usize = 1 << 16;

/// Multiple-choice question with its encoded continuations.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Ids of question and choice, and the index at which the choice starts.
    pub rows: Vec<(Vec<u32>, usize)>,
    /// Index of the correct choice.
    pub answer: usize,
}

/// Examples of one task.
#[derive(Clone, Debug, PartialEq)]
pub enum Examples {
    /// Texts with their classes.
    Labelled(Vec<(Vec<u32>, u32)>),
    /// Plain text.
    Plain(Vec<Vec<u32>>),
    /// Multiple-choice questions.
    Questions(Vec<Question>),
}

impl Examples {
    /// Returns the number of examples.
    pub const fn len(&self) -> usize {
        match self {
            Examples::Labelled(all) => all.len(),
            Examples::Plain(all) => all.len(),
            Examples::Questions(all) => all.len(),
        }
    }

    /// Returns `true` without examples.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Training, validation and test examples of a run.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Names of the classes, sorted; empty for other tasks.
    pub labels: Vec<String>,
    /// Training examples.
    pub train: Examples,
    /// Validation examples.
    pub validation: Option<Examples>,
    /// Test examples.
    pub test: Option<Examples>,
}

impl Dataset {
    /// Reads and encodes the files that the settings name.
    ///
    /// # Errors
    /// A file is malformed, or a class occurs in the validation or test set alone.
    pub fn read(config: &Config, tokenizer: &Tokenizer) -> Result<Self> {
        let data = &config.data;
        let rest = [&data.validation, &data.test];
        let (labels, train, rest) = match config.task {
            Task::Classify => {
                let rows = labelled(&data.train, data)?;
                // All classes of the file, so that a class that is not drawn is still known.
                let labels: BTreeSet<&String> = rows.iter().map(|(_, row)| &row.label).collect();
                if labels.len() > MAX_CLASSES {
                    let n = labels.len();
                    return Err(file(
                        &data.train,
                        format!("has {n} labels, but at most {MAX_CLASSES} are learnt"),
                    ));
                }
                let labels: Vec<String> = labels.into_iter().cloned().collect();
                let rows = drawn(rows, data.limit_train);
                let encode =
                    |path: &Path, rows| encode_labelled(path, rows, &labels, tokenizer, data.max_len);
                let train = encode(&data.train, rows)?;
                let rest = each(rest, |path| encode(path, drawn(labelled(path, data)?, data.limit_eval)))?;
                (labels, train, rest)
            }
            Task::Lm => {
                let read = |path: &Path, limit| plain(path, tokenizer, data.max_len, limit);
                let rest = each(rest, |path| read(path, data.limit_eval))?;
                (Vec::new(), read(&data.train, data.limit_train)?, rest)
            }
            Task::Choice => {
                let read = |path: &Path, limit| questions(path, tokenizer, data.max_len, limit);
                let rest = each(rest, |path| read(path, data.limit_eval))?;
                (Vec::new(), read(&data.train, data.limit_train)?, rest)
            }
        };
        let [validation, test] = rest;
        Ok(Self { labels, train, validation, test })
    }
}

fn each(
    paths: [&Option<std::path::PathBuf>; 2],
    read: impl Fn(&Path) -> Result<Examples>,
) -> Result<[Option<Examples>; 2]> {
    let [a, b] = paths.map(|path| path.as_deref().map(&read).transpose());
    Ok([a?, b?])
}

/// Reads the rows of the selected domain, with their line numbers.
fn labelled(path: &Path, data: &Data) -> Result<Vec<(usize, Labelled)>> {
    let mut rows: Vec<(usize, Labelled)> = (1..).zip(read_labelled(path)?).collect();
    if let Some(domain) = &data.domain {
        rows.retain(|(_, row)| row.domain.as_ref() == Some(domain));
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
        Ok((tokenizer.encode(&row.text, max_len)?, class as u32))
    };
    Ok(Examples::Labelled(rows.into_iter().map(encode).collect::<Result<_>>()?))
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

fn questions(path: &Path, tokenizer: &Tokenizer, max_len: usize, limit: usize) -> Result<Examples> {
    let encode = |(line, row): (usize, Choice)| {
        let at = |message: String| invalid(format!("{}: line {line} {message}", path.display()));
        let start = tokenizer.encode(&row.q, usize::MAX)?.len();
        let rows = row.choices.iter().map(|choice| {
            let mut ids = tokenizer.encode(&format!("{} {choice}", row.q), usize::MAX)?;
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
        });
        let rows: Vec<(Vec<u32>, usize)> = rows.collect::<Result<_>>()?;
        Ok(Question { rows, answer: row.answer })
    };
    let rows: Vec<_> = (1..).zip(read_choices(path)?).collect();
    Ok(Examples::Questions(drawn(rows, limit).into_iter().map(encode).collect::<Result<_>>()?))
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
