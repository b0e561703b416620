//! Quantities in print.

/// Formats seconds with three digits and a unit.
pub fn seconds(s: Option<f64>) -> String {
    let Some(s) = s else { return "–".into() };
    let (value, unit) = match s {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Formats bytes in binary units.
pub fn bytes(b: usize) -> String {
    let b = b as f64;
    match b {
        b if b < 1024.0 => format!("{b} B"),
        b if b < 1048576.0 => format!("{} KiB", digits(b / 1024.0)),
        b if b < 1073741824.0 => format!("{} MiB", digits(b / 1048576.0)),
        b => format!("{} GiB", digits(b / 1073741824.0)),
    }
}

/// Formats a whole number in groups of three digits.
pub fn count(n: usize) -> String {
    let text = n.to_string();
    let mut out = String::new();
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Formats a ratio with the sign ×, without an exponent.
pub fn times(x: Option<f64>) -> String {
    match x {
        Some(x) if x > 0.0 && x < 0.0995 => format!("{x:.*}×", (1.0 - x.log10().floor()) as usize),
        Some(x) => format!("{}×", digits(x)),
        None => "–".into(),
    }
}

/// Formats a fraction in per cent.
pub fn percent(x: Option<f64>) -> String {
    x.map_or("–".into(), |x| format!("{} %", digits(100.0 * x)))
}

/// Formats an error with two digits and an exponent.
pub fn error(x: Option<f64>) -> String {
    x.map_or("not a number".into(), |x| format!("{x:.1e}"))
}

/// Formats three significant digits, or all before the point.
pub fn digits(x: f64) -> String {
    match x.abs() {
        a if a >= 99.95 => format!("{x:.0}"),
        a if a >= 9.995 => format!("{x:.1}"),
        a if a >= 0.0995 || a == 0.0 => format!("{x:.2}"),
        _ => format!("{x:.2e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(seconds(Some(0.001234)), "1.23 ms");
        assert_eq!(seconds(Some(12.3456e-6)), "12.3 µs");
        assert_eq!(seconds(None), "–");
        assert_eq!(bytes(1 << 20), "1.00 MiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(count(5_676_032), "5,676,032");
        assert_eq!(count(999), "999");
        assert_eq!(times(Some(0.0123)), "0.012×");
        assert_eq!(times(Some(3.27e-3)), "0.0033×");
        assert_eq!(times(Some(2.5)), "2.50×");
        assert_eq!(percent(Some(0.987)), "98.7 %");
        assert_eq!(digits(123.4), "123");
    }
}
