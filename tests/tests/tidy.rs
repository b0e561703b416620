//! The repository's own rules, checked on its text: file lengths, unsafe code,
//! dependency arrows, words that mean "not done", links, and that each
//! invariant in docs/ARCHITECTURE.md names a test that exists.

use std::fs;

use kron_tests::modules::Modules;
use kron_tests::repository::{members, root, texts, texts_in};
use regex::Regex;
use toml::Value;

/// Longest source file in lines.
const BUDGET: usize = 400;

/// Files that may be longer, how long, and why.
const LONGER: [(&str, usize, &str); 2] = [
    ("tests/tests/plan.rs", 450, "one golden table after another"),
    ("crates/kron-capi/kron.h", 630, "one header declares the whole interface, and cbindgen writes it"),
];

/// Files and folders that may have unsafe code, and why.
const UNSAFE: [(&str, &str); 12] = [
    ("crates/kron-core/src/simd/", "the hand-written kernels"),
    ("kernels/", "the driver and the launches"),
    ("kernels/fake-driver/src/", "it is called through C's pointers"),
    ("crates/kron-capi/", "pointers come from C, and its tests call as C does"),
    ("crates/kron-candle/src/cuda.rs", "candle's device memory becomes ours by its pointers"),
    ("crates/kron-candle/src/product.rs", "the product's crate has no safe interface"),
    ("crates/kron-cli/src/merge/map.rs", "a file that is mapped is read by its address"),
    (
        "crates/kron-train/src/process.rs",
        "the allocator's options and the environment have no safe interface",
    ),
    ("crates/kron-train/src/sealed.rs", "memory that cannot change is mapped"),
    ("crates/kron-py/src/", "tensors come from Python by their addresses"),
    ("benches/src/device/", "the rival's products on a device have no safe interface"),
    ("benches/src/gemm.rs", "the rival's crate has no safe interface"),
];

/// Written by bindgen, and compared with its header by a test.
const GENERATED: [&str; 1] = ["kernels/src/params.rs"];

/// Workspace members, and the members that each may depend on.
const ARROWS: [(&str, &[&str]); 13] = [
    ("kron-core", &[]),
    ("kron-kernels", &["kron-core"]),
    ("kron-fake-driver", &["kron-core", "kron-kernels"]),
    ("kron-adapter", &["kron-core"]),
    ("kron-report", &[]),
    ("kron-cli", &["kron-core", "kron-adapter", "kron-report"]),
    ("kron-capi", &["kron-core", "kron-kernels"]),
    ("kron-candle", &["kron-core", "kron-kernels", "kron-adapter", "kron-tests"]),
    ("kron-burn", &["kron-core", "kron-kernels", "kron-adapter", "kron-candle", "kron-tests"]),
    ("kron-lora", &["kron-core", "kron-kernels", "kron-adapter", "kron-candle", "kron-burn"]),
    ("kron-train", &["kron-core", "kron-adapter", "kron-candle", "kron-report", "kron-tests"]),
    ("kron-bench", &["kron-core", "kron-kernels", "kron-adapter", "kron-report"]),
    ("kron-tests", &["kron-core", "kron-kernels", "kron-adapter", "kron-cli"]),
];

/// Crates that only some members may see: (prefix, members).
const PRIVATE: [(&str, &[&str]); 9] = [
    ("cudarc", &["kron-kernels", "kron-fake-driver", "kron-bench"]),
    ("candle", &["kron-candle", "kron-train", "kron-burn"]),
    ("burn", &["kron-burn"]),
    ("tch", &[]),
    ("dfdx", &[]),
    ("clap", &["kron-cli", "kron-train", "kron-bench"]),
    ("askama", &["kron-report"]),
    ("plotters", &["kron-report"]),
    ("gemm", &["kron-bench", "kron-candle", "kron-train"]),
];

#[test]
fn source_files_are_short() {
    for (path, text) in texts(&["rs", "cu", "cuh", "h"]) {
        let longer = LONGER.iter().find(|(name, ..)| *name == path);
        let (budget, why) = longer.map_or((BUDGET, "the rule"), |(_, lines, why)| (*lines, *why));
        let lines = text.lines().count();
        assert!(lines <= budget, "{path} has {lines} lines, the budget is {budget}: {why}");
        assert!(longer.is_none() || lines > BUDGET, "{path} is short again: take it off the list");
    }
}

#[test]
fn unsafe_code_is_where_it_may_be_and_says_why() {
    let word = Regex::new(concat!(r"\b", "un", "safe", r"\b")).expect("a legal pattern");
    let proof = Regex::new(concat!(r"\b", "un", "safe", r" (\{|impl)")).expect("a legal pattern");
    for (path, text) in texts(&["rs"]) {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !word.is_match(code) || GENERATED.contains(&path.as_str()) {
                continue;
            }
            assert!(UNSAFE.iter().any(|(place, _)| path.starts_with(place)), "{path}:{}: {line}", i + 1);
            assert!(
                !proof.is_match(code) || has_safety_comment(&lines[..i]),
                "{path}:{}: no SAFETY comment",
                i + 1
            );
        }
    }
}

/// Returns true if the comment directly above the last statement of `above` contains SAFETY.
fn has_safety_comment(above: &[&str]) -> bool {
    let mut lines = above.iter().rev().map(|line| line.trim());
    let ends = |line: &&str| line.ends_with([';', '{', '}']) || line.is_empty();
    let Some(comment) = lines.find(|line| line.starts_with("//") || ends(line)) else { return false };
    let mut comment = std::iter::once(comment).chain(lines).take_while(|line| line.starts_with("//"));
    comment.any(|line| line.contains("SAFETY:"))
}

#[test]
fn a_missing_safety_comment_is_seen() {
    let above = |text: &str| has_safety_comment(&text.lines().collect::<Vec<_>>());
    assert!(above("let a = 1;\n// SAFETY: it is.\n"));
    assert!(above("// SAFETY: it is,\n// and more.\nlet a ="));
    assert!(!above("// SAFETY: of another.\nlet a = 1;"));
    assert!(!above("// Fast.\nlet a ="));
    assert!(!above("// SAFETY: of the function.\nfn a() {"));
    assert!(!above(""));
}

#[test]
fn crates_without_unsafe_code_forbid_it() {
    for member in members() {
        let roots = ["src/lib.rs", "src/main.rs"].map(|file| root().join(&member.folder).join(file));
        let unsafe_inside = UNSAFE.iter().any(|(place, _)| place.starts_with(&format!("{}/", member.folder)));
        for file in roots.iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(file).expect("a text file");
            let forbidden = text.contains("#![forbid(unsafe_code)]");
            let denied = unsafe_inside && text.contains("#![deny(unsafe_code)]");
            assert!(forbidden || denied, "{} does not forbid it", file.display());
        }
    }
}

#[test]
fn nothing_is_left_to_do() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let code = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
        concat!("d", "bg!("),
    ];
    for (path, text) in texts(&["rs", "cu", "cuh", "h", "toml", "md", "yml", "sh", "py", "run"]) {
        let code = if path.ends_with(".md") { &[] } else { code.as_slice() };
        for (i, line) in text.lines().enumerate() {
            let found = words.iter().chain(code).find(|word| line.contains(**word));
            assert!(found.is_none(), "{path}:{}: {line}", i + 1);
        }
    }
}

/// A doc comment begins with a verb or a noun, not with a headless clause; see docs/STYLE.md.
#[test]
fn doc_comments_begin_with_a_verb_or_a_noun() {
    let headless = Regex::new(r"(?m)^\s*//[/!] (That|What|Whether|Which)\b.*$").expect("a legal pattern");
    for (path, text) in texts(&["rs"]) {
        let lines: Vec<&str> = text.lines().collect();
        let starts = |i: usize| i == 0 || !lines[i - 1].trim_start().starts_with("//");
        let found = lines.iter().enumerate().find(|(i, line)| starts(*i) && headless.is_match(line));
        assert!(
            found.is_none(),
            "{path}:{}: {}",
            found.map_or(0, |(i, _)| i + 1),
            found.map_or("", |(_, l)| l)
        );
    }
}

#[test]
fn dependencies_point_one_way() {
    let members = members();
    for member in &members {
        let (_, allowed) =
            ARROWS.iter().find(|(name, _)| *name == member.name).expect("every member has its arrows");
        for dependency in &member.dependencies {
            // A crate may depend on itself, for a feature of its tests.
            let inside = *dependency != member.name && members.iter().any(|m| m.name == *dependency);
            assert!(
                !inside || allowed.contains(&dependency.as_str()),
                "{} depends on {dependency}, but may depend on {allowed:?} only",
                member.name
            );
            for (prefix, who) in PRIVATE {
                let hidden = dependency.starts_with(prefix) && !who.contains(&member.name.as_str());
                assert!(!hidden, "{} depends on {dependency}, which only {who:?} may", member.name);
            }
        }
    }
}

#[test]
fn permissions_are_used() {
    let members = members();
    let find = |name: &str| members.iter().find(|m| m.name == name);
    for (name, allowed) in ARROWS {
        let member = find(name).unwrap_or_else(|| panic!("{name} has arrows, but is not a member"));
        for to in allowed {
            assert!(member.dependencies.iter().any(|d| d == to), "{name} may depend on {to}, but does not");
        }
    }
    for (prefix, who) in PRIVATE {
        for name in who {
            let used = find(name).is_some_and(|m| m.dependencies.iter().any(|d| d.starts_with(prefix)));
            assert!(used, "{name} may depend on {prefix}, but does not");
        }
    }
    let sources = texts(&["rs"]);
    for (place, why) in UNSAFE {
        let word = concat!("un", "safe");
        let used = sources.iter().any(|(path, text)| path.starts_with(place) && text.contains(word));
        assert!(used, "{place} may have {word} code ({why}), but has none");
    }
}

/// A release build of the C library has no emulated device, whatever features a build of the workspace
/// or of its tests unites.
#[test]
fn the_emulation_is_in_no_release_library() {
    let (feature, debug) = ("feature = \"emulate\"", "debug_assertions");
    let sources = texts(&["rs"]).into_iter().filter(|(path, _)| path.starts_with("crates/kron-capi/src/"));
    let mut gates = 0;
    for (path, text) in sources {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().filter(|line| line.contains(feature)) {
            assert!(line.contains(debug), "{path}: {line}");
            gates += 1;
        }
        let uses = lines.iter().enumerate().filter(|(_, line)| line.contains("Emulated"));
        for (i, line) in uses {
            let gated = lines[i.saturating_sub(3)..i].iter().any(|line| line.contains(feature));
            assert!(gated, "{path}:{}: {line}", i + 1);
        }
    }
    assert!(gates > 0, "kron-capi has no emulation to leave out");
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace's manifest");
    let manifest: Value = toml::from_str(&manifest).expect("TOML");
    for (name, profile) in manifest["profile"].as_table().expect("profiles") {
        assert!(profile.get("debug-assertions").is_none(), "the profile {name} would ship the emulation");
    }
}

#[test]
fn modules_make_no_circles() {
    for member in members() {
        let files = texts_in(&root().join(&member.folder).join("src"), &["rs"]);
        let circles = Modules::new(files).circles();
        let lines: Vec<String> = circles
            .iter()
            .map(|c| c.iter().map(|m| m.join("::")).collect::<Vec<_>>().join(" <-> "))
            .collect();
        assert!(lines.is_empty(), "{}: {}", member.name, lines.join("; "));
    }
}

#[test]
fn versions_and_lints_are_the_workspaces() {
    for member in members() {
        let lints = member.manifest.get("lints").and_then(|l| l.get("workspace"));
        assert_eq!(lints, Some(&Value::Boolean(true)), "{} has lints of its own", member.name);
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, spec) in member.manifest.get(section).and_then(Value::as_table).into_iter().flatten() {
                // A crate may ask for its own features in its tests.
                let shared = spec.get("workspace") == Some(&Value::Boolean(true)) || *name == member.name;
                assert!(shared, "{}: {name} has a version of its own", member.name);
            }
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let link =
        Regex::new(r"\]\(([^)#\s]+)(#[^)\s]*)?\)|(?:src|href)=\x22([^\x22#]+)\x22").expect("a legal pattern");
    for (path, text) in texts(&["md"]) {
        let folder = root().join(&path).parent().expect("a file is in a folder").to_path_buf();
        for found in link.captures_iter(&text) {
            let target = found.get(1).or(found.get(3)).map_or("", |m| m.as_str());
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            assert!(elsewhere || folder.join(target).exists(), "{path}: {target} does not exist");
        }
    }
}

/// Each row of the table of invariants names what holds it, as `path/to/file.rs::test`.
#[test]
fn invariants_name_tests_that_exist() {
    let name = Regex::new(r"`([\w/.-]+\.rs)::(\w+)`").expect("a legal pattern");
    let path = root().join("docs/ARCHITECTURE.md");
    let text = fs::read_to_string(&path).expect("docs/ARCHITECTURE.md exists");
    let mut names = 0;
    for (_, [file, test]) in name.captures_iter(&text).map(|c| c.extract()) {
        let source = fs::read_to_string(root().join(file));
        let source = source.unwrap_or_else(|e| panic!("ARCHITECTURE.md names {file}: {e}"));
        assert!(source.contains(&format!("fn {test}(")), "ARCHITECTURE.md: {file} has no {test}");
        names += 1;
    }
    let (_, invariants) = text.split_once("Invariants\n").expect("a section of invariants");
    let invariants = invariants.split("\n#").next().unwrap_or_default();
    let numbered = Regex::new(r"(?m)^\| \d+ \|").expect("a legal pattern");
    let items: Vec<&str> = numbered.split(invariants).skip(1).collect();
    assert!(items.len() >= 8 && names >= items.len(), "{} invariants, {names} tests", items.len());
    for item in items {
        assert!(name.is_match(item), "no test holds this invariant: {item}");
    }
}
