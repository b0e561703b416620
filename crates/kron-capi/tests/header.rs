//! `kron.h` is what cbindgen makes of this crate, to the byte.

use std::path::Path;

#[test]
fn kron_h_is_up_to_date() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("cbindgen.toml is legal");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in ["types", "status", "lib"] {
        builder = builder.with_src(folder.join(format!("src/{file}.rs")));
    }
    let mut made = Vec::new();
    builder.generate().expect("the crate parses").write(&mut made);
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
