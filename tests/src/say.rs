//! What a passing test has to say, such as that it was skipped.

/// A line on standard error, which libtest captures only of the printing macros.
pub fn say(line: impl std::fmt::Display) {
    use std::io::Write;
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}
