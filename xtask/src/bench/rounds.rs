//! Programs that are asked in turn, and the statistics of their answers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};

/// What a program reports of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Answer {
    /// Seconds by the clock.
    pub(super) wall: f64,
    /// Seconds of the processor, over all threads.
    pub(super) processor: f64,
    /// Bytes the process grew at most since its model stood.
    pub(super) peak: f64,
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            wall: next()?,
            processor: next()?,
            peak: next()?,
        })
    }
}

/// A running program that times steps on request; it ends with this value.
pub(super) struct Program {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    name: String,
}

impl Program {
    /// Starts it and waits until its model stands.
    pub(super) fn start(mut command: Command) -> anyhow::Result<Self> {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} has no input or output");
        };
        let mut program = Self {
            child,
            requests,
            answers: BufReader::new(answers),
            name,
        };
        let line = program.line()?;
        if line.trim() != "ready" {
            bail!(
                "{} did not get ready, it said `{}`",
                program.name,
                line.trim()
            );
        }
        Ok(program)
    }

    /// Times a number of steps.
    pub(super) fn ask(&mut self, n_steps: usize) -> anyhow::Result<Answer> {
        writeln!(self.requests, "{n_steps}").with_context(|| format!("{} has ended", self.name))?;
        let line = self.line()?;
        Answer::parse(&line)
            .with_context(|| format!("{} answered `{}`, no times", self.name, line.trim()))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!(
                "{} ended before it answered; its message is above",
                self.name
            );
        }
        Ok(line)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself; there is nothing to do about an error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Median, smallest and largest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// Of at least one value.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Some(Self {
            median: *values.get(values.len() / 2)?,
            low: *values.first()?,
            high: *values.last()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_three_numbers() {
        let answer = Answer::parse("0.5 0.25 1048576\n").unwrap();
        assert_eq!(
            answer,
            Answer {
                wall: 0.5,
                processor: 0.25,
                peak: 1048576.0
            }
        );
        assert_eq!(Answer::parse("0.5 0.25"), None);
        assert_eq!(Answer::parse("Traceback (most recent call last):"), None);
    }

    #[test]
    fn the_spread_is_that_of_the_sorted_values() {
        let spread = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of([]), None);
    }

    #[cfg(unix)]
    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[cfg(unix)]
    #[test]
    fn a_program_answers_and_one_that_dies_is_an_error() {
        let mut program =
            Program::start(shell("echo ready; read n; echo \"$n 2 3\"; exit 1")).unwrap();
        assert_eq!(program.ask(7).unwrap().wall, 7.0);
        assert!(program.ask(7).is_err());
        let error = Program::start(shell("exit 1")).err().unwrap().to_string();
        assert!(error.contains("ended before it answered"), "{error}");
        let error = Program::start(shell("echo no")).err().unwrap().to_string();
        assert!(error.contains("did not get ready"), "{error}");
    }
}
