//! `kron.h` is what cbindgen makes of this crate, to the byte.

use std::path::Path;

#[test]
fn kron_h_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("cbindgen.toml is legal");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["types", "pool_types", "status", "lib"] {
        builder = builder.with_src(folder.join(format!("src/{file}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().expect("the crate parses").write(&mut made);
    let text = String::from_utf8_lossy(&made);
    let mut functions: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("int ")?.split('(').next()).collect();
    functions.sort_unstable();
    assert!(functions.len() > 10 && functions.windows(2).all(|pair| pair[0] != pair[1]), "{functions:?}");
    let header = folder.join("kron.h");
    if std::env::var_os("KRON_WRITE_HEADER").is_some() {
        std::fs::write(&header, &made).expect("kron.h can be written");
    }
    let stored = std::fs::read(&header).expect("kron.h exists");
    assert!(
        stored == made,
        "kron.h is not what the sources say; KRON_WRITE_HEADER=1 cargo test -p kron-capi --test header"
    );
}

/// Programs that were compiled with a number run with every library of that number: a change to one of
/// these lines takes the next number.
#[test]
fn the_abi_has_its_number() {
    use kron_capi::{
        KRON_ABI, KronAdapter, KronBackward, KronBackwardGroup, KronBackwardPool, KronBackwardSegments,
        KronDevice, KronForward, KronForwardGroup, KronForwardPool, KronForwardSegments, KronGroupDy,
        KronGroupY, KronKey, KronManySizes, KronMerge, KronOp, KronPool, KronSizes, KronTerm,
    };
    use std::mem::offset_of;

    assert_eq!(kron_capi::kron_abi(), KRON_ABI);
    if size_of::<usize>() != 8 {
        return;
    }
    let structs = [
        (size_of::<KronDevice>(), offset_of!(KronDevice, stream)),
        (size_of::<KronOp>(), offset_of!(KronOp, dropout)),
        (size_of::<KronSizes>(), offset_of!(KronSizes, merge)),
        (size_of::<KronKey>(), offset_of!(KronKey, offset)),
        (size_of::<KronForward>(), offset_of!(KronForward, key)),
        (size_of::<KronBackward>(), offset_of!(KronBackward, key)),
        (size_of::<KronMerge>(), offset_of!(KronMerge, workspace_len)),
        (size_of::<KronAdapter>(), offset_of!(KronAdapter, theta)),
        (size_of::<KronTerm>(), offset_of!(KronTerm, key)),
        (size_of::<KronManySizes>(), offset_of!(KronManySizes, backward)),
        (size_of::<KronForwardSegments>(), offset_of!(KronForwardSegments, key)),
        (size_of::<KronBackwardSegments>(), offset_of!(KronBackwardSegments, key)),
        (size_of::<KronGroupY>(), offset_of!(KronGroupY, accumulate)),
        (size_of::<KronForwardGroup>(), offset_of!(KronForwardGroup, workspace_len)),
        (size_of::<KronGroupDy>(), offset_of!(KronGroupDy, dy_stride)),
        (size_of::<KronBackwardGroup>(), offset_of!(KronBackwardGroup, workspace_len)),
        (size_of::<KronPool>(), offset_of!(KronPool, scales)),
        (size_of::<KronForwardPool>(), offset_of!(KronForwardPool, key)),
        (size_of::<KronBackwardPool>(), offset_of!(KronBackwardPool, key)),
    ];
    let single = [(16, 8), (48, 44), (40, 32), (16, 8), (88, 80), (112, 104), (64, 56)];
    let many = [(56, 48), (72, 64), (24, 16), (88, 80), (112, 104), (24, 16), (72, 64), (16, 8), (96, 88)];
    let pool = [(80, 72), (96, 88), (120, 112)];
    let first = [&single[..], &many, &pool].concat();
    assert_eq!((KRON_ABI, structs.as_slice()), (1, first.as_slice()));
}
