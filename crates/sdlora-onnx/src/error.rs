//! What can be wrong with a model.

/// What can be wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file would pass the limit of its format.
    #[error(
        "the model would have {n_bytes} bytes, and an ONNX file holds less than {limit}: store its weights in 16 or 8 \
         bits"
    )]
    TooLarge {
        /// Bytes of the file.
        n_bytes: usize,
        /// Largest number of bytes.
        limit: usize,
    },
    /// The bytes are no ONNX file.
    #[error("it is no ONNX file: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The parts of a graph do not fit together.
    #[error("its graph is not sound: {0}")]
    Graph(String),
}
