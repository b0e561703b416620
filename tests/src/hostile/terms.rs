//! Sums of terms that are out of order, or in an earlier version.

use super::{Hostile, Parts};
use crate::adapters::seeds;

/// Terms of a sum that are out of order, or in an earlier version.
pub(super) fn terms() -> Vec<Hostile> {
    let (_, adapter) = seeds().into_iter().find(|(name, _)| *name == "terms").expect("an adapter with a sum");
    let valid = Parts::of(&adapter.to_bytes().expect("a valid adapter"));
    let term = |name, by: &str, says| Hostile {
        name,
        bytes: valid.edit(r#"\"term\":1"#, &format!(r#"\"term\":{by}"#)).join(),
        says,
    };
    // Its tensors have the name of the other term, too.
    let renamed = |name, by: &str, says| {
        let mut parts = valid.edit(r#"\"term\":1"#, &format!(r#"\"term\":{by}"#));
        parts.header = parts.header.replace("kron1_", &format!("kron{by}_"));
        Hostile { name, bytes: parts.join(), says }
    };
    let version = valid.edit(r#"\"version\":4"#, r#"\"version\":3"#);
    vec![
        Hostile { name: "term in version 3", bytes: version.join(), says: "has the fields of version 4" },
        Hostile {
            name: "version 4 without a term",
            bytes: super::valid().edit(r#"\"version\":1"#, r#"\"version\":4"#).join(),
            says: "has the fields of version 1",
        },
        term("term without its tensors", "2", r#"lacks the tensor "q.kron2_a""#),
        term("term 0", "0", "term 0, which is left out"),
        term("term that is null", "null", "breaks the format"),
        term("term below 0", "-1", "breaks the format"),
        renamed("term after a gap", "2", "term 2 of module q does not follow term 1"),
        renamed("term beyond the largest", "16", "the terms are 0 to 15"),
        renamed("term of 2⁶⁴ − 1", "18446744073709551615", "the terms are 0 to 15"),
    ]
}
