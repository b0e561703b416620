//! Errors under `--json`: one line on the standard error that a program reads.

use serde_json::Value;

use crate::adapters::peft;
use crate::models::run;

#[test]
fn errors_are_one_line_of_json() {
    let (lokr, lora) = (peft("lokr"), peft("lora"));
    let [lokr, lora] = [&lokr, &lora].map(|path| path.to_str().unwrap());
    for (call, exit_code, says) in [
        (vec!["inspect", "/no/such/path"], 1, "/no/such/path cannot be read"),
        (vec!["convert", lokr, "out", "--side", "in"], 2, "--side chooses"),
        (vec!["convert", lora, lora], 2, "which is read"),
        (vec!["diff", "/no/such/path", lora], 1, "/no/such/path"),
        (vec!["merge", "/no/such/path", lora, "out"], 1, "/no/such/path"),
        (vec!["plan", "gpt-5"], 2, "\"gpt-5\" is neither a preset nor a file or folder"),
        (vec!["verify", "/no/such/path"], 2, "/no/such/path"),
        (vec!["unmerge"], 2, "unrecognized subcommand 'unmerge'"),
        (vec!["man", "/no/such/path"], 2, "man writes pages, so it has no --json"),
        (vec!["completions", "bash"], 2, "completions prints a shell's script, so it has no --json"),
        // What clap refuses.
        (vec!["plan"], 2, "required arguments were not provided: <MODEL>"),
        (vec!["quantise", lokr, "--bits", "3"], 2, "invalid value '3' for '--bits <BITS>'"),
        (vec!["no-such-command"], 2, "unrecognized subcommand 'no-such-command'"),
    ] {
        let (code, out, err) = run(call.iter().chain(&["--json"]));
        assert_eq!((code, out.as_str()), (exit_code, ""), "{call:?}: {err}");
        let error: Value = serde_json::from_str(&err).unwrap_or_else(|e| panic!("{call:?}: {e}: {err}"));
        assert_eq!((err.lines().count(), error.as_object().unwrap().len()), (1, 2), "{err}");
        assert_eq!(error["exit_code"], exit_code, "{err}");
        let sentence = error["error"].as_str().unwrap();
        assert!(sentence.contains(says) && !sentence.starts_with("error"), "{call:?}: {sentence}");
    }
    // Help is for a reader.
    let (code, out, err) = run(["plan", "--help", "--json"]);
    assert!(code == 0 && out.contains("Usage: kron plan") && err.is_empty(), "{out}{err}");
}
