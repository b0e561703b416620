//! Numbers of parameters: as people write them (`5708448`, `840k`, `5.7M`, `1.2B`), and as they are printed.

use std::str::FromStr;

/// A number of parameters, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u64);

impl FromStr for Count {
    type Err = String;

    /// Parses exactly in decimal: `5.708448M` is 5 708 448. A fraction of a parameter is refused.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not a number of parameters such as 5708448, 840k or 5.7M");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let zeros = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" => 0,
            "k" => 3,
            "m" => 6,
            "b" | "g" => 9,
            _ => return Err(refused()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let fraction = fraction.trim_end_matches('0');
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !plain(whole) || !plain(fraction) || fraction.len() > zeros {
            return Err(refused());
        }
        let number = format!("{whole}{fraction:0<zeros$}").parse().map_err(|_| refused())?;
        if number == 0 {
            return Err(format!("a budget is {text}, but it is at least 1 parameter"));
        }
        Ok(Self(number))
    }
}

/// Converts a sum over a model to the type of the report. A sum beyond u64, larger than any machine,
/// becomes `u64::MAX`.
pub fn saturated(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// Writes `5708448` as `5,708,448`.
pub fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_is_exact() {
        let table = [
            ("5708448", 5_708_448),
            ("840k", 840_000),
            ("5.7M", 5_700_000),
            ("5.708448m", 5_708_448),
            ("1.2B", 1_200_000_000),
            ("7.50k", 7500),
        ];
        for (text, number) in table {
            assert_eq!(text.parse(), Ok(Count(number)), "{text}");
        }
        for text in
            ["", "M", "-1", "1.5", "5.7T", "0", "1e6", ".5M", "1.2345k", "99999999999999999999", "5.7MM", "٣"]
        {
            assert!(text.parse::<Count>().is_err(), "{text}");
        }
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 5_708_448].map(grouped), ["0", "999", "1,000", "5,708,448"]);
    }
}
