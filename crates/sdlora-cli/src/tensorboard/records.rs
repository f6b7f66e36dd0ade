//! The frame of an event file, TFRecord: length (8 bytes), its checksum (4), the bytes, their checksum (4), all little
//! endian. A checksum is CRC-32C, masked so that one over bytes that hold a checksum is no special case.

/// The record of some bytes.
pub fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked(bytes).to_le_bytes());
    record
}

/// The records of a file up to the first that is cut or damaged, as a kill leaves it at the end.
pub fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((bytes, rest)) = first(file) {
        found.push(bytes);
        file = rest;
    }
    found
}

fn first(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*sum) != masked(length) {
        return None;
    }
    let n = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (bytes, rest) = rest.split_at_checked(n)?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*sum) == masked(bytes)).then_some((bytes, rest))
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (RFC 3720, appendix B.4).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (crc >> 8) ^ TABLE[usize::from((crc as u8) ^ byte)]
    })
}

/// What a byte does to the checksum: the reversed polynomial of Castagnoli.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 3720, B.4, and the usual check value of the polynomial.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_come_back_up_to_the_first_that_is_not_whole() {
        let file = [record(b"one"), record(b""), record(b"three")].concat();
        assert_eq!(records(&file), [&b"one"[..], b"", b"three"]);
        for length in 0..file.len() {
            let found = records(&file[..length]);
            let n = [19, 35].iter().filter(|&&end| end <= length).count();
            assert_eq!(found.len(), n, "{length} bytes");
        }
        for damaged in 0..19 {
            let mut file = file.clone();
            file[damaged] ^= 4;
            assert!(records(&file).is_empty(), "byte {damaged}");
        }
        assert!(records(&[0xff; 40]).is_empty());
    }
}
