//! A score that another program gives: any metric that is not ours, by a line of text for each recording.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The running program. It first says the metric's name on a line of its own; then for each line
/// `KIND<TAB>ORIGINAL<TAB>DECODED` (two WAV files of the same length) it answers a line with a number.
pub(super) struct Scorer {
    program: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    command: String,
    /// What it calls its score.
    pub(super) name: String,
}

impl Scorer {
    /// Starts `command` by the shell.
    pub(super) fn start(command: &str) -> Result<Self> {
        let mut program = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("--scorer {command}"))?;
        let (ask, answers) = program.stdin.take().zip(program.stdout.take()).context("--scorer: no pipes")?;
        let mut scorer =
            Self { program, ask, answers: BufReader::new(answers), command: command.to_owned(), name: String::new() };
        scorer.name = scorer.line()?;
        ensure!(!scorer.name.is_empty(), "--scorer {command}: its first line must name the metric");
        Ok(scorer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("--scorer {}: it ended ({})", self.command, self.program.wait()?);
        }
        Ok(line.trim().to_owned())
    }

    /// The score of a decoded recording.
    pub(super) fn score(&mut self, kind: &str, original: &Path, decoded: &Path) -> Result<f64> {
        let pair = || format!("{} and {}", original.display(), decoded.display());
        // What cannot be written is told by the answer that does not come.
        let _ = writeln!(self.ask, "{kind}\t{}\t{}", original.display(), decoded.display());
        let line = self.line().with_context(pair)?;
        line.parse()
            .ok()
            .with_context(|| format!("--scorer {}: \"{line}\" is no number", self.command))
            .with_context(pair)
    }
}

impl Drop for Scorer {
    fn drop(&mut self) {
        // It may be in the middle of something long.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_asked_line_by_line() {
        let mut scorer = Scorer::start("echo 'letters (all)'; while read -r line; do echo ${#line}; done").unwrap();
        assert_eq!(scorer.name, "letters (all)");
        assert_eq!(scorer.score("speech", Path::new("/a"), Path::new("/bc")).unwrap(), 13.0);
        assert_eq!(scorer.score("music", Path::new("/a"), Path::new("/b")).unwrap(), 11.0);
    }

    #[test]
    fn what_it_does_wrong_is_said_with_its_name() {
        let error = |command: &str| Scorer::start(command).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(error("exit 3").contains("--scorer exit 3: it ended (exit status: 3)"), "{}", error("exit 3"));
        assert!(error("echo").contains("must name the metric"));
        let mut scorer = Scorer::start("echo m; read -r x; echo bad").unwrap();
        let ask = |s: &mut Scorer| format!("{:#}", s.score("speech", Path::new("/a"), Path::new("/b")).unwrap_err());
        assert!(ask(&mut scorer).contains("\"bad\" is no number"));
        assert!(ask(&mut scorer).contains("it ended"));
    }
}
