//! One member of a zip file: where its bytes are, and unpacking them.

use super::read::read_to_end;
use super::store::Store;
use crate::error::DataError;

/// Length of the fixed part of a local file header (ZIP specification, 4.3.7).
pub(super) const LOCAL_HEADER_LEN: u64 = 30;

/// Where a member is, and how it is packed.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) header_start: u64,
    pub(super) packed_len: u64,
    pub(super) crc32: u32,
    pub(super) is_deflated: bool,
}

/// Why a member could not be read.
pub(super) enum Problem {
    /// The archive could not be read.
    Store(DataError),
    /// The member is damaged, as the end of a sentence about it.
    Content(String),
}

impl Member {
    /// Reads and unpacks the member, `len` bytes, and compares its checksum.
    pub(super) fn read(&self, store: &Store, len: u64) -> Result<Vec<u8>, Problem> {
        let content = |text: &str| Problem::Content(text.to_owned());
        let packed = self.packed(store, self.packed_len)?;
        let bytes = if self.is_deflated {
            inflate(&packed, len, len.saturating_add(1))?
        } else {
            packed
        };
        if bytes.len() as u64 != len {
            return Err(content("has another size than the directory says"));
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        if crc.sum() != self.crc32 {
            return Err(content("has a wrong checksum"));
        }
        Ok(bytes)
    }

    /// Reads and unpacks the first `len` bytes of the member, which are not compared with its checksum.
    pub(super) fn read_start(&self, store: &Store, len: u64) -> Result<Vec<u8>, Problem> {
        if !self.is_deflated {
            return self.packed(store, self.packed_len.min(len));
        }
        // Bytes that cannot be packed take little more room.
        let most = len.saturating_mul(2).saturating_add(1 << 12);
        let packed = self.packed(store, self.packed_len.min(most))?;
        inflate(&packed, len, len)
    }

    /// The first `len` bytes of the member, packed as they are.
    fn packed(&self, store: &Store, len: u64) -> Result<Vec<u8>, Problem> {
        let header = store
            .read(self.header_start, LOCAL_HEADER_LEN)
            .map_err(Problem::Store)?;
        if !header.starts_with(b"PK\x03\x04") {
            let text = "does not start where the directory says";
            return Err(Problem::Content(text.to_owned()));
        }
        let number = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        // The lengths of name and extra field; those of the directory may differ.
        let start = self.header_start + LOCAL_HEADER_LEN + number(26) + number(28);
        store.read(start, len).map_err(Problem::Store)
    }
}

/// Unpacks deflated bytes, `max_bytes` at most.
fn inflate(packed: &[u8], expected: u64, max_bytes: u64) -> Result<Vec<u8>, Problem> {
    read_to_end(
        flate2::read::DeflateDecoder::new(packed),
        expected,
        max_bytes,
    )
    .map_err(|source| Problem::Content(format!("cannot be unpacked ({source})")))
}
