//! `onnx-schema PROTO OUT`: Rust types of the messages of a schema, and where they are from.

use std::path::PathBuf;

use anyhow::Context;
use sha2::{Digest, Sha256};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (proto, out) = args.next().zip(args.next()).context("usage: onnx-schema PROTO OUT")?;
    let folder = proto.parent().context("the schema lies in a folder")?;
    let descriptors = protox::compile([&proto], [folder])?;
    let mut config = prost_build::Config::new();
    // The comments of the schema are no Markdown.
    config.disable_comments(["."]);
    // The package of the schema names the file.
    let written = out.with_file_name("onnx.rs");
    config.out_dir(out.parent().context("the types lie in a folder")?);
    config.compile_fds(descriptors)?;
    let modules = std::fs::read_to_string(&written)?;
    std::fs::remove_file(&written)?;
    let digest = Sha256::digest(std::fs::read(&proto)?);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!(
        "// Written by `cargo xtask schema` from proto/onnx.proto, not by hand.\n// SHA-256 of the schema: {digest}\n{modules}"
    );
    std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))
}
