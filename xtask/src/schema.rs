//! `cargo xtask schema`: the Rust types of the messages of ONNX.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::process;

/// The schema as the ONNX project publishes it.
const PROTO: &str = "crates/sdlora-onnx/proto/onnx.proto";
/// Its types.
const TYPES: &str = "crates/sdlora-onnx/src/schema.rs";
/// The compiler, a workspace of its own.
const COMPILER: &str = "xtask/onnx-schema/Cargo.toml";

/// Compile the schema of ONNX into the types of sdlora-onnx
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Change nothing, and fail when the types are not those of the schema
    #[arg(long)]
    check: bool,
}

/// Runs the command.
///
/// # Errors
///
/// When cargo cannot be started or a file cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = process::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), Into::into);
    let work = root.join(target).join("onnx-schema");
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
    let types = root.join(TYPES);
    let out = match args.check {
        true => work.join("schema.rs"),
        false => types.clone(),
    };
    let mut cargo = process::cargo(["run", "--quiet", "--manifest-path"]);
    cargo
        .arg(root.join(COMPILER))
        .arg("--target-dir")
        .arg(&work);
    let code = process::run(cargo.arg("--").arg(root.join(PROTO)).arg(&out))?;
    if args.check && code == ExitCode::SUCCESS && read(&out)? != read(&types)? {
        eprintln!("{TYPES} is not of this schema: run `cargo xtask schema`");
        return Ok(ExitCode::FAILURE);
    }
    Ok(code)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
