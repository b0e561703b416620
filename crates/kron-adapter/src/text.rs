//! Foreign text in messages.

/// Quotes a string from a file and shortens it, so that it fits on one line of a message.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{:?}… ({} bytes)", &text[..cut], text.len()),
        None => format!("{text:?}"),
    }
}

/// Shortens a library's message about foreign text, so that it fits on one line.
pub(crate) fn shortened(message: &str) -> String {
    const SHOWN: usize = 300;
    let line: String =
        message.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if line.len() < message.len() && message.chars().nth(SHOWN).is_some() { line + "…" } else { line }
}
