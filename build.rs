//! Compiles the protocol with protox, so that no protoc is needed on the machine.

fn main() {
    println!("cargo:rerun-if-changed=proto");
    if std::env::var_os("CARGO_FEATURE_WIRE").is_none() {
        return;
    }
    let set = protox::compile(["proto/undertone/v1/stream.proto"], ["proto"])
        .expect("proto/undertone/v1/stream.proto compiles");
    prost_build::Config::new().compile_fds(set).expect("prost generates code from the protocol");
}
