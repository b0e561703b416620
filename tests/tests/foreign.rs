//! The program's parsers on damaged files of others: refused in one sentence or read, never a panic.

use std::time::{Duration, Instant};

use kron_tests::foreign::{SEEDS, damaged, pack, read_any, seeds, unpack};
use kron_tests::structured::structured;
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

#[test]
fn the_seeds_are_read() {
    let seeds = seeds();
    for (name, packed) in &seeds {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_any(folder.path(), packed), "{name} is refused");
        let (kind, [first, second]) = unpack(packed);
        assert_eq!(&pack(kind, first, second), packed, "{name}");
        assert!(std::fs::read(format!("{SEEDS}/{name}")).unwrap() == *packed, "{name}: write the seeds anew");
    }
    let there = std::fs::read_dir(SEEDS).unwrap().count();
    assert!(there >= seeds.len());
}

/// Every run repeats the inputs that a fuzzer found.
#[test]
fn the_corpus_is_met() {
    for entry in std::fs::read_dir(SEEDS).unwrap() {
        let folder = tempfile::tempdir().unwrap();
        read_any(folder.path(), &std::fs::read(entry.unwrap().path()).unwrap());
    }
}

/// The same thousands of damaged files every time.
#[test]
fn seeded_damage_never_panics() {
    let (folder, seeds) = (tempfile::tempdir().unwrap(), seeds());
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let (mut read, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    for _ in 0..4_000 {
        let packed = damaged(&seeds, &mut rng);
        let begun = Instant::now();
        match read_any(folder.path(), &packed) {
            true => read += 1,
            false => refused += 1,
        }
        slowest = slowest.max(begun.elapsed());
    }
    // Damage to numbers and texts is not seen, most other damage is: both must have been met.
    assert!(read > 200 && refused > 1_300, "{read} read, {refused} refused");
    // A small file cannot keep a reader busy, on however busy a machine.
    assert!(slowest < Duration::from_secs(20), "{slowest:?} for one file");
}

/// The same thousands of well-formed adapters of any sizes every time.
#[test]
fn any_sizes_and_patterns_are_met() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Pcg64Mcg::seed_from_u64(2);
    let (mut read, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    for _ in 0..600 {
        let packed = structured(&mut rng);
        let begun = Instant::now();
        match read_any(folder.path(), &packed) {
            true => read += 1,
            false => refused += 1,
        }
        slowest = slowest.max(begun.elapsed());
    }
    assert!(read > 60 && refused > 200, "{read} read, {refused} refused");
    assert!(slowest < Duration::from_secs(20), "{slowest:?} for one file");
}

#[test]
fn any_bytes_are_some_files() {
    let folder = tempfile::tempdir().unwrap();
    for bytes in [&b""[..], &[0], &[1, 2], &[2, 255, 255, 255, 255, 1], &[7; 40]] {
        let (kind, [first, second]) = unpack(bytes);
        assert!(first.len() + second.len() <= bytes.len());
        assert!(!read_any(folder.path(), bytes), "{kind:?}");
    }
}
