//! Colours that show on white and on black.

use std::fmt;

/// Colours of series that have none of their own, in this order and then again from the first.
const PALETTE: [[u8; 3]; 8] = [
    [0x2f, 0x7e, 0xd8],
    [0xd9, 0x6b, 0x1e],
    [0x2c, 0x96, 0x5a],
    [0xa8, 0x5f, 0xc9],
    [0xd6, 0x45, 0x50],
    [0x12, 0x8f, 0xa3],
    [0x9a, 0x75, 0x2e],
    [0xc9, 0x4f, 0x97],
];

/// Luminances with a contrast of at least 3 : 1 to the page's light and to its dark background.
const VISIBLE: std::ops::RangeInclusive<f64> = 0.14..=0.29;

/// A colour with a contrast of at least 3 : 1 on the page's light and on its dark background.
///
/// # Examples
/// ```
/// use kron_report::Colour;
///
/// assert_eq!(Colour::rgb(0xd1, 0x49, 0x5b).to_string(), "#D1495B");
/// // Too dark for a dark page: mixed with white.
/// assert_ne!(Colour::rgb(0, 0, 0x20).to_string(), "#000020");
/// assert_eq!(Colour::hex("#d1495b"), Some(Colour::rgb(0xd1, 0x49, 0x5b)));
/// assert_eq!(Colour::hex("red"), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour([u8; 3]);

impl Colour {
    /// Number of colours of the palette, and of series without one of their own that a chart tells apart.
    pub const DISTINCT: usize = PALETTE.len();

    /// The colour of text: black on a light page, white on a dark one.
    pub const INK: Self = Self([0; 3]);

    /// Mixes red, green and blue with as much white or black as the contrast needs.
    pub fn rgb(red: u8, green: u8, blue: u8) -> Self {
        let given = [red, green, blue];
        let towards = if luminance(given) < *VISIBLE.start() { 255.0 } else { 0.0 };
        let mix = |share: f64| given.map(|v| (f64::from(v) + share * (towards - f64::from(v))).round() as u8);
        let mixes = (0..100).map(|percent| mix(f64::from(percent) / 100.0));
        Self(mixes.into_iter().find(|rgb| VISIBLE.contains(&luminance(*rgb))).unwrap_or(PALETTE[0]))
    }

    /// Reads `#rrggbb`.
    pub fn hex(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('#').filter(|d| d.len() == 6)?;
        let value = u32::from_str_radix(digits, 16).ok()?;
        let [_, red, green, blue] = value.to_be_bytes();
        Some(Self::rgb(red, green, blue))
    }

    /// The palette's colour of this index; after the last comes the first again.
    pub fn pick(index: usize) -> Self {
        Self(PALETTE[index % PALETTE.len()])
    }

    pub(crate) fn parts(self) -> [u8; 3] {
        self.0
    }
}

/// Writes a CSS colour.
impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [red, green, blue] = self.0;
        if *self == Self::INK {
            f.write_str("currentColor")
        } else {
            write!(f, "#{red:02X}{green:02X}{blue:02X}")
        }
    }
}

/// The relative luminance of WCAG 2.
fn luminance(rgb: [u8; 3]) -> f64 {
    let linear = |v: u8| match f64::from(v) / 255.0 {
        v if v <= 0.04045 => v / 12.92,
        v => ((v + 0.055) / 1.055).powf(2.4),
    };
    let [red, green, blue] = rgb.map(linear);
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_is_visible_on_both_backgrounds() {
        // The backgrounds of templates/page.css.
        let (light, dark) = (luminance([255, 255, 255]), luminance([0x14, 0x18, 0x1f]));
        let made = (0..=255).step_by(15).flat_map(|r| {
            (0..=255).step_by(15).flat_map(move |g| (0..=255).step_by(15).map(move |b| Colour::rgb(r, g, b)))
        });
        for colour in (0..PALETTE.len()).map(Colour::pick).chain(made) {
            let l = luminance(colour.parts());
            assert!((light + 0.05) / (l + 0.05) >= 3.0 && (l + 0.05) / (dark + 0.05) >= 3.0, "{colour}");
        }
    }
}
