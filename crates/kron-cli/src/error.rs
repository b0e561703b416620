//! How the program ends on an error: the exit code, and the sentence by its own options.

use std::process::ExitCode;

use kron_adapter::{Error, Kind, Remedy};

use crate::Output;

/// The part of `--help` that documents the exit codes.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done; for verify, every error is within its bound
  1    the files are at fault, or the output cannot be written or a signal interrupted it;
       for verify, an error exceeds its bound
  2    the call is at fault; for verify, also a folder that cannot be verified
  130  a second signal ended it at once";

/// The same in the help of a command that writes: what 0 means there, and whose fault 1 is.
macro_rules! exit_codes {
    ($done:literal, $fault:literal) => {
        concat!(
            "Exit codes: 0 ",
            $done,
            "; 1 ",
            $fault,
            ",\nor the output cannot be written or a signal interrupted it; 2 the call is at fault;\n",
            "130 a second signal ended it at once.\n\n",
        )
    };
}
pub(crate) use exit_codes;

/// Says the error on the standard error, as a sentence or in one line of JSON, and gives the exit code.
pub fn report(error: &Error, output: Output) -> ExitCode {
    let code = match error.kind() {
        Kind::Data => 1,
        Kind::Usage => 2,
    };
    let sentence = sentence(error);
    match output {
        Output::Table => eprintln!("error: {sentence}"),
        Output::Json => eprintln!("{}", serde_json::json!({ "error": sentence, "exit_code": code })),
    }
    ExitCode::from(code)
}

/// The sentence, with the option that would help.
fn sentence(error: &Error) -> String {
    let option = match error.remedy() {
        None => return error.to_string(),
        Some(Remedy::Lora) => "write it with --to lora",
        Some(Remedy::LosslessLora) => "--to lora is lossless",
        Some(Remedy::Replace) => "give another name, or --force to replace it",
        Some(Remedy::OtherName) => "--force replaces a folder only when it holds an adapter and nothing else",
    };
    format!("{}; {option}", error.message())
}
