//! JSONL files: one JSON object per line; empty lines are passed over. Errors name the number of the line.

use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::Value;

use super::chat::Message;
use crate::error::{Result, file};
use crate::files;

/// Largest number of messages of a conversation, each of which may be rendered with all before it.
const MAX_MESSAGES: usize = 256;
/// Largest number of choices of a question, each of which is encoded with the whole question.
const MAX_CHOICES: usize = 256;
/// Most characters of a wrong label in a message.
const MAX_SHOWN: usize = 60;

/// Text with its class.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Labelled {
    /// Text to classify.
    pub text: String,
    /// Name of the class.
    #[serde(deserialize_with = "name")]
    pub label: String,
    /// Group of classes that makes up one task of a chain.
    #[serde(default)]
    pub domain: Option<String>,
}

/// Multiple-choice question.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Choice {
    /// Text of the question.
    pub q: String,
    /// Possible answers.
    pub choices: Vec<String>,
    /// Index of the correct answer, from 0.
    pub answer: usize,
    /// Group of questions that makes up one task of a chain.
    #[serde(default)]
    pub domain: Option<String>,
}

/// Reads a label, which is a string or a number.
fn name<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<String, D::Error> {
    match Value::deserialize(from)? {
        Value::String(text) => Ok(text),
        Value::Number(number) if number.is_i64() => Ok(number.to_string()),
        other => {
            let other: String = other.to_string().chars().take(MAX_SHOWN).collect();
            Err(D::Error::custom(format!("the label is {other}, but a label is a string or a whole number")))
        }
    }
}

/// Reads lines `{"text": …, "label": …}` with an optional `"domain"`.
///
/// # Errors
/// The file cannot be read, has no line, or has a malformed line.
pub fn read_labelled(path: &Path) -> Result<Vec<Labelled>> {
    read(path, |row: &Labelled| match row.text.trim().is_empty() {
        true => Err("has an empty text, but a text has at least one character".into()),
        false => Ok(()),
    })
}

/// Reads lines `{"text": …}`; other fields are ignored.
///
/// # Errors
/// As [`read_labelled`].
pub fn read_texts(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Text {
        text: String,
    }
    let rows = read(path, |row: &Text| match row.text.trim().is_empty() {
        true => Err("has an empty text, but a text has at least one character".into()),
        false => Ok(()),
    })?;
    Ok(rows.into_iter().map(|row| row.text).collect())
}

/// Reads lines `{"prompt": …}`; other fields are ignored.
///
/// # Errors
/// The file cannot be read, has no line, or has a malformed line.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Prompt {
        prompt: String,
    }
    let rows = read(path, |_: &Prompt| Ok(()))?;
    Ok(rows.into_iter().map(|row| row.prompt).collect())
}

/// Reads lines `{"messages": [{"role": …, "content": …}, …]}`; other fields of a line are ignored, but not those of a
/// message.
///
/// # Errors
/// As [`read_prompts`], or a conversation has no message or too many of them.
pub fn read_conversations(path: &Path) -> Result<Vec<Vec<Message>>> {
    #[derive(Deserialize)]
    struct Conversation {
        messages: Vec<Message>,
    }
    let rows = read(path, |row: &Conversation| match row.messages.len() {
        1..=MAX_MESSAGES => Ok(()),
        n => Err(format!("has {n} messages, but a conversation has from 1 to {MAX_MESSAGES}")),
    })?;
    Ok(rows.into_iter().map(|row| row.messages).collect())
}

/// Reads lines `{"q": …, "choices": […], "answer": …}`, with answers counted from 0 and an optional `"domain"`.
///
/// # Errors
/// As [`read_labelled`], an answer exceeds the number of choices, or a question has none or too many of them.
pub fn read_choices(path: &Path) -> Result<Vec<Choice>> {
    read(path, |row: &Choice| match (row.answer, row.choices.len()) {
        (answer, n) if n > 0 && answer >= n => {
            Err(format!("has answer {answer}, but its {n} choices are counted from 0"))
        }
        (_, n) => check_choices(n),
    })
}

/// Reads lines `{"q": …, "choices": […]}`: questions with their choices; other fields are ignored.
///
/// # Errors
/// As [`read_labelled`], or a question has no choice or too many of them.
pub fn read_questions(path: &Path) -> Result<Vec<(String, Vec<String>)>> {
    #[derive(Deserialize)]
    struct Question {
        q: String,
        choices: Vec<String>,
    }
    let rows = read(path, |row: &Question| check_choices(row.choices.len()))?;
    Ok(rows.into_iter().map(|row| (row.q, row.choices)).collect())
}

fn check_choices(n: usize) -> Result<(), String> {
    match n {
        1..=MAX_CHOICES => Ok(()),
        _ => Err(format!("has {n} choices, but a question has from 1 to {MAX_CHOICES}")),
    }
}

fn read<T: DeserializeOwned>(path: &Path, check: impl Fn(&T) -> Result<(), String>) -> Result<Vec<T>> {
    let text = files::text(path, files::MAX_DATA)?;
    let parse = |(number, line): (usize, &str)| {
        let at = |message: String| file(path, format!("line {number} {message}"));
        let row = serde_json::from_str(line).map_err(|e| at(format!("is malformed: {e}")))?;
        check(&row).map_err(at)?;
        Ok(row)
    };
    if text.starts_with('\u{feff}') {
        return Err(file(
            path,
            "begins with a byte order mark, which JSON does not have: save it as UTF-8 without one",
        ));
    }
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(parse).collect::<Result<Vec<T>>>()?;
    if rows.is_empty() {
        return Err(file(path, "has no line, but a data set has at least one"));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_lines_are_passed_over_and_labels_are_strings_or_whole_numbers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        let rows = "{\"text\": \"a\", \"label\": \"x\"}\r\n\r\n \n{\"text\": \"b\", \"label\": -7}\n\n";
        std::fs::write(&path, rows).expect("a file");
        let read = read_labelled(&path).expect("two rows");
        let pairs: Vec<_> = read.iter().map(|row| (row.text.as_str(), row.label.as_str())).collect();
        assert_eq!(pairs, [("a", "x"), ("b", "-7")]);
    }
}
