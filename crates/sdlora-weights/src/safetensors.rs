//! The header of a safetensors file.
//!
//! Layout: 8 bytes header length (little-endian), the header (JSON), then the numbers. The rules are those of the
//! format's reference reader: tensors lie one after the other without gap or overlap and end with the file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::fmt;
use std::io::{Read, Seek, SeekFrom};

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};

use crate::entry::Entry;
use crate::error::WeightsError;
use crate::place::{Place, Run, Source};
use crate::tensor::{Dtype, MAX_AXES, TensorInfo, n_elements};

/// The reference reader's bound on the header.
const MAX_HEADER: u64 = 100_000_000;
const N_LEN: u64 = 8;

/// Names, shapes and places of a file's tensors, unsorted, and its metadata.
pub(crate) fn read(
    source: &Source,
    source_idx: usize,
) -> Result<(Vec<Entry>, BTreeMap<String, String>), WeightsError> {
    let refuse = |problem: String| WeightsError::Header {
        path: source.path.clone(),
        problem,
    };
    let n_file = source.len()?;
    let mut file = source.open()?;
    let mut n_header = [0; N_LEN as usize];
    if n_file < N_LEN {
        return Err(refuse(format!("it has only {n_file} bytes")));
    }
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_exact(&mut n_header))
        .map_err(|e| source.io(e))?;
    let n_header = u64::from_le_bytes(n_header);
    if n_header > MAX_HEADER {
        return Err(refuse(format!(
            "its header claims {n_header} bytes, more than {MAX_HEADER}"
        )));
    }
    if n_header > n_file - N_LEN {
        return Err(refuse(format!(
            "its header claims {n_header} bytes, but the whole file has {n_file}"
        )));
    }
    let mut header = vec![0; n_header as usize];
    file.read_exact(&mut header).map_err(|e| source.io(e))?;
    let header: Header = serde_json::from_slice(&header)
        .map_err(|e| refuse(format!("its header is not the JSON it should be: {e}")))?;

    let n_data = n_file - N_LEN - n_header;
    let mut entries = Vec::with_capacity(header.tensors.len());
    let mut tensors: Vec<_> = header.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut end_of_last = 0;
    for (name, tensor) in tensors {
        let refuse = |problem: String| WeightsError::Tensor {
            path: source.path.clone(),
            name: name.clone(),
            problem,
        };
        let (start, end) = tensor.data_offsets;
        if end < start || end > n_data {
            return Err(refuse(format!(
                "claims bytes {start} to {end} of {n_data}: the file is cut off or its header wrong"
            )));
        }
        if start != end_of_last {
            return Err(refuse(format!(
                "starts at byte {start}, but the tensor before it ends at {end_of_last}"
            )));
        }
        end_of_last = end;
        let dtype = Dtype::from_name(&tensor.dtype);
        let n = n_elements(&tensor.shape.0);
        let fits = match (n, dtype.n_bytes()) {
            (Some(n), Some(size)) => n.checked_mul(size) == Some(end - start),
            // Formats below a byte: the count is all that can be checked.
            (Some(_), None) => true,
            (None, _) => false,
        };
        if !fits {
            return Err(refuse(format!(
                "is {dtype} {:?}, which does not take the {} bytes it has",
                tensor.shape.0,
                end - start
            )));
        }
        let shape = tensor.shape.0.iter().map(|&extent| extent as usize);
        entries.push(Entry {
            info: TensorInfo {
                dtype,
                shape: shape.collect(),
                name,
            },
            source_idx,
            n_bytes: end - start,
            place: Place {
                run: Run::Plain {
                    start: N_LEN + n_header,
                },
                offset: start,
                strides: None,
            },
        });
    }
    if end_of_last != n_data {
        return Err(refuse(format!(
            "its tensors end at byte {end_of_last} of {n_data}"
        )));
    }
    Ok((entries, header.metadata))
}

/// The JSON of a header.
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, HeaderTensor>,
}

#[derive(Deserialize)]
struct HeaderTensor {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape of at most [`MAX_AXES`] axes, refused while it is read: a list of digits grows eightfold in memory.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header {
                    metadata: BTreeMap::new(),
                    tensors: BTreeMap::new(),
                };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                        continue;
                    }
                    match header.tensors.entry(name) {
                        Vacant(place) => {
                            place.insert(map.next_value()?);
                        }
                        Occupied(first) => {
                            let name = first.key();
                            return Err(A::Error::custom(format!("`{name}` is there twice")));
                        }
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Extents;
        impl<'de> Visitor<'de> for Extents {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX_AXES} extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = seq.next_element()? {
                    if shape.len() == MAX_AXES {
                        return Err(A::Error::custom(format!("more than {MAX_AXES} axes")));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Extents)
    }
}

#[cfg(test)]
mod tests {
    use crate::WeightFile;

    fn open(header: &str, n_data: usize) -> Result<WeightFile, String> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + n_data, 0);
        WeightFile::from_bytes("t.safetensors", bytes).map_err(|e| e.to_string())
    }

    #[test]
    fn a_contradiction_is_refused_and_named() {
        let one = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        assert_eq!(open(one, 8).unwrap().n_bytes(), 8);
        let long_shape = format!(
            r#"{{"a":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#,
            "1,".repeat(40)
        );
        let cases: [(&str, usize, &str); 10] = [
            (one, 7, "cut off"),
            (one, 12, "end at byte 8 of 12"),
            (
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                8,
                "does not take the 8 bytes",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
                0,
                "does not take",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#,
                6,
                "ends at 4",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
                4,
                "claims bytes 4 to 0",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
                4,
                "JSON",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
                4,
                "twice",
            ),
            (&long_shape, 4, "axes"),
            ("{", 0, "JSON"),
        ];
        for (header, n_data, expected) in cases {
            let message = open(header, n_data).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_header_longer_than_the_file_or_the_bound_is_refused_unread() {
        for (n, expected) in [(u64::MAX, "more than"), (1000, "the whole file")] {
            let mut bytes = n.to_le_bytes().to_vec();
            bytes.extend(b"{}");
            let message = WeightFile::from_bytes("t.safetensors", bytes)
                .unwrap_err()
                .to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
