//! Bytes inside a page: pictures as `data:` addresses, and the name by which a page admits its own script.

use sha2::{Digest, Sha256};

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648, section 4). Sixteen lines, so that the program does not depend on a crate for them.
pub fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let all = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            text.push(match i <= group.len() {
                true => char::from(DIGITS[(all >> (18 - 6 * i)) as usize & 63]),
                false => '=',
            });
        }
    }
    text
}

/// The address of a PNG inside the page.
pub fn png_address(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64(png))
}

/// How a content security policy names a script that stands in the page.
pub fn script_hash(script: &str) -> String {
    format!("sha256-{}", base64(&Sha256::digest(script)))
}

/// A value as JSON inside a `script` element, which no text of it can end.
pub fn json_block(id: &str, value: &serde_json::Value) -> String {
    let text = value.to_string().replace('<', "\\u003c");
    format!("<script type=\"application/json\" id=\"{id}\">{text}</script>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[255, 239, 190]), "/+++");
    }

    #[test]
    fn a_script_has_the_name_that_browsers_compute() {
        // Example of the Content Security Policy, level 2, section 4.2.5.
        let expected = "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng=";
        assert_eq!(script_hash("alert('Hello, world.');"), expected);
    }

    #[test]
    fn no_text_ends_a_block_of_data() {
        let block = json_block("x", &serde_json::json!(["</script><b>"]));
        assert_eq!(block.matches("</script>").count(), 1);
        assert!(!block.contains("<b>"));
    }
}
