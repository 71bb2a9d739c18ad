//! Compiles the `.proto` files with protox (pure Rust), so that no `protoc` has to be installed.

use std::path::PathBuf;
use std::{env, fs, io};

const FILES: &[&str] = &[
    "unibus/v1/signed.proto",
    "unibus/v1/auth.proto",
    "unibus/v1/user.proto",
    "unibus/v1/device.proto",
    "unibus/v1/room.proto",
    "unibus/v1/message.proto",
    "unibus/v1/cluster.proto",
    "unibus/peer/v1/peer.proto",
    "unibus/log/v1/log.proto",
    "unibus/row/v1/row.proto",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"]).map_err(explain)?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES).map_err(explain)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".unibus.v1.DeliveryBatch", "crate::delivery::DeliveryBatch")
        .build_client(grpc)
        .build_server(grpc)
        .build_transport(false)
        .compile_fds(compiler.file_descriptor_set())
}

fn explain(error: protox::Error) -> io::Error {
    io::Error::other(format!("{error:?}"))
}
