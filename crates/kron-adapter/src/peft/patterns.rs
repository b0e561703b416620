//! `rank_pattern` and `alpha_pattern`: values for the modules that differ from the default.
//!
//! As `peft.utils.other.get_pattern_key` has it, a pattern matches the end of a module's
//! name, from a dot on, and the first pattern that matches counts. Patterns are regular
//! expressions, but most are names: those are looked up, so that thousands of patterns for
//! thousands of modules take no longer than reading them. All others share one automaton, except the few with
//! look-around, each of which backtracks for a bounded number of steps.

use std::cell::Cell;
use std::collections::HashMap;

use indexmap::IndexMap;
use regex::{RegexBuilder, RegexSet, RegexSetBuilder};

use super::plain::Plain;
use crate::limits::size;
use crate::text::{name, shortened, shown};
use crate::{Error, Result};

/// Longest text of all patterns that are not names, in bytes: a class of two characters may take 10 kB.
const MAX_TEXT: usize = 16 << 10;
/// Largest and smallest limit of the automaton, in bytes.
const SIZES: (u64, u64) = (64 << 10, 4 << 20);
/// Most patterns with look-around.
const MAX_LOOKING: usize = 8;
/// Most groups and classes in such a pattern: its parser calls itself for each one inside another.
const MAX_GROUPS: usize = 64;
/// Bytes of an automaton's state.
const STATE: u64 = 32;

/// Patterns in their order, each with its value.
#[derive(Debug)]
pub struct Patterns<T> {
    keys: Vec<String>,
    values: Vec<T>,
    names: Plain,
    others: RegexSet,
    /// Index of each pattern of the set.
    indices: Vec<usize>,
    /// Patterns with look-around, and their index.
    looking: Vec<(usize, fancy_regex::Regex)>,
    /// True for a pattern that was the first to match some name.
    used: Vec<Cell<bool>>,
}

/// Returns the bytes that a configuration's automaton may take, so that matching `names` bytes of names
/// takes no more than `work` steps, some of which are as slow as eight multiply-adds.
pub const fn automaton_limit(names: u64, work: u64) -> usize {
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
/// Fails on a pattern that is not a regular expression, on many with look-around, and
/// if all patterns together are too long or too large.
pub fn compile<T>(patterns: IndexMap<String, T>, limit: usize, maps: usize) -> Result<Patterns<T>> {
    let (longest, limit) = (MAX_TEXT / maps, limit / maps);
    let mut names = Plain::default();
    let (keys, values): (Vec<String>, Vec<T>) = patterns.into_iter().unzip();
    let mut others: Vec<(usize, &String)> =
        keys.iter().enumerate().filter(|(index, key)| !names.add(key, *index)).collect();
    let text: usize = others.iter().map(|(_, key)| key.len()).sum();
    if text > longest {
        return Err(Error::data(format!(
            "the patterns that are not names, {} in all, take {}, but those of a configuration with {maps} maps of patterns take at most {longest} bytes for each",
            others.len(),
            size(text as u128)
        )));
    }
    let set = |others: &[(usize, &String)]| {
        RegexSetBuilder::new(others.iter().map(|(_, key)| whole(key))).size_limit(limit).build()
    };
    let mut built = set(&others);
    let mut looking = Vec::new();
    if let Err(regex::Error::Syntax(_)) = built {
        let (others_here, rest) = others.into_iter().partition(|(_, key)| is_regular(key));
        others = others_here;
        looking = looking_patterns(rest, limit)?;
        built = set(&others);
    }
    let built = built.map_err(|e| refused(&e, others.len(), limit))?;
    let indices = others.into_iter().map(|(index, _)| index).collect();
    let used = vec![Cell::new(false); keys.len()];
    Ok(Patterns { keys, values, names, others: built, indices, looking, used })
}

/// True unless the pattern has look-around or is wrong. The syntax is checked before the size, so that nothing
/// large is compiled for it.
fn is_regular(key: &str) -> bool {
    !matches!(RegexBuilder::new(&whole(key)).size_limit(1).build(), Err(regex::Error::Syntax(_)))
}

/// Compiles patterns with look-around; together they take as many steps for a name as the automaton may.
fn looking_patterns(keys: Vec<(usize, &String)>, limit: usize) -> Result<Vec<(usize, fancy_regex::Regex)>> {
    /// Steps that a short pattern takes on a short name.
    const STEPS: usize = 512;
    if keys.len() > MAX_LOOKING {
        return Err(Error::data(format!(
            "{} patterns are not regular expressions without look-around, but at most {MAX_LOOKING} may have it",
            keys.len()
        )));
    }
    let steps = (limit / STATE as usize / keys.len().max(1)).max(STEPS);
    let compiled = keys.into_iter().map(|(index, key)| {
        let groups = key.bytes().filter(|byte| b"([".contains(byte)).count();
        let mut builder = fancy_regex::RegexBuilder::new(&whole(key));
        let pattern =
            builder.backtrack_limit(steps).delegate_size_limit(limit).delegate_dfa_size_limit(limit);
        let built = Some(pattern).filter(|_| groups <= MAX_GROUPS).map(|pattern| pattern.build());
        match built {
            Some(Ok(pattern)) => Ok((index, pattern)),
            _ => Err(Error::data(format!("the pattern {} is not a regular expression", shown(key)))),
        }
    });
    compiled.collect()
}

/// Returns the expression that PEFT makes of a pattern.
fn whole(key: &str) -> String {
    format!(r"^(?:(.*\.)?({key})$)")
}

/// Returns the error about so many patterns that do not compile.
fn refused(error: &regex::Error, keys: usize, limit: usize) -> Error {
    Error::data(match error {
        regex::Error::CompiledTooBig(_) => format!(
            "the patterns that are not names, {keys} in all, take more than {} when they are compiled, which is the limit for this file",
            size(limit as u128)
        ),
        _ => format!("a pattern is not a regular expression: {}", shortened(&error.to_string())),
    })
}

impl<T: Copy> Patterns<T> {
    /// Returns the value of the first pattern that matches the module's name.
    ///
    /// # Errors
    /// Fails if a pattern with look-around takes too many steps on it.
    pub fn lookup(&self, module: &str) -> Result<Option<T>> {
        let other = if self.indices.is_empty() { None } else { self.others.matches(module).iter().next() };
        let mut first = other.map(|i| self.indices[i]).into_iter().chain(self.names.first(module)).min();
        for (index, pattern) in &self.looking {
            if first.is_some_and(|first| first < *index) {
                break;
            }
            let is_match = pattern.is_match(module).map_err(|_| {
                Error::data(format!(
                    "the pattern {} takes too many steps on {}",
                    shown(&self.keys[*index]),
                    name(module)
                ))
            })?;
            if is_match {
                first = Some(*index);
                break;
            }
        }
        Ok(first.map(|index| {
            self.used[index].set(true);
            self.values[index]
        }))
    }

    /// Returns the patterns that decided for no name so far.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().zip(&self.used).filter(|(_, used)| !used.get()).map(|(key, _)| key.as_str())
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
        let found = |module| patterns.lookup(module).unwrap();
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
                assert_eq!(patterns.lookup(module).unwrap(), want, "{module} in {list:?}");
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
            assert_eq!(others.lookup(module).unwrap().unwrap_or(common), value, "{module}");
        }
    }

    /// As Python's `re` finds them.
    #[test]
    fn look_around_counts_in_its_place_among_the_others() {
        let patterns = IndexMap::from([
            ("k_proj".to_string(), 1),
            (r"layers\.(?!1\.)\d+\.q_proj".into(), 2),
            ("(q|k)_proj".into(), 3),
            (r"(?<=up\.)lin".into(), 4),
        ]);
        let patterns = compile(patterns, LIMIT, 1).unwrap();
        for (module, want) in [
            ("m.layers.0.k_proj", Some(1)),
            ("m.layers.0.q_proj", Some(2)),
            ("m.layers.11.q_proj", Some(2)),
            ("m.layers.1.q_proj", Some(3)),
            ("m.down.lin", None),
        ] {
            assert_eq!(patterns.lookup(module).unwrap(), want, "{module}");
        }
        assert_eq!(patterns.unused().collect::<Vec<_>>(), [r"(?<=up\.)lin"]);
        let slow =
            compile(IndexMap::from([(r"(?:a|a(?=a))*z".to_string(), 1)]), SIZES.0 as usize, 1).unwrap();
        let error = slow.lookup(&format!("{}b", "a".repeat(400))).unwrap_err().to_string();
        assert!(error.contains("takes too many steps"), "{error}");
    }

    #[test]
    fn wrong_patterns_and_too_many_are_refused() {
        let refused = |keys: Vec<String>| {
            compile(keys.into_iter().map(|key| (key, 1)).collect(), LIMIT, 1).unwrap_err().to_string()
        };
        assert!(refused(vec!["q".into(), "(q".into()]).contains("\"(q\" is not a regular expression"));
        assert!(refused(vec!["(".repeat(10_000)]).contains("is not a regular expression"));
        let looking = (0..9).map(|i| format!("(?=x{i})q")).collect();
        assert!(refused(looking).contains("9 patterns are not regular expressions without look-around"));
        let long = (0..2000).map(|i| format!("(a|b){{{i}}}")).collect();
        assert!(refused(long).contains("2000 in all, take 21 kB"));
        let large = (0..20).map(|i| format!(r"(\w{{900}}){{{}}}", 900 + i)).collect();
        assert!(refused(large).contains("20 in all, take more than 4.2 MB"));
        assert_eq!(automaton_limit(1, u64::MAX) as u64, SIZES.1);
        assert_eq!(automaton_limit(u64::MAX, 1) as u64, SIZES.0);
    }
}
