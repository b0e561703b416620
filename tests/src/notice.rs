//! Messages of tests that pass, such as the reason why a part was skipped.

/// Writes a line to standard error; libtest captures only the printing macros.
pub fn notice(line: impl std::fmt::Display) {
    use std::io::Write;
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}
