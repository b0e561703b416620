//! `rank_pattern` and `alpha_pattern`: values for the modules that differ from the default.
//!
//! As `peft.utils.other.get_pattern_key` has it, a pattern matches the end of a module's
//! name, from a dot on, and the first pattern that matches counts. Patterns are regular
//! expressions, but most are names: those are looked up, so that thousands of patterns for
//! thousands of modules take no longer than reading them. All others share one automaton.

use std::collections::HashMap;

use indexmap::IndexMap;
use regex::{RegexBuilder, RegexSet, RegexSetBuilder};

use super::plain::Plain;
use crate::limits::size;
use crate::text::shown;
use crate::{Error, Result};

/// Longest text of all patterns that are not names, in bytes: a class of two characters may take 10 kB.
const MAX_TEXT: usize = 16 << 10;
/// Largest and smallest limit of the automaton, in bytes.
const SIZES: (u64, u64) = (64 << 10, 4 << 20);

/// Patterns in their order, each with its value.
#[derive(Debug)]
pub struct Patterns<T> {
    values: Vec<T>,
    names: Plain,
    others: RegexSet,
    /// Index of each pattern of the set.
    indices: Vec<usize>,
}

/// Returns the bytes that a configuration's automaton may take, so that matching `names` bytes of names
/// takes no more than `work` steps, some of which are as slow as eight multiply-adds.
pub const fn automaton_limit(names: u64, work: u64) -> usize {
    /// Bytes of an automaton's state.
    const STATE: u64 = 32;
    let limit = (work / 8).saturating_mul(STATE) / if names == 0 { 1 } else { names };
    (if limit < SIZES.0 {
        SIZES.0
    } else if limit > SIZES.1 {
        SIZES.1
    } else {
        limit
    }) as usize
}

/// Compiles patterns of a configuration, which has `maps` maps of them, into an automaton: each map takes
/// its share of the longest text and of the `limit` bytes of all automata.
///
/// # Errors
/// Fails on a pattern that is not a regular expression here, such as one with look-around, and
/// if all patterns together are too long or too large.
pub fn compile<T>(patterns: IndexMap<String, T>, limit: usize, maps: usize) -> Result<Patterns<T>> {
    let (longest, limit) = (MAX_TEXT / maps, limit / maps);
    let (mut names, mut others, mut indices) = (Plain::default(), Vec::new(), Vec::new());
    let mut values = Vec::with_capacity(patterns.len());
    for (index, (key, value)) in patterns.into_iter().enumerate() {
        values.push(value);
        if !names.add(&key, index) {
            others.push(key);
            indices.push(index);
        }
    }
    let text: usize = others.iter().map(String::len).sum();
    if text > longest {
        return Err(Error::data(format!(
            "the patterns that are not names, {} in all, take {}, but those of a configuration with {maps} maps of patterns take at most {longest} bytes for each",
            others.len(),
            size(text as u128)
        )));
    }
    let others = RegexSetBuilder::new(others.iter().map(|key| whole(key)))
        .size_limit(limit)
        .build()
        .map_err(|e| refused(&e, &others, limit))?;
    Ok(Patterns { values, names, others, indices })
}

/// Returns the expression that PEFT makes of a pattern.
fn whole(key: &str) -> String {
    format!(r"^(?:(.*\.)?({key})$)")
}

/// Returns the error about patterns that do not compile.
fn refused(error: &regex::Error, keys: &[String], limit: usize) -> Error {
    if let regex::Error::CompiledTooBig(_) = error {
        return Error::data(format!(
            "the patterns that are not names, {} in all, take more than {} when they are compiled, which is the limit for this file",
            keys.len(),
            size(limit as u128)
        ));
    }
    // The syntax is checked before the size, so that nothing large is compiled to find the wrong one.
    let parsed = |key: &String| RegexBuilder::new(&whole(key)).size_limit(1).build();
    let wrong = keys.iter().find(|key| matches!(parsed(key), Err(regex::Error::Syntax(_))));
    Error::data(format!(
        "the pattern {} is not a regular expression without look-around",
        shown(wrong.map_or("", String::as_str))
    ))
}

impl<T: Copy> Patterns<T> {
    /// Returns the value of the first pattern that matches the module's name.
    pub fn lookup(&self, module: &str) -> Option<T> {
        let other = if self.indices.is_empty() { None } else { self.others.matches(module).iter().next() };
        let first = other.map(|i| self.indices[i]).into_iter().chain(self.names.first(module)).min();
        first.map(|index| self.values[index])
    }
}

/// Returns the commonest value, and a pattern for each module that has another. Values
/// are equal if their keys are.
pub fn patterns<T: Copy>(values: &[(&str, T)], key: fn(T) -> u64) -> Option<(T, IndexMap<String, T>)> {
    let mut counts = HashMap::new();
    values.iter().for_each(|(_, v)| *counts.entry(key(*v)).or_insert(0) += 1);
    // The first of several equally common ones: equal adapters, equal files.
    let (_, common) = values.iter().rev().max_by_key(|(_, v)| counts.get(&key(*v)))?;
    let others = values.iter().filter(|(_, v)| key(*v) != key(*common));
    // Anchored: the path of one module may be the end of another's.
    Some((*common, others.map(|(module, v)| (format!("^{}", module.replace('.', r"\.")), *v)).collect()))
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    const LIMIT: usize = SIZES.1 as usize;

    #[test]
    fn first_match_from_a_dot_wins() {
        let patterns =
            IndexMap::from([("proj".to_string(), 1), ("layers.1.*".into(), 2), ("up_proj".into(), 3)]);
        let patterns = compile(patterns, LIMIT, 1).unwrap();
        let found = |module| patterns.lookup(module);
        assert_eq!(found("model.proj"), Some(1));
        assert_eq!(found("model.layers.1.up_proj"), Some(2));
        assert_eq!(found("model.layers.0.up_proj"), Some(3));
        assert_eq!(found("model.layers.0.down_proj"), None);
    }

    /// Names and expressions are told apart, which must not be seen: every list of patterns finds what
    /// each of its patterns finds as a regular expression.
    #[test]
    fn a_lookup_finds_what_the_expressions_find() {
        let pieces = ["q", "k_proj", "a", "0", "1", "-", ".", r"\.", "^", "$", ".*", "[01]", "(a|q)", ""];
        let modules =
            ["q", "a.q", "a.0.q", "a.1.k_proj", "a0q", "1.a.0.q", "a-q", "k_proj", "a.a.a.a", "0.1"];
        let mut state = 7u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let (mut found, mut missed) = (0, 0);
        for _ in 0..2000 {
            let keys: Vec<String> = (0..1 + next(6))
                .map(|_| (0..1 + next(5)).map(|_| pieces[next(pieces.len())]).collect())
                .collect();
            let list: IndexMap<String, usize> = keys.into_iter().zip(0..).collect();
            let Ok(patterns) = compile(list.clone(), LIMIT, 1) else { continue };
            let each: Vec<_> =
                list.iter().map(|(key, v)| (Regex::new(&whole(key)).expect("compiled above"), *v)).collect();
            for module in modules {
                let want = each.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, v)| *v);
                assert_eq!(patterns.lookup(module), want, "{module} in {list:?}");
                if want.is_some() { found += 1 } else { missed += 1 }
            }
        }
        assert!(found > 2000 && missed > 2000, "{found} found, {missed} missed");
    }

    #[test]
    fn what_is_written_is_found_again_and_nothing_else() {
        let values = [("a.q", 1), ("q", 2), ("b.q", 1), ("a-q", 3)];
        let (common, others) = patterns(&values, |v| v).unwrap();
        assert_eq!(common, 1);
        let others = compile(others, LIMIT, 1).unwrap();
        assert!(others.indices.is_empty(), "a name is looked up");
        for (module, value) in values {
            assert_eq!(others.lookup(module).unwrap_or(common), value, "{module}");
        }
    }

    #[test]
    fn patterns_of_python_alone_and_too_many_are_refused() {
        let refused = |keys: Vec<String>| {
            compile(keys.into_iter().map(|key| (key, 1)).collect(), LIMIT, 1).unwrap_err().to_string()
        };
        assert!(refused(vec!["q".into(), "(?=x)q".into()]).contains("\"(?=x)q\" is not"));
        let long = (0..2000).map(|i| format!("(a|b){{{i}}}")).collect();
        assert!(refused(long).contains("2000 in all, take 21 kB"));
        let large = (0..20).map(|i| format!(r"(\w{{900}}){{{}}}", 900 + i)).collect();
        assert!(refused(large).contains("20 in all, take more than 4.2 MB"));
        assert_eq!(automaton_limit(1, u64::MAX) as u64, SIZES.1);
        assert_eq!(automaton_limit(u64::MAX, 1) as u64, SIZES.0);
    }
}
