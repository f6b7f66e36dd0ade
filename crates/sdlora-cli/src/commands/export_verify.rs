//! `sdlora export --verify`: what ONNX Runtime makes of an exported graph.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use sdlora_train::OnnxProbe;

/// Reads an input from standard input and writes the logits to standard output.
const PROGRAM: &str = r#"
import sys
import numpy
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
[given] = session.get_inputs()
kind = numpy.uint8 if given.type == "tensor(uint8)" else numpy.dtype("<f4")
values = numpy.frombuffer(sys.stdin.buffer.read(), kind).reshape([int(n) for n in sys.argv[2:]])
[logits] = session.run(["logits"], {given.name: values})
sys.stdout.buffer.write(logits.astype("<f4").tobytes())
"#;

/// Runs a graph with the ONNX Runtime of a Python, and gives the largest difference of its logits.
///
/// # Errors
///
/// When Python cannot be started, has no ONNX Runtime or cannot run the graph, and when logits differ by more than
/// rounding.
pub fn verify(python: &Path, file: &Path, probe: &OnnxProbe) -> anyhow::Result<f32> {
    let mut child = Command::new(python)
        .args(["-c", PROGRAM])
        .arg(file)
        .args(probe.shape.iter().map(usize::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}: name a Python that has onnxruntime",
                python.display()
            )
        })?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ended early says why itself.
        let _ = input.write_all(&probe.input);
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{} could not run {}: its message is above, and `pip install onnxruntime` installs what it needs",
            python.display(),
            file.display()
        );
    }
    let (numbers, _) = output.stdout.as_chunks();
    let logits: Vec<f32> = numbers
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    match probe.compare(&logits) {
        Some((largest, true)) => Ok(largest),
        Some((largest, false)) => bail!(
            "ONNX Runtime gives logits of {} that differ by {largest:.1e} from those of the run: do not use the file, \
             and report this",
            file.display()
        ),
        None => bail!(
            "ONNX Runtime gives {} logits instead of {}",
            logits.len(),
            probe.logits.len()
        ),
    }
}
