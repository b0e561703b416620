//! Exit codes, and how an error is printed.

use std::io::Write;
use std::process::ExitCode;

use kron_adapter::text::printable;
use kron_adapter::{Error, Kind, Suggestion};

use crate::TextOrJson;

/// The end of `kron --help`: examples, how to install man pages and completions, the exit codes.
pub const HELP: &str = "\
Examples:
  kron inspect adapter.safetensors
  kron convert adapter.safetensors lora/ --to lora
  kron merge llama-3-8b adapter.safetensors merged

Man pages and completions for one user:
  mkdir -p ~/.local/share/man/man1 ~/.local/share/bash-completion/completions
  kron man ~/.local/share/man/man1
  kron completions bash > ~/.local/share/bash-completion/completions/kron

Exit codes:
  0    success; for verify, every error is within its bound
  1    an input file is invalid, the output cannot be written, or a signal stopped the run;
       for verify, an error exceeds its bound
  2    invalid arguments; for verify, also a folder that cannot be verified
  130  a second signal ended the run at once";

/// Exit codes in the help of a command that writes a file: what was done on 0, and what is wrong on 1.
macro_rules! exit_codes {
    ($done:literal, $wrong:literal) => {
        concat!(
            "Exit codes: 0 ",
            $done,
            "; 1 ",
            $wrong,
            ",\nthe output cannot be written, or a signal stopped the run; 2 invalid arguments;\n",
            "130 a second signal ended the run at once.\n\n",
        )
    };
}
pub(crate) use exit_codes;

/// Prints an error on the standard error, as a sentence or as one line of JSON, and returns its exit code.
pub fn report(error: &Error, form: TextOrJson) -> ExitCode {
    let code = match error.kind() {
        Kind::Data => 1,
        Kind::Usage => 2,
    };
    let sentence = sentence(error);
    let line = match form {
        TextOrJson::Text => format!("error: {}", printable(&sentence)),
        TextOrJson::Json => serde_json::json!({ "error": sentence, "exit_code": code }).to_string(),
    };
    // Where the standard error cannot be written, the exit code says it.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(code)
}

/// The error's message, followed by the option that would help.
fn sentence(error: &Error) -> String {
    let option = match error.suggestion() {
        None => return error.to_string(),
        Some(Suggestion::Lora) => "write it with --to lora",
        Some(Suggestion::LosslessLora) => "--to lora is lossless",
        Some(Suggestion::Replace) => "give another name, or --force to replace it",
        Some(Suggestion::OtherName) => {
            "--force replaces a folder only when it holds an adapter and nothing else"
        }
        Some(Suggestion::MaxBytes) => "--max-size allows more",
        Some(Suggestion::AdapterName) => "--adapter-name NAME chooses one",
        Some(Suggestion::Only) => {
            "--only PREFIX takes the modules whose names start so and leaves out the others"
        }
        Some(Suggestion::FactorsOnly) => "--factors-only takes the layers alone",
        Some(Suggestion::SkipUnsupported) => "--skip-unsupported leaves it out",
    };
    format!("{}; {option}", error.message())
}
