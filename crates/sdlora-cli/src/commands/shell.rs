//! Commands as lines of a POSIX shell.

use crate::UsageError;
use crate::shown::shown;

/// A command whose words a shell takes as they are, in one line.
///
/// # Errors
///
/// A usage error for a word with a line break: lists of commands are cut at line ends.
pub fn line(words: &[String]) -> Result<String, UsageError> {
    let quoted: Result<Vec<String>, UsageError> = words.iter().map(|word| quoted(word)).collect();
    Ok(quoted?.join(" "))
}

/// A word as it is, or in single quotes where the shell would see more in it than letters.
fn quoted(word: &str) -> Result<String, UsageError> {
    let printed = shown(word);
    if printed != word {
        return Err(UsageError(format!(
            "`{printed}` has a character that cannot be printed as it is, so it cannot stand in a list of \
             commands: write it without"
        )));
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Ok(word.to_owned());
    }
    // A single quote ends the quotes, stands alone behind a backslash, and opens them again.
    Ok(format!("'{}'", word.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_shell_gives_back_the_words() {
        let words = [
            "printf",
            "%s|",
            "a b",
            "it's",
            "",
            "$HOME",
            "`x`",
            "\\",
            "\"",
            "~",
            "method={ name = \"ncm\" }",
            "猫",
            "*",
            "a#b",
            "#a",
            "!",
        ]
        .map(str::to_owned);
        let line = line(&words).unwrap();
        let found = std::process::Command::new("sh")
            .args(["-c", &line])
            .output()
            .unwrap();
        let expected = words[2..].join("|") + "|";
        assert_eq!(String::from_utf8_lossy(&found.stdout), expected, "{line}");
    }

    #[test]
    fn plain_words_stay_and_a_line_break_is_refused() {
        let words = ["sdlora", "--seeds", "1,2", "runs/a-b_c"].map(str::to_owned);
        assert_eq!(line(&words).unwrap(), "sdlora --seeds 1,2 runs/a-b_c");
        let error = line(&["a\nb".to_owned()]).unwrap_err().to_string();
        assert!(error.contains(r"a\nb"), "{error}");
    }
}
