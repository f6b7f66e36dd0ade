//! Tables as programs write them: UTF-8 or UTF-16, with commas, semicolons or tabs between the fields.

/// Reason why the bytes of a table are no text, as the end of a sentence about the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum TextError {
    /// UTF-16 with an odd number of bytes.
    #[error("is UTF-16 text that ends in the middle of a character")]
    OddLength,
    /// UTF-16 with half of a surrogate pair.
    #[error("is UTF-16 text with broken characters")]
    BrokenPair,
    /// Zero bytes without a byte order mark.
    #[error("is no text, or UTF-16 text without a mark of it at its start")]
    ZeroBytes,
    /// A byte that no UTF-8 text has, in this line, counted from 1.
    #[error("is not UTF-8 in line {0}")]
    NotUtf8(usize),
}

/// The text of a table.
///
/// # Errors
///
/// [`TextError`] for bytes that are neither UTF-8 nor UTF-16 with its mark.
pub(super) fn text(bytes: Vec<u8>) -> Result<String, TextError> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        if !bytes.len().is_multiple_of(2) {
            return Err(TextError::OddLength);
        }
        let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
        char::decode_utf16(units)
            .collect::<Result<String, _>>()
            .map_err(|_| TextError::BrokenPair)
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => return utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => return utf16(rest, u16::from_be_bytes),
        _ => {}
    }
    if bytes.contains(&0) {
        return Err(TextError::ZeroBytes);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text
            .strip_prefix('\u{feff}')
            .map(str::to_owned)
            .unwrap_or(text)),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good]
                .iter()
                .filter(|&&b| b == b'\n')
                .count()
                + 1;
            Err(TextError::NotUtf8(line))
        }
    }
}

/// What may stand between fields, the usual one first.
pub(super) const DELIMITERS: [char; 3] = [',', ';', '\t'];

/// The delimiter that a first line `sep=;` names, as Excel reads it.
pub(super) fn named_delimiter(line: &str) -> Option<char> {
    let rest = line.trim_end_matches(['\r', '\n']).strip_prefix("sep=")?;
    let mut chars = rest.chars();
    let delimiter = chars.next().filter(|c| DELIMITERS.contains(c))?;
    chars.next().is_none().then_some(delimiter)
}

/// The fields of a line (RFC 4180 without line breaks in fields), trimmed; nothing when a quote does not end.
pub(super) fn fields(line: &str, delimiter: char) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut in_quotes = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => {
                chars.next();
                fields.last_mut()?.push('"');
            }
            '"' => in_quotes = !in_quotes,
            c if c == delimiter && !in_quotes => fields.push(String::new()),
            _ => fields.last_mut()?.push(c),
        }
    }
    (!in_quotes).then(|| fields.iter().map(|field| field.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_commas() {
        assert_eq!(
            fields(r#"a.png, "cat, ""big""" ,train"#, ',').unwrap(),
            ["a.png", r#"cat, "big""#, "train"]
        );
        assert_eq!(fields(r#"a,"b"#, ','), None);
        assert_eq!(fields("a;b,c", ';').unwrap(), ["a", "b,c"]);
        assert_eq!(named_delimiter("sep=;\r"), Some(';'));
        assert_eq!(named_delimiter("sep=x"), None);
    }

    #[test]
    fn texts_of_other_programs_are_read_or_refused_with_the_cause() {
        let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "\u{feff}"
                .encode_utf16()
                .chain(text.encode_utf16())
                .flat_map(bytes)
                .collect()
        };
        for bytes in [
            utf16("é,猫", u16::to_le_bytes),
            utf16("é,猫", u16::to_be_bytes),
            "\u{feff}é,猫".into(),
            "é,猫".into(),
        ] {
            assert_eq!(text(bytes).unwrap(), "é,猫");
        }
        for (bytes, expected) in [
            (&b"a,b\nc,caf\xe9\n"[..], TextError::NotUtf8(2)),
            (b"a\0,\0b\0", TextError::ZeroBytes),
            (b"\xff\xfea", TextError::OddLength),
            (b"\xff\xfe\0\xd8", TextError::BrokenPair),
        ] {
            assert_eq!(text(bytes.to_vec()), Err(expected));
        }
    }
}
