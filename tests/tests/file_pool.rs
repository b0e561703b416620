//! A pool of adapters read from files: what it keeps, what gives way, and what a failure leaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kron_adapter::{
    Adapter, FilePool, FilePoolStats, IfExists, Layer, OutputFormat, ScaleRule, Scaling, TrainedTensor, write,
};
use kron_core::{KronShape, LayerDims, Split, Theta};
use kron_tests::hostile::hostile;

/// Bytes of the factors of [`adapter`] with rank 1.
const BYTES: u64 = 4 * (6 + 4 + 4);

/// One layer of 12×8 with A 3×2 and this rank.
fn adapter(rank: usize, seed: u64) -> Adapter {
    let shape = KronShape::kron(LayerDims { d_out: 12, d_in: 8 }, Split { a_out: 3, a_in: 2 }, rank);
    let scaling = Scaling::new(16.0, 8, ScaleRule::AlphaOverR).expect("finite");
    let layer = Layer::new("q", scaling, Theta::random(shape.expect("legal"), seed)).expect("a legal name");
    Adapter::new(vec![layer]).expect("one layer")
}

/// Writes adapters of rank 1 with the seeds 0, 1, …
fn files(folder: &Path, count: u64) -> Vec<PathBuf> {
    let file = |seed: u64| {
        let path = folder.join(format!("{seed}.safetensors"));
        adapter(1, seed).write(&path, IfExists::Refuse).expect("written");
        path
    };
    (0..count).map(file).collect()
}

fn counts(pool: &FilePool) -> [u64; 5] {
    let FilePoolStats { hits, misses, evictions, adapters, bytes } = pool.stats();
    [hits, misses, evictions, adapters as u64, bytes]
}

#[test]
fn the_least_recently_used_gives_way_and_everything_is_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path(), 4);
    let pool = FilePool::new(3 * BYTES + 1);
    for (seed, path) in files[..3].iter().enumerate() {
        let got = pool.get(path).expect("read");
        assert_eq!((got.path(), got.bytes()), (path.as_path(), BYTES));
        assert_eq!(got.layers(), adapter(1, seed as u64).layers());
        let entry = got.entry("q").expect("a layer");
        assert_eq!((entry.op, entry.theta), (got.layers()[0].op(), got.layers()[0].theta().as_slice()));
        assert!(got.entry("k").is_none());
    }
    assert_eq!(counts(&pool), [0, 3, 0, 3, 3 * BYTES]);
    pool.get(&files[0]).expect("held");
    assert_eq!(counts(&pool), [1, 3, 0, 3, 3 * BYTES]);
    // The second is the oldest now.
    pool.get(&files[3]).expect("read");
    assert_eq!(counts(&pool), [1, 4, 1, 3, 3 * BYTES]);
    for held in [0, 2, 3] {
        pool.get(&files[held]).expect("held");
    }
    assert_eq!(counts(&pool), [4, 4, 1, 3, 3 * BYTES]);
    pool.get(&files[1]).expect("read");
    assert_eq!(counts(&pool), [4, 5, 2, 3, 3 * BYTES]);
    // A larger one takes the places of two.
    let large = folder.path().join("large");
    adapter(2, 9).write(&large, IfExists::Refuse).expect("written");
    pool.get(&large).expect("read");
    assert_eq!(counts(&pool), [4, 6, 4, 2, BYTES + 4 * (6 + 2 * 8)]);
    pool.get(&files[1]).expect("held, as the youngest of the small ones");
    assert_eq!(pool.stats().hits, 5);
}

#[test]
fn adapters_in_use_stay_and_nothing_goes_beyond_the_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path(), 4);
    let pool = FilePool::new(2 * BYTES);
    let first = pool.get(&files[0]).expect("read");
    for path in &files[1..] {
        pool.get(path).expect("read");
        assert_eq!(pool.stats().bytes, 2 * BYTES);
    }
    assert!(Arc::ptr_eq(&first, &pool.get(&files[0]).expect("held")));
    let second = pool.get(&files[3]).expect("held");
    let before = pool.stats();
    let error = pool.get(&files[1]).expect_err("both are in use").to_string();
    let name = files[1].display();
    assert_eq!(error, format!("{name} takes 56 bytes beside 112 of adapters in use, but the pool has 112"));
    assert_eq!(pool.stats(), before);
    drop(second);
    pool.get(&files[1]).expect("the place of the one that is free again");
    // A file is read again once it was forgotten; its user keeps the old factors.
    adapter(1, 7).write(&files[0], IfExists::Replace).expect("written");
    assert!(Arc::ptr_eq(&first, &pool.get(&files[0]).expect("held")));
    assert!(pool.remove(&files[0]) && !pool.remove(&files[0]));
    assert_eq!(pool.stats().bytes, BYTES);
    assert_eq!(pool.get(&files[0]).expect("read").layers(), adapter(1, 7).layers());
    assert_eq!(first.layers(), adapter(1, 0).layers());
}

#[test]
fn a_file_that_cannot_be_taken_is_named_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path(), 2);
    let pool = FilePool::new(2 * BYTES);
    files.iter().for_each(|path| drop(pool.get(path).expect("read")));
    let before = pool.stats();
    let large = folder.path().join("large");
    adapter(40, 1).write(&large, IfExists::Refuse).expect("written");
    let trained = TrainedTensor::new("head.weight", vec![2], vec![1.0; 2]).expect("a tensor");
    let beside = adapter(1, 1).with_trained_tensors(vec![trained]).expect("a name of its own");
    let with_head = folder.path().join("with-head");
    beside.write(&with_head, IfExists::Refuse).expect("written");
    let transposed = folder.path().join("transposed");
    let lora = Layer::new(
        "q",
        Scaling::plain(1.0).expect("finite"),
        Theta::random(KronShape::lora(LayerDims { d_out: 12, d_in: 8 }, 2).expect("legal"), 1),
    );
    let lora = Adapter::new(vec![lora.expect("a legal name")]).expect("one layer");
    write(&lora, OutputFormat::Lora(Default::default()), &transposed, IfExists::Refuse).expect("written");
    let config = transposed.join("adapter_config.json");
    let text = fs::read_to_string(&config).expect("a configuration");
    assert!(pool.get(&transposed).expect_err("too large").to_string().contains("takes 160 bytes"));
    let with_transpose = text.replacen("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true", 1);
    assert_ne!(text, with_transpose);
    fs::write(&config, with_transpose).expect("written");
    let refused = [
        (large, "bytes beside 0 of adapters in use, but the pool has 112"),
        (with_head, "has head.weight beside its factors, but rows of many adapters share all other tensors"),
        (transposed, "fan_in_fan_out is true"),
        (folder.path().join("absent"), "cannot be read"),
        (folder.path().to_path_buf(), "adapter_config.json cannot be read"),
    ];
    for (path, rule) in refused {
        let error = pool.get(&path).expect_err("refused").to_string();
        assert!(error.contains(rule) && error.contains(&path.display().to_string()), "{error}");
        assert_eq!(pool.stats(), before, "{error}");
    }
    let path = folder.path().join("hostile.safetensors");
    for case in hostile() {
        fs::write(&path, &case.bytes).expect("written");
        let error = pool.get(&path).expect_err("a hostile file").to_string();
        assert!(error.contains(&path.display().to_string()), "{}: {error}", case.name);
        assert_eq!(pool.stats(), before, "{error}");
    }
}

/// Eight threads on a pool of three places: each gets the adapter that it asked for, and no more are held.
#[test]
fn threads_share_one_pool() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = files(folder.path(), 6);
    let pool = FilePool::new(9 * BYTES);
    std::thread::scope(|threads| {
        for thread in 0..8_usize {
            let (pool, files) = (&pool, &files);
            threads.spawn(move || {
                for i in 0..60 {
                    let seed = (i * (thread + 1) + thread) % files.len();
                    let got = pool.get(&files[seed]).expect("at most eight are in use");
                    assert_eq!(got.layers(), adapter(1, seed as u64).layers());
                    assert!(pool.stats().bytes <= pool.limit());
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!(stats.hits + stats.misses, 8 * 60);
    assert_eq!(stats.bytes, stats.adapters as u64 * BYTES);
}
