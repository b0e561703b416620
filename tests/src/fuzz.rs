//! Loop of the programs that give damaged files to parsers for some seconds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

/// Longest time for one input, on however busy a machine: a small file cannot keep a reader busy.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Reads damaged inputs for as many seconds as the program's argument says; `next` makes one and the name of its kind,
/// `read` returns true if it is accepted.
///
/// An input that breaks a parser, or takes too long, is saved, and its file name is printed with the panic.
///
/// # Panics
/// The temporary folder cannot be written.
pub fn main_loop(
    mut next: impl FnMut(&mut Pcg64Mcg) -> (&'static str, Vec<u8>),
    read: impl Fn(&str, &[u8]) -> bool,
) -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(seconds) = seconds.map(Duration::from_secs) else {
        eprintln!("the argument is a number of seconds");
        return ExitCode::from(2);
    };
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let mut rng = Pcg64Mcg::seed_from_u64(seed as u64);
    let (begun, mut accepted, mut refused) = (Instant::now(), 0u64, 0u64);
    while begun.elapsed() < seconds {
        let (kind, bytes) = next(&mut rng);
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(kind, &bytes)));
        match outcome {
            Ok(_) if started.elapsed() > MAX_TIME => {}
            Ok(true) => {
                accepted += 1;
                continue;
            }
            Ok(false) => {
                refused += 1;
                continue;
            }
            Err(_) => {}
        }
        let path = std::env::temp_dir().join(format!("kron-fuzz-{kind}-{seed}"));
        std::fs::write(&path, &bytes).expect("a place for what was found");
        eprintln!(
            "{} breaks a parser or takes {:?}; the target is {kind}",
            path.display(),
            started.elapsed()
        );
        return ExitCode::FAILURE;
    }
    println!("{accepted} read, {refused} refused in {} s", begun.elapsed().as_secs());
    ExitCode::SUCCESS
}
