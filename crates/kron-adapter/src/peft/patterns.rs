//! `rank_pattern` and `alpha_pattern`: values for the modules that differ from the default.

use indexmap::IndexMap;
use regex::{Regex, RegexBuilder};

use crate::{Error, Result};

/// Patterns in their order, each with its value.
pub type Patterns<T> = Vec<(Regex, T)>;

/// Compiles the patterns of a configuration.
///
/// # Errors
/// Fails on a pattern that is not a regular expression here, such as one with look-around.
pub fn compile<T>(patterns: IndexMap<String, T>) -> Result<Patterns<T>> {
    let compiled = patterns.into_iter().map(|(key, value)| {
        // As `peft.utils.other.get_pattern_key` has it: the end of the name, from a dot on.
        let pattern = RegexBuilder::new(&format!(r"^(?:(.*\.)?({key})$)")).size_limit(1 << 20).build();
        match pattern {
            Ok(pattern) => Ok((pattern, value)),
            Err(_) => Err(Error::data(format!(
                "the pattern {key:?} is not a regular expression without look-around"
            ))),
        }
    });
    compiled.collect()
}

/// Returns the value of the first pattern that matches the module's name.
pub fn lookup<T: Copy>(patterns: &Patterns<T>, module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, value)| *value)
}

/// Returns the commonest value, and a pattern for each module that has another.
pub fn patterns<T: Copy + PartialEq>(values: &[(&str, T)]) -> Option<(T, IndexMap<String, T>)> {
    let count = |v: &T| values.iter().filter(|(_, other)| other == v).count();
    // The first of several equally common ones: equal adapters, equal files.
    let (_, common) = values.iter().rev().max_by_key(|(_, v)| count(v))?;
    let others = values.iter().filter(|(_, v)| v != common);
    // Anchored: the path of one module may be the end of another's.
    Some((*common, others.map(|(module, v)| (format!("^{}", module.replace('.', r"\.")), *v)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_match_from_a_dot_wins() {
        let patterns =
            IndexMap::from([("proj".to_string(), 1), ("layers.1.*".into(), 2), ("up_proj".into(), 3)]);
        let patterns = compile(patterns).unwrap();
        let found = |module| lookup(&patterns, module);
        assert_eq!(found("model.proj"), Some(1));
        assert_eq!(found("model.layers.1.up_proj"), Some(2));
        assert_eq!(found("model.layers.0.up_proj"), Some(3));
        assert_eq!(found("model.layers.0.down_proj"), None);
    }

    #[test]
    fn what_is_written_is_found_again_and_nothing_else() {
        let values = [("a.q", 1), ("q", 2), ("b.q", 1), ("a-q", 3)];
        let (common, others) = patterns(&values).unwrap();
        assert_eq!(common, 1);
        let others = compile(others).unwrap();
        for (module, value) in values {
            assert_eq!(lookup(&others, module).unwrap_or(common), value, "{module}");
        }
    }

    #[test]
    fn patterns_of_python_alone_are_refused() {
        let patterns = IndexMap::from([("(?=x)q".to_string(), 1)]);
        assert!(compile(patterns).unwrap_err().message().contains("look-around"));
    }
}
