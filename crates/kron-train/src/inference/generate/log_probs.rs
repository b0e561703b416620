//! [`most_probable`]: the likeliest tokens at a place, with their log-probabilities.

/// Returns the `count` most probable tokens of finite logits and ln p of each, the first of equal ones first.
pub(super) fn most_probable(logits: &[f32], count: usize) -> Vec<(u32, f64)> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let highest = logits.iter().copied().fold(f32::MIN, f32::max);
    let over = |logit: f32| f64::from(logit) - f64::from(highest);
    let total = logits.iter().map(|&logit| over(logit).exp()).sum::<f64>().ln();
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    all.select_nth_unstable_by(count - 1, order);
    all.truncate(count);
    all.sort_by(order);
    all.into_iter().map(|(id, logit)| (id, over(logit) - total)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_sorted_and_of_all_tokens() {
        let logits: Vec<f32> = [3, 1, 4, 1, 5].map(|p: u16| f32::from(p).ln() + 70.0).into();
        for count in 0..=7 {
            let got = most_probable(&logits, count);
            let want: [(u32, f64); 5] = [(4, 5.0), (2, 4.0), (0, 3.0), (1, 1.0), (3, 1.0)];
            assert_eq!(got.len(), count.min(5));
            for ((id, ln), (same, part)) in got.into_iter().zip(want) {
                assert!(id == same && (ln - (part / 14.0).ln()).abs() < 1e-5, "{id}: {ln}");
            }
        }
    }
}
