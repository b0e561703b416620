//! Turns a Rust result, or a panic, into a status and this thread's message.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use kron_core::{Error, Result};

/// Success.
pub const KRON_OK: c_int = 0;
/// An argument does not fit; nothing was written.
pub const KRON_INVALID: c_int = 1;
/// No driver, no such device, or a build without it.
pub const KRON_UNAVAILABLE: c_int = 2;
/// The device refused or failed.
pub const KRON_DEVICE_FAILED: c_int = 3;
/// A defect of this library; the outputs are not to be used.
pub const KRON_PANICKED: c_int = 4;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs a call's body and returns its status; a panic becomes one too.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> c_int {
    let (status, message) = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => (KRON_OK, String::new()),
        Ok(Err(e)) => (status_of(&e), e.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            (KRON_PANICKED, format!("a defect of kron-lora: {said}"))
        }
    };
    // A message has no zero byte unless an argument's text brought it.
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    LAST.with(|last| *last.borrow_mut() = message);
    status
}

pub(crate) fn last_error() -> *const c_char {
    LAST.with(|last| last.borrow().as_ptr())
}

fn status_of(e: &Error) -> c_int {
    match e {
        Error::Unsupported(_) => KRON_UNAVAILABLE,
        Error::Device(_) => KRON_DEVICE_FAILED,
        _ => KRON_INVALID,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn said() -> String {
        // SAFETY: the text ends with a zero and lives until this thread's next call.
        unsafe { CStr::from_ptr(last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_is_a_status_and_a_message() {
        assert_eq!(guard(|| panic!("row {}", 7)), KRON_PANICKED);
        assert_eq!(said(), "a defect of kron-lora: row 7");
        assert_eq!(guard(|| panic!("plain")), KRON_PANICKED);
        assert_eq!(said(), "a defect of kron-lora: plain");
        assert_eq!(guard(|| Ok(())), KRON_OK);
        assert_eq!(said(), "");
    }

    #[test]
    fn messages_belong_to_their_thread() {
        assert_eq!(guard(|| Err(Error::Unsupported("here".into()))), KRON_UNAVAILABLE);
        let other = std::thread::spawn(|| (guard(|| Err(Error::Device("there".into()))), said()));
        assert_eq!(other.join().expect("no panic"), (KRON_DEVICE_FAILED, "there".into()));
        assert_eq!(said(), "here");
    }
}
