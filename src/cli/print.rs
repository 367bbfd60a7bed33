//! Lines for people. Unlike `outln!`, these do not panic when nobody reads them any more.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// Prints a line to the standard output.
macro_rules! outln {
    ($($arg:tt)*) => { $crate::cli::print::out(format_args!("{}\n", format_args!($($arg)*))) };
}

/// Prints what has its line ends, as tables do.
macro_rules! out {
    ($($arg:tt)*) => { $crate::cli::print::out(format_args!($($arg)*)) };
}

/// Prints a line to the standard error.
macro_rules! errln {
    ($($arg:tt)*) => { $crate::cli::print::err(format_args!($($arg)*)) };
}

/// The program ends when its reader has gone (`undertone model info | head -1`), and fails when its lines find no room.
pub(super) fn out(text: Arguments<'_>) {
    match std::io::stdout().write_fmt(text) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => {
            err(format_args!("undertone: standard output: {e}"));
            std::process::exit(1);
        }
    }
}

/// Nobody can be told that nobody can be told.
pub(super) fn err(line: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// An error with its causes; many say theirs themselves, which is enough.
pub(super) fn reasons(e: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once() {
        let io = || std::io::Error::other("the disk is full");
        let said = crate::capture::CaptureError::Io { path: "a.utn".into(), source: io() };
        assert_eq!(reasons(&said.into()), "a.utn: the disk is full");
        assert_eq!(reasons(&anyhow::Error::from(io()).context("a.utn")), "a.utn: the disk is full");
    }
}
