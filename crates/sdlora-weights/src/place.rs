//! Where the numbers of a tensor lie, and reading them.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::WeightsError;
use crate::tensor::TensorInfo;

/// Bytes converted at a time.
const CHUNK: usize = 1 << 20;

/// What is read: a file, opened anew for every tensor, or bytes in memory.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    memory: Option<Arc<[u8]>>,
}

/// A reader that can jump.
pub(crate) trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

impl Source {
    pub(crate) fn file(path: &Path) -> Self {
        Self {
            path: path.into(),
            memory: None,
        }
    }

    pub(crate) fn memory(path: &Path, bytes: Vec<u8>) -> Self {
        Self {
            path: path.into(),
            memory: Some(bytes.into()),
        }
    }

    pub(crate) fn open(&self) -> Result<Box<dyn ReadSeek>, WeightsError> {
        Ok(match &self.memory {
            Some(bytes) => Box::new(Cursor::new(Arc::clone(bytes))),
            None => {
                let file = File::open(&self.path).map_err(|e| self.io(e))?;
                Box::new(BufReader::new(file))
            }
        })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> Result<u64, WeightsError> {
        match &self.memory {
            Some(bytes) => Ok(bytes.len() as u64),
            None => Ok(std::fs::metadata(&self.path).map_err(|e| self.io(e))?.len()),
        }
    }

    pub(crate) fn io(&self, source: io::Error) -> WeightsError {
        WeightsError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// A run of bytes that holds the numbers of one tensor or of several.
#[derive(Debug, Clone)]
pub(crate) enum Run {
    /// In the file as they are.
    Plain {
        /// First byte in the file.
        start: u64,
    },
    /// A compressed member of a zip file.
    Packed {
        /// Its position in the zip file's directory.
        member_idx: usize,
        /// Its name, for messages.
        member: String,
    },
}

/// Where one tensor's numbers lie. Whoever makes one has checked that all of it lies inside the run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) run: Run,
    /// Bytes from the start of the run to the first number.
    pub(crate) offset: u64,
    /// Step along every axis in numbers; `None` for row-major without gaps.
    pub(crate) strides: Option<Vec<u64>>,
}

impl Place {
    /// Reads a tensor row-major; its dtype is known to be a float.
    pub(crate) fn read_f32(
        &self,
        source: &Source,
        info: &TensorInfo,
    ) -> Result<Vec<f32>, WeightsError> {
        let n_elements = info.n_elements();
        let size = info.dtype.n_bytes().unwrap_or_default() as usize;
        if n_elements == 0 || size == 0 {
            return Ok(Vec::new());
        }
        let Some(strides) = &self.strides else {
            let mut out = Vec::with_capacity(n_elements);
            self.each_chunk(source, n_elements * size, |chunk| {
                info.dtype.widen(chunk, &mut out);
            })?;
            return Ok(out);
        };

        let span: u64 = info
            .shape
            .iter()
            .zip(strides)
            .map(|(&extent, &stride)| (extent as u64 - 1) * stride)
            .sum();
        if n_elements as u64 > span + 1 {
            // An expanded view: a few stored numbers could claim any amount of memory.
            return Err(WeightsError::Tensor {
                path: source.path.clone(),
                name: info.name.clone(),
                problem: "repeats stored numbers (an expanded view): save it with `.contiguous()`"
                    .into(),
            });
        }
        let mut all = Vec::with_capacity(span as usize + 1);
        self.each_chunk(source, (span as usize + 1) * size, |chunk| {
            info.dtype.widen(chunk, &mut all);
        })?;
        Ok(gather(&all, &info.shape, strides, n_elements))
    }

    /// Calls `f` with whole numbers until `n_bytes` have been read.
    fn each_chunk(
        &self,
        source: &Source,
        n_bytes: usize,
        mut f: impl FnMut(&[u8]),
    ) -> Result<(), WeightsError> {
        let mut file = source.open()?;
        match &self.run {
            Run::Plain { start } => file
                .seek(SeekFrom::Start(start + self.offset))
                .and_then(|_| pump(&mut file, n_bytes, &mut f))
                .map_err(|e| source.io(e)),
            Run::Packed { member_idx, member } => {
                let zip_error = |e| WeightsError::Zip {
                    path: source.path.clone(),
                    member: member.clone(),
                    source: e,
                };
                let mut archive = zip::ZipArchive::new(file).map_err(zip_error)?;
                let mut entry = archive.by_index(*member_idx).map_err(zip_error)?;
                io::copy(&mut (&mut entry).take(self.offset), &mut io::sink())
                    .and_then(|_| pump(&mut entry, n_bytes, &mut f))
                    .map_err(|e| zip_error(zip::result::ZipError::Io(e)))
            }
        }
    }
}

fn pump(from: &mut impl Read, n_bytes: usize, f: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let mut chunk = vec![0; n_bytes.min(CHUNK)];
    let mut n_left = n_bytes;
    while n_left > 0 {
        let part = &mut chunk[..n_left.min(CHUNK)];
        from.read_exact(part)?;
        f(part);
        n_left -= part.len();
    }
    Ok(())
}

/// Row-major copy of a strided view; all extents are at least 1.
fn gather(all: &[f32], shape: &[usize], strides: &[u64], n_elements: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(n_elements);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for _ in 0..n_elements {
        out.push(all[at]);
        for axis in (0..shape.len()).rev() {
            let stride = strides[axis] as usize;
            index[axis] += 1;
            at += stride;
            if index[axis] < shape[axis] {
                break;
            }
            at -= shape[axis] * stride;
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_is_gathered_row_major() {
        // Stored [2, 3]: 0 1 2 / 3 4 5; the view is its transpose [3, 2].
        let all = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(
            gather(&all, &[3, 2], &[1, 3], 6),
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
        );
    }
}
