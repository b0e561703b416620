//! The modules of a crate and which of them use which, read from the source's text.
//!
//! A path that starts at `crate`, `super`, `self` or a child module leads to the module that
//! defines its item: `use` lines are followed, so `crate::Item` of a crate's root counts for
//! the module that the root re-exports it from. Comments, strings and `mod tests` are left out.

use std::collections::{BTreeMap, BTreeSet};

/// A module's path from the crate's root, which is the empty path.
pub type Module = Vec<String>;

/// The modules of one crate.
pub struct Modules {
    texts: BTreeMap<Module, String>,
    /// Names that a module's `use` lines bring into it, with their paths.
    imports: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
}

impl Modules {
    /// Reads modules from `(path in src, text)`.
    pub fn new(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let texts: BTreeMap<Module, String> =
            files.into_iter().map(|(path, text)| (module(&path), code(&text))).collect();
        let imports = texts.iter().map(|(module, text)| {
            let names = uses(text).into_iter().filter_map(|(path, name)| Some((name?, path)));
            (module.clone(), names.collect())
        });
        Self { imports: imports.collect(), texts }
    }

    /// Modules that each module uses.
    pub fn arrows(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let of = |(module, text): (&Module, &String)| {
            let paths = uses(text).into_iter().map(|(path, _)| path).chain(inline(text));
            let targets = paths.filter_map(|path| self.resolve(module, &path, 0));
            (module.clone(), targets.filter(|target| target != module).collect())
        };
        self.texts.iter().map(of).collect()
    }

    /// Circles among the children of one module, each child taken with all that lies in it.
    pub fn circles(&self) -> Vec<Vec<Module>> {
        let arrows = self.arrows();
        let parents: BTreeSet<&[String]> =
            self.texts.keys().filter_map(|m| m.split_last()).map(|(_, parent)| parent).collect();
        parents.into_iter().flat_map(|parent| circles(&between_children(parent, &arrows))).collect()
    }

    /// The module that holds what `path` names, seen from `from`.
    fn resolve(&self, from: &Module, path: &[String], depth: usize) -> Option<Module> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.clone(),
            "super" => from.split_last()?.1.to_vec(),
            name => {
                let child = [from.as_slice(), &[name.to_owned()]].concat();
                self.texts.contains_key(&child).then_some(child)?
            }
        };
        while let Some((name, after)) = rest.split_first() {
            let child = [at.as_slice(), std::slice::from_ref(name)].concat();
            if name == "super" {
                at.pop()?;
            } else if self.texts.contains_key(&child) {
                at = child;
            } else {
                let import = self.imports.get(&at).and_then(|names| names.get(name));
                let target = import.filter(|_| depth < 8).and_then(|p| self.resolve(&at, p, depth + 1));
                return Some(target.unwrap_or(at));
            }
            rest = after;
        }
        Some(at)
    }
}

/// Arrows among the children of `parent`.
fn between_children(
    parent: &[String],
    arrows: &BTreeMap<Module, BTreeSet<Module>>,
) -> BTreeMap<Module, BTreeSet<Module>> {
    let child = |module: &Module| {
        module.strip_prefix(parent).and_then(<[String]>::first).map(|_| module[..=parent.len()].to_vec())
    };
    let mut between = BTreeMap::<Module, BTreeSet<Module>>::new();
    for (from, targets) in arrows {
        let Some(from) = child(from) else { continue };
        let targets = targets.iter().filter_map(child).filter(|to| *to != from).collect::<Vec<_>>();
        between.entry(from).or_default().extend(targets);
    }
    between
}

/// Groups of nodes of which each reaches every other.
fn circles(arrows: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let reach = |start: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(node) = next.pop() {
            for to in arrows.get(node).into_iter().flatten() {
                if seen.insert(to) {
                    next.push(to);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&Module, _> = arrows.keys().map(|node| (node, reach(node))).collect();
    let (mut found, mut taken) = (Vec::new(), BTreeSet::new());
    for (node, reaches) in &reached {
        if reaches.contains(node) && !taken.contains(node) {
            let group: Vec<Module> = reaches
                .iter()
                .filter(|other| reached.get(**other).is_some_and(|back| back.contains(node)))
                .map(|m| (*m).clone())
                .collect();
            taken.extend(reached.keys().filter(|m| group.contains(m)).copied());
            found.push(group);
        }
    }
    found
}

/// `a/b.rs` and `a/b/mod.rs` are the module a::b, `lib.rs` and `main.rs` the root.
fn module(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    let mut parts: Module = path.split('/').map(str::to_owned).collect();
    if parts.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// The text without comments and without its module of tests.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths of all `use` lines, with the name that each brings in; a glob brings none.
fn uses(text: &str) -> Vec<(Vec<String>, Option<String>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("use ") {
        let before = text[..at].trim_end_matches(' ');
        let starts =
            before.is_empty() || before.ends_with(['\n', ')', '{', '}', ';']) || before.ends_with("pub");
        if let Some(end) = text[at..].find(';').filter(|_| starts) {
            tree(&text[at + 4..at + end], &[], &mut found);
        }
    }
    found
}

/// Flattens `a::{b, c::{d as e}}`.
fn tree(text: &str, prefix: &[String], found: &mut Vec<(Vec<String>, Option<String>)>) {
    let text = text.trim();
    if let Some((head, inner)) = text.split_once('{') {
        let segments = head.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned);
        let prefix = prefix.iter().cloned().chain(segments).collect::<Vec<_>>();
        let inner = inner.trim_end().trim_end_matches('}');
        let (mut depth, mut start) = (0, 0);
        for (at, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    tree(&inner[start..at], &prefix, found);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return tree(&inner[start..], &prefix, found);
    }
    if text.is_empty() {
        return;
    }
    let (path, alias) = text.split_once(" as ").map_or((text, None), |(p, a)| (p, Some(a.trim().to_owned())));
    let mut path: Vec<String> =
        prefix.iter().cloned().chain(path.split("::").map(|s| s.trim().to_owned())).collect();
    let mut name = alias.or_else(|| path.last().cloned());
    match path.last().map(String::as_str) {
        Some("*") => (_, name) = (path.pop(), None),
        Some("self") if path.len() > 1 => {
            path.pop();
            name = path.last().cloned();
        }
        _ => {}
    }
    found.push((path, name));
}

/// Paths in expressions and types that start at `crate` or `super`.
fn inline(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let after_path =
                text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
            if after_path {
                continue;
            }
            let end = text[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            let path = &text[at..at + end.unwrap_or(text.len() - at)];
            found.push(path.split("::").filter(|s| !s.is_empty()).map(str::to_owned).collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned()));
        let circles = Modules::new(files).circles();
        circles.iter().map(|c| c.iter().map(|m| m.join("::")).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn circles_are_seen_through_re_exports_inline_paths_and_folders() {
        let root = ("lib.rs", "mod a;\nmod b;\npub use a::{A, Other as O};\npub use b::B;\n");
        let a = ("a.rs", "use crate::B;\npub struct A(B);\n");
        assert_eq!(circles_of(&[root, a, ("b.rs", "use crate::{A};\n")]), ["a b"]);
        assert_eq!(circles_of(&[root, a, ("b.rs", "fn f() -> crate::O { todo }\n")]), ["a b"]);
        assert_eq!(
            circles_of(&[root, a, ("b/mod.rs", "mod c;"), ("b/c.rs", "use super::super::a::A;")]),
            ["a b"]
        );
        assert_eq!(
            circles_of(&[
                root,
                ("b/mod.rs", ""),
                ("b/c.rs", "use super::d::{D};"),
                ("b/d.rs", "use crate::b::c;")
            ]),
            ["b::c b::d"]
        );
    }

    #[test]
    fn comments_tests_parents_and_other_crates_make_none() {
        let root = ("lib.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;\n");
        let a = ("a.rs", "use crate::B;\n");
        for b in [
            "// crate::A\n",
            "#[cfg(test)]\nmod tests {\n    use crate::A;\n}\n",
            "use other::A;\nuse super::Nothing;\n",
        ] {
            assert!(circles_of(&[root, a, ("b.rs", b)]).is_empty(), "{b}");
        }
    }
}
