//! A program with an end in time.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// What a program said, and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    /// Its standard output.
    pub(super) output: String,
    /// The last lines of its standard error.
    pub(super) error: String,
    /// Whether it ended by itself and with 0.
    pub(super) is_ok: bool,
    /// Whether it was ended because its time was up.
    pub(super) is_late: bool,
    /// Seconds it took.
    pub(super) seconds: f64,
}

impl Said {
    /// Why it is not ok.
    pub(super) fn problem(&self) -> String {
        let how = match self.is_late {
            true => format!("its time was up after {:.0} s", self.seconds),
            false => "it failed".to_owned(),
        };
        format!("{how}: {}", self.error.trim())
    }
}

/// Runs a program with this input, for as long as `limit` at most. What it wrote until then is kept.
///
/// # Errors
///
/// When it cannot be started.
pub(super) fn run(command: &mut Command, input: &str, limit: Duration) -> anyhow::Result<Said> {
    let start = Instant::now();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Programs that it starts end with it: torch.compile has workers.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let (output, error) = (reader(child.stdout.take()), reader(child.stderr.take()));
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything is told apart by what it answered.
        let _ = stdin.write_all(input.as_bytes());
    }
    let mut is_late = false;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the program")? {
            break status;
        }
        if start.elapsed() >= limit {
            is_late = true;
            end(&mut child);
            break child.wait().context("cannot wait for the program")?;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let seconds = start.elapsed().as_secs_f64();
    let error = error.join().unwrap_or_default();
    Ok(Said {
        output: output.join().unwrap_or_default(),
        error: last_lines(&error, 6),
        is_ok: status.success() && !is_late,
        is_late,
        seconds,
    })
}

/// Ends a program and those that it started.
fn end(child: &mut Child) {
    #[cfg(unix)]
    {
        let group = format!("-{}", child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    }
    let _ = child.kill();
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn shell(script: &str, input: &str, limit: u64) -> Said {
        let mut command = Command::new("sh");
        run(
            command.args(["-c", script]),
            input,
            Duration::from_secs(limit),
        )
        .unwrap()
    }

    #[test]
    fn a_program_answers_its_input() {
        let said = shell("while read n; do echo got $n; done", "1\n2\n", 20);
        assert_eq!((said.output.as_str(), said.is_ok), ("got 1\ngot 2\n", true));
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let said = shell("echo no device >&2; exit 3", "", 20);
        assert!(!said.is_ok && !said.is_late);
        assert_eq!(said.problem(), "it failed: no device");
    }

    #[test]
    fn what_was_said_before_the_end_is_kept_and_its_children_end_too() {
        let start = Instant::now();
        // The child holds the pipe open: reading to its end would wait for it.
        let said = shell("echo first; sleep 60 & sleep 60", "", 1);
        assert!(said.is_late && !said.is_ok);
        assert_eq!(said.output, "first\n");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
