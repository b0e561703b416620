//! One JSON object a line; a line that breaks the form is named by its number.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, file};

/// A text and its class.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Labelled {
    /// The text.
    pub text: String,
    /// The class's name.
    #[serde(deserialize_with = "name")]
    pub label: String,
    /// A group of classes, for tasks in a row.
    #[serde(default)]
    pub domain: Option<String>,
}

/// A question with possible answers.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Choice {
    /// The question.
    pub q: String,
    /// What may be said.
    pub choices: Vec<String>,
    /// Which of them is right, from 0.
    pub answer: usize,
}

/// A label is a string or a number.
fn name<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Label {
        Text(String),
        Number(i64),
    }
    Ok(match Label::deserialize(from)? {
        Label::Text(text) => text,
        Label::Number(number) => number.to_string(),
    })
}

/// `{"text": …, "label": …}` a line, with an optional `"domain"`.
///
/// # Errors
/// A file that is not there or has no line, and the first line that breaks the form.
pub fn read_labelled(path: &Path) -> Result<Vec<Labelled>> {
    read(path, |row: &Labelled| match row.text.trim().is_empty() {
        true => Err("has an empty text, but a text has at least one character".into()),
        false => Ok(()),
    })
}

/// `{"text": …}` a line; other fields are passed over.
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

/// `{"q": …, "choices": […], "answer": 0-based}` a line.
///
/// # Errors
/// As [`read_labelled`], and an answer that is none of the choices.
pub fn read_choices(path: &Path) -> Result<Vec<Choice>> {
    read(path, |row: &Choice| match row.answer < row.choices.len() {
        true => Ok(()),
        false => Err(format!(
            "has answer {}, but its {} choices are counted from 0",
            row.answer,
            row.choices.len()
        )),
    })
}

fn read<T: DeserializeOwned>(path: &Path, check: impl Fn(&T) -> Result<(), String>) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
    let parse = |(number, line): (usize, &str)| {
        let at = |message: String| file(path, format!("line {number} {message}"));
        if line.trim().is_empty() {
            return Err(at("is empty, but every line is one JSON object".into()));
        }
        let row = serde_json::from_str(line).map_err(|e| at(format!("is not as it should be: {e}")))?;
        check(&row).map_err(at)?;
        Ok(row)
    };
    let rows = (1..).zip(text.lines()).map(parse).collect::<Result<Vec<T>>>()?;
    if rows.is_empty() {
        return Err(file(path, "has no line, but a data set has at least one"));
    }
    Ok(rows)
}
