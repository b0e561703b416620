//! Errors of kron-adapter within candle's.

use std::error::Error as _;
use std::io;

use candle_core::Error;
use kron_adapter::Kind;

/// Carries an error of kron-adapter within candle's, with the kind of the system's error if that is its cause.
///
/// candle's `Wrapped` keeps a text alone; a payload of `Io` keeps its type.
pub(crate) fn of_adapter(error: kron_adapter::Error) -> Error {
    let system = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let kind = match (system, error.kind()) {
        (Some(system), _) => system.kind(),
        (None, Kind::Usage) => io::ErrorKind::InvalidInput,
        (None, Kind::Data) => io::ErrorKind::InvalidData,
    };
    Error::Io(io::Error::new(kind, error))
}

/// Returns the error of kron-adapter that an error of candle carries; `None` for candle's own.
///
/// Whatever reads, writes or plans adapters fails with such an error, in candle's `Io`: its kind is that of the
/// system's error, `InvalidData` for a file that breaks a rule, or `InvalidInput` for an impossible request.
///
/// ```
/// use std::io::ErrorKind;
///
/// let error = kron_candle::load("no-such-folder/adapter.safetensors").unwrap_err();
/// let carried = kron_candle::adapter_error(&error).expect("an error of kron-adapter");
/// assert_eq!(error.to_string(), carried.to_string());
/// assert!(matches!(error, candle_core::Error::Io(e) if e.kind() == ErrorKind::NotFound));
/// ```
pub fn adapter_error(error: &Error) -> Option<&kron_adapter::Error> {
    match error {
        Error::Io(error) => error.get_ref()?.downcast_ref(),
        Error::WithBacktrace { inner, .. } | Error::WithPath { inner, .. } | Error::Context { inner, .. } => {
            adapter_error(inner)
        }
        _ => None,
    }
}
