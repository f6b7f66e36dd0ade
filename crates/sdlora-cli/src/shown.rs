//! Names that come from files, in a form that is safe to print.

/// Longest text of a file that is printed, in characters. Names of tensors stay below it.
pub const LONGEST: usize = 200;

/// A name with everything escaped that would move the cursor, break the line or turn the text
/// around: escape sequences of terminals, line breaks, tabs, marks of direction.
pub fn shown(name: &str) -> String {
    escaped(name, is_unsafe)
}

/// A path, as [`shown`].
pub fn shown_path(path: &std::path::Path) -> String {
    shown(&path.to_string_lossy())
}

/// A name as [`shown`], and of a long one only its beginning and how much is left out.
pub fn clipped(name: &str) -> String {
    clipped_to(name, LONGEST)
}

/// The first `n` characters of a text as [`shown`], and how many more there are.
pub fn clipped_to(name: &str, n: usize) -> String {
    match name.char_indices().nth(n) {
        None => shown(name),
        Some((end, _)) => format!(
            "{} ... and {} more characters",
            shown(&name[..end]),
            name[end..].chars().count()
        ),
    }
}

/// A text of several lines with everything else escaped that [`shown`] escapes.
pub fn shown_lines(text: &str) -> String {
    escaped(text, |c| is_unsafe(c) && c != '\n' && c != '\t')
}

/// A text of JSON, in which the same characters are escaped as JSON has it: they stand in its strings only.
pub fn json_shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_unsafe(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_escaped(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters of ASCII and Latin-1, line and paragraph separators, marks of direction
/// (Unicode 16, 3.10 and UAX 9).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_act_on_a_terminal_is_escaped_and_letters_are_not() {
        let name = "a\u{1b}[31mred\nb\tc\rd\u{9b}2Je\u{202e}f\u{2028}g";
        let safe = r"a\u{1b}[31mred\nb\tc\rd\u{9b}2Je\u{202e}f\u{2028}g";
        assert_eq!(shown(name), safe);
        for plain in ["ﬁle ü 猫 é 'x' \"y\" \\", "", "e\u{301}"] {
            assert_eq!(shown(plain), plain);
        }
        assert_eq!(shown_lines("a\n\tb\u{1b}c"), "a\n\tb\\u{1b}c");
    }

    #[test]
    fn of_a_long_name_the_beginning_is_shown() {
        let long = "ü".repeat(LONGEST + 7);
        assert!(clipped(&long).ends_with("ü ... and 7 more characters"));
        assert_eq!(clipped("a\nb"), r"a\nb");
        let whole = "x".repeat(LONGEST);
        assert_eq!(clipped(&whole), whole);
    }
}
