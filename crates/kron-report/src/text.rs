//! Text from outside, made fit for a page. The template escapes it.

/// Replaces control characters, and marks that turn the direction of writing, by U+FFFD.
///
/// The first are not allowed in HTML and steer terminals; the second make a name look like another.
pub fn clean(text: impl Into<String>) -> String {
    let text = text.into();
    let bad = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(bad) { text.replace(bad, "\u{fffd}") } else { text }
}

/// Writes a value with at most six significant digits, without trailing zeros.
pub fn short(v: f64) -> String {
    let size = v.abs();
    if size == 0.0 || !v.is_finite() {
        return if v.is_finite() { "0".into() } else { v.to_string() };
    }
    if !(1e-4..1e6).contains(&size) {
        return trimmed(&format!("{v:.2e}"));
    }
    trimmed(&format!("{v:.*}", (5.0 - size.log10().floor()).max(0.0) as usize))
}

/// Removes the zeros at the end of a decimal fraction.
fn trimmed(number: &str) -> String {
    let (digits, exponent) = number.find('e').map_or((number, ""), |e| number.split_at(e));
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    format!("{digits}{exponent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let pairs = [
            (0.1 + 0.2, "0.3"),
            (100.0, "100"),
            (-2.5, "-2.5"),
            (1e-8, "1e-8"),
            (2.5e6, "2.5e6"),
            (123_456.7, "123457"),
            (0.0, "0"),
        ];
        pairs.iter().for_each(|(v, text)| assert_eq!(short(*v), *text));
    }

    #[test]
    fn text_that_steers_a_terminal_or_the_direction_is_replaced() {
        assert_eq!(clean("a\u{1b}[31mb\0\u{202e}c\nd"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c\nd");
    }
}
