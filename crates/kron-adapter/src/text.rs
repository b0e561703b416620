//! Foreign text in messages and on terminals.

use std::borrow::Cow;
use std::fmt::Display;

/// Longest name in a message, in characters.
const NAME: usize = 200;
/// Longest message, in characters: a path, some names and a rule.
const MESSAGE: usize = 4000;
/// Characters of a quoted text.
const QUOTED: usize = 80;
/// Longest name that is compared by its letters, in bytes: a distance takes as many steps as the product of the lengths.
const COMPARED: usize = 512;

/// Shortens a name from a file to 200 characters, by an ellipsis in its middle, and replaces
/// characters that a terminal would obey.
///
/// ```
/// use kron_adapter::text::name;
///
/// assert_eq!(name("model.q_proj"), "model.q_proj");
/// assert_eq!(name("a\x1b[31mb"), "a\u{fffd}[31mb");
/// assert_eq!(name(&"x".repeat(1 << 20)).chars().count(), 200);
/// ```
pub fn name(text: &str) -> Cow<'_, str> {
    within(one_line(text), NAME)
}

/// Replaces characters that a terminal would obey, line ends too, and shortens the middle of a long text.
pub(crate) fn sentence(text: String) -> String {
    within(one_line(&text), MESSAGE).into_owned()
}

/// Replaces characters that a terminal would obey, except line ends: control characters, and
/// characters that reorder or hide text.
///
/// ```
/// use kron_adapter::text::printable;
///
/// assert_eq!(printable("a\tb\r\nc\u{202e}"), "a\u{fffd}b\u{fffd}\nc\u{fffd}");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    replaced(text.into(), |c| is_obeyed(c) && c != '\n')
}

/// Quotes a string from a file and shortens it, so that it fits on one line of a message.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((cut, _)) => format!("{:?}… ({} bytes)", &text[..cut], text.len()),
        None => format!("{text:?}"),
    }
}

/// Shortens a library's message about foreign text, so that it fits on one line.
pub(crate) fn shortened(message: &str) -> String {
    const SHOWN: usize = 300;
    match message.char_indices().nth(SHOWN) {
        Some((cut, _)) => one_line(&message[..cut]).into_owned() + "…",
        None => one_line(message).into_owned(),
    }
}

/// Returns JSON as Python writes it, with `null` for NaN and the infinities, which JSON does not have.
///
/// ```
/// use kron_adapter::text::without_nan;
///
/// let text = without_nan(br#"{"a": NaN, "b": [-Infinity, "NaN \" Infinity"]}"#);
/// assert_eq!(&text[..], br#"{"a": null, "b": [null, "NaN \" Infinity"]}"#);
/// ```
pub fn without_nan(json: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    let mut out: Option<Vec<u8>> = None;
    let (mut at, mut in_string) = (0, false);
    while let Some(byte) = json.get(at) {
        let word = WORDS.into_iter().find(|word| !in_string && json[at..].starts_with(word));
        let len = match (word, byte) {
            (Some(word), _) => word.len(),
            (None, b'\\') if in_string => 2.min(json.len() - at),
            _ => 1,
        };
        in_string ^= *byte == b'"';
        if word.is_some() && out.is_none() {
            out = Some(json[..at].to_vec());
        }
        if let Some(out) = &mut out {
            out.extend_from_slice(if word.is_some() { b"null" } else { &json[at..at + len] });
        }
        at += len;
    }
    out.map_or(Cow::Borrowed(json), Cow::Owned)
}

/// Describes why the bytes of a file are not the JSON that was expected, and names a byte order mark.
///
/// ```
/// use kron_adapter::text::json_fault;
///
/// let fault = |bytes: &[u8]| json_fault(bytes, &serde_json::from_slice::<bool>(bytes).unwrap_err());
/// assert!(fault(b"\xef\xbb\xbftrue").starts_with("it begins with a byte order mark"));
/// assert_eq!(fault(b"1"), "invalid type: integer `1`, expected a boolean at line 1 column 1");
/// ```
pub fn json_fault(bytes: &[u8], error: &serde_json::Error) -> String {
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => {
            "it begins with a byte order mark, which JSON does not have: save it as UTF-8 without one".into()
        }
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "it begins with the byte order mark of UTF-16: save it as UTF-8".into()
        }
        _ => shortened(&error.to_string()),
    }
}

/// Replaces characters that a terminal would obey, line ends too.
///
/// ```
/// use kron_adapter::text::one_line;
///
/// assert_eq!(one_line("a\tb\nc"), "a\u{fffd}b\u{fffd}c");
/// ```
pub fn one_line(text: &str) -> Cow<'_, str> {
    replaced(text.into(), is_obeyed)
}

/// Escapes characters of a JSON text that a terminal would obey; its values stay the same.
///
/// ```
/// use kron_adapter::text::printable_json;
///
/// assert_eq!(printable_json("\"a\u{9b}31m\""), r#""a\u009b31m""#);
/// ```
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let is_bad = |c: char| is_obeyed(c) && c != '\n';
    if !json.contains(is_bad) {
        return json.into();
    }
    let escaped = json.chars().map(|c| match is_bad(c) {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    });
    escaped.collect::<String>().into()
}

/// Returns the names that are nearest to a text by edit distance, at most `count`, the nearest first.
///
/// ```
/// use kron_adapter::text::nearest;
///
/// assert_eq!(nearest(["mistral-7b", "llama-2-7b"], "mistal-7b", 1), ["mistral-7b"]);
/// ```
pub fn nearest<'a>(names: impl IntoIterator<Item = &'a str>, text: &str, count: usize) -> Vec<&'a str> {
    let names = names.into_iter().filter(|name| name.len().max(text.len()) <= COMPARED);
    let mut near: Vec<_> = names.map(|name| (strsim::levenshtein(name, text), name)).collect();
    near.sort_unstable();
    near.into_iter().take(count).map(|(_, name)| name).collect()
}

/// Returns the name that a text is probably a slip of: the nearest one, if one letter of three differs at most.
///
/// ```
/// use kron_adapter::text::nearly;
///
/// assert_eq!(nearly(["mistral-7b", "llama-2-7b"], "mistal-7b"), Some("mistral-7b"));
/// assert_eq!(nearly(["mistral-7b", "llama-2-7b"], "gpt-5"), None);
/// ```
pub fn nearly<'a>(names: impl IntoIterator<Item = &'a str>, text: &str) -> Option<&'a str> {
    let near = nearest(names, text, 1);
    near.first().copied().filter(|name| 3 * strsim::levenshtein(name, text) <= text.chars().count())
}

/// Names the first of some things and counts the others; `None` for none.
///
/// ```
/// use kron_adapter::text::first_and_more;
///
/// assert_eq!(first_and_more(["a", "b", "c"]).as_deref(), Some("a and 2 more"));
/// assert_eq!(first_and_more(["a"]).as_deref(), Some("a"));
/// ```
pub fn first_and_more<T: Display>(names: impl IntoIterator<Item = T>) -> Option<String> {
    let mut names = names.into_iter();
    let first = names.next()?;
    Some(match names.count() {
        0 => first.to_string(),
        more => format!("{first} and {more} more"),
    })
}

fn replaced(text: Cow<'_, str>, is_bad: fn(char) -> bool) -> Cow<'_, str> {
    if text.contains(is_bad) { text.replace(is_bad, "\u{fffd}").into() } else { text }
}

/// True for control characters, line and paragraph separators, and marks of writing direction.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Puts an ellipsis in the place of a long text's middle.
fn within(text: Cow<'_, str>, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit || text.chars().nth(limit).is_none() {
        return text;
    }
    let half = limit / 2;
    let start = text.char_indices().nth(half).map_or(text.len(), |(at, _)| at);
    let end = text.char_indices().rev().nth(limit - half - 2).map_or(0, |(at, _)| at);
    format!("{}…{}", &text[..start], &text[end..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_both_ends_and_short_ones_all() {
        for len in [0, 1, NAME - 1, NAME] {
            let text = "é".repeat(len);
            assert_eq!(name(&text), text);
        }
        let long = name(&format!("ab{}yz", "é".repeat(NAME))).into_owned();
        assert!(long.chars().count() == NAME && long.starts_with("abé") && long.ends_with("éyz"), "{long}");
        assert_eq!(long.matches('…').count(), 1);
        let message = sentence(format!("path: {} is above the limit", "x".repeat(1 << 22)));
        assert!(message.chars().count() == MESSAGE && message.ends_with("is above the limit"));
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for c in (0..0x1_0000).filter_map(char::from_u32) {
            let text = format!("a{c}b");
            let kept = name(&text) == text;
            // Debug escapes what is not printable; of that, spaces and unassigned characters do no harm.
            let escaped = c.escape_debug().count() > 1 && !matches!(c, '"' | '\'' | '\\');
            assert!(escaped || kept, "{c:?}");
            assert!(!c.is_control() || !kept, "{c:?}");
            assert_eq!(printable(&text) == text, kept || c == '\n', "{c:?}");
        }
    }
}
