//! [`StopTexts`]: the end of a text before one of some words.

/// Filter that ends a text before the first of some stop texts, which may arrive in parts.
#[derive(Debug)]
pub(super) struct StopTexts<'a> {
    stops: &'a [String],
    /// Beginning of a stop text, perhaps.
    held: String,
}

impl<'a> StopTexts<'a> {
    /// Looks for these texts, none of which is empty.
    pub const fn new(stops: &'a [String]) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds a part; returns the text that is certain not to belong to a stop text, and `true` at one.
    pub fn push(&mut self, part: &str) -> (String, bool) {
        self.held.push_str(part);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (self.rest(), true);
        }
        let starts = |stop: &String| {
            let longest = stop.len().min(self.held.len() + 1) - 1;
            let begins = |len: &usize| stop.is_char_boundary(*len) && self.held.ends_with(&stop[..*len]);
            (1..=longest).rev().find(begins).unwrap_or(0)
        };
        let kept = self.stops.iter().map(starts).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Returns the text that is still held.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_any_parts_ends_before_the_first_stop() {
        let stops = ["\nQ:".to_owned(), "ß€".to_owned(), "aab".to_owned()];
        for (text, want) in [
            ("hello\nA: x\nQ: more", "hello\nA: x"),
            ("hello\nQ", "hello\nQ"),
            ("aaab and", "a"),
            ("aaaaß", "aaaaß"),
            ("ßß€aab", "ß"),
            ("", ""),
            ("\nQ:", ""),
        ] {
            let chars: Vec<char> = text.chars().collect();
            for size in 1..=chars.len().max(1) {
                let (mut filter, mut got, mut ended) = (StopTexts::new(&stops), String::new(), false);
                for part in chars.chunks(size) {
                    let (shown, stopped) = filter.push(&part.iter().collect::<String>());
                    got.push_str(&shown);
                    ended = stopped;
                    if ended {
                        break;
                    }
                }
                got.push_str(&filter.rest());
                assert_eq!((got.as_str(), ended), (want, want != text), "{text:?} in parts of {size}");
            }
        }
    }

    #[test]
    fn without_stops_nothing_is_held() {
        assert_eq!(StopTexts::new(&[]).push("abc"), ("abc".to_owned(), false));
        let stops = ["xyz".to_owned()];
        assert_eq!(StopTexts::new(&stops).push("abc"), ("abc".to_owned(), false));
        assert_eq!(StopTexts::new(&stops).push("abxy"), ("ab".to_owned(), false));
    }
}
