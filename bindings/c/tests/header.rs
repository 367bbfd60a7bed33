//! The header that is checked in is the one that the code has. `UNDERTONE_WRITE_HEADER=1` writes it anew.

use std::path::Path;

#[test]
fn the_header_is_that_of_the_code() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let made = cbindgen::Builder::new().with_src(here.join("src/lib.rs")).with_config(config).generate().unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    let (text, path) = (String::from_utf8(text).unwrap(), here.join("include/undertone.h"));
    if std::env::var_os("UNDERTONE_WRITE_HEADER").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, text, "UNDERTONE_WRITE_HEADER=1 cargo test -p undertone-capi writes it anew");
}
