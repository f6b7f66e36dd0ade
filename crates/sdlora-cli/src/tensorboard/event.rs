//! The messages of an event file: the fields of `event.proto` and `summary.proto` of TensorBoard that are used here,
//! with their numbers there. Others in a file that is continued are dropped.

/// Something that happened at a step.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Step, or task.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// In the first event of a file.
    #[prost(string, optional, tag = "3")]
    pub file_version: Option<String>,
    /// What was measured.
    #[prost(message, optional, tag = "5")]
    pub summary: Option<Summary>,
}

/// Values that were measured.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Summary {
    /// Them.
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// A value with its name: a number or a picture.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Name, with `/` between its parts.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// A number.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
    /// A picture.
    #[prost(message, optional, tag = "4")]
    pub image: Option<Picture>,
}

/// A picture.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Picture {
    /// In pixels.
    #[prost(int32, tag = "1")]
    pub height: i32,
    /// In pixels.
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// Number of channels.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    /// The bytes of a PNG.
    #[prost(bytes = "vec", tag = "4")]
    pub encoded_image_string: Vec<u8>,
}

impl Value {
    /// A number.
    pub fn number(tag: impl Into<String>, value: f64) -> Self {
        Self {
            tag: tag.into(),
            simple_value: Some(value as f32),
            image: None,
        }
    }
}
