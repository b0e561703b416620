//! [`Conversation`]: messages as token ids, of which the assistant's are learned.

use std::ops::Range;

use super::chat::{ChatTemplate, Message};
use super::tokenizer::Tokenizer;
use crate::error::{Result, invalid};

/// Role whose messages are learned.
const ASSISTANT: &str = "assistant";

/// Conversation as token ids.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Conversation {
    /// Ids of all messages, in the layout of the chat template.
    pub ids: Vec<u32>,
    /// Indices of the ids that belong to an assistant's answer, with the token that ends it; none is 0.
    pub answers: Vec<usize>,
}

impl Conversation {
    /// Lays out and encodes messages, at most `max_len` ids from the first on.
    ///
    /// A token that spans the beginning of an answer belongs to it.
    ///
    /// # Errors
    /// The template refuses the messages, its text up to an answer changes with the answer or with a later message, or
    /// no answer is within `max_len`.
    pub(super) fn new(
        messages: &[Message],
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
        max_len: usize,
    ) -> Result<Self> {
        let (text, spans) = answers(messages, template)?;
        let tokens = tokenizer.encode_with_ends(&text)?;
        let all = tokens.len();
        let (ids, ends): (Vec<u32>, Vec<usize>) = tokens.into_iter().take(max_len).unzip();
        // A token's end is in its span, the end of the text before it is not.
        let is_answer = |end: usize| spans.iter().any(|span| span.start < end && end <= span.end);
        let answers: Vec<usize> = (1..ids.len()).filter(|&i| is_answer(ends[i])).collect();
        match answers.is_empty() {
            true => Err(invalid(format!(
                "a conversation of {all} tokens has no answer within max_len = {max_len}, but an answer is what is learned"
            ))),
            false => Ok(Self { ids, answers }),
        }
    }
}

/// Returns the text of a conversation, and the part of each answer.
fn answers(messages: &[Message], template: &ChatTemplate) -> Result<(String, Vec<Range<usize>>)> {
    let whole = template.render(messages, false)?;
    let mut spans = Vec::new();
    for (i, _) in messages.iter().enumerate().filter(|(_, message)| message.role == ASSISTANT) {
        let before = template.render(&messages[..i], true)?;
        let through = template.render(&messages[..=i], false)?;
        let changed = |by, number| {
            invalid(format!(
                "the chat template changes the text before message {number} by {by}, but it has to begin the text with it"
            ))
        };
        if !through.starts_with(&before) {
            return Err(changed("the answer itself", i + 1));
        }
        if !whole.starts_with(&through) {
            return Err(changed("a later message", i + 2));
        }
        spans.push(before.len()..through.len());
    }
    match spans.is_empty() {
        true => Err(invalid(format!(
            "a conversation has no message of the role {ASSISTANT}, but that is what is learned"
        ))),
        false => Ok((whole, spans)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn spans(source: &str, messages: &[Message]) -> Result<Vec<String>, String> {
        let template = ChatTemplate::new(source.into(), "<s>".into(), "</s>".into()).expect("a template");
        let (text, spans) = answers(messages, &template).map_err(|e| e.to_string())?;
        Ok(spans.into_iter().map(|span| text[span].to_owned()).collect())
    }

    #[test]
    fn answers_are_what_follows_their_generation_prompts() {
        let talk = [
            message("system", "S"),
            message("user", "hi"),
            message("assistant", "yes"),
            message("user", "more"),
            message("assistant", ""),
        ];
        let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        assert_eq!(spans(plain, &talk), Ok(vec!["yes</s>\n".into(), "</s>\n".into()]));
        assert!(
            spans(plain, &talk[..2]).expect_err("no answer").contains("no message of the role assistant")
        );
        // The prompt of an answer has a text that the answer has not.
        let thinking = plain.replace(
            "{% if add_generation_prompt %}<assistant>",
            "{% if add_generation_prompt %}<assistant><think>",
        );
        let message = spans(&thinking, &talk).expect_err("another beginning");
        assert!(message.contains("before message 3 by the answer itself"), "{message}");
        // An earlier answer is shortened.
        let shortened =
            plain.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' else '' }}");
        let message = spans(&shortened, &talk).expect_err("another text");
        assert!(message.contains("before message 4 by a later message"), "{message}");
    }
}
