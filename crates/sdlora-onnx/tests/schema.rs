//! The generated types are those of the schema beside them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

use std::path::Path;

use sha2::{Digest, Sha256};

#[test]
fn the_types_were_generated_from_this_schema() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let schema = std::fs::read(folder.join("proto/onnx.proto")).unwrap();
    let digest: String = Sha256::digest(&schema)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let types = std::fs::read_to_string(folder.join("src/schema.rs")).unwrap();
    let line = format!("// SHA-256 of the schema: {digest}");
    assert!(
        types.lines().nth(1) == Some(&line),
        "run `cargo xtask schema`: the types are of another schema"
    );
}
