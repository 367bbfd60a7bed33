//! The log.

use serde::Deserialize;

use super::{ConfigError, value_error};

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Filter, as in `info` or `undertone=debug`.
    pub level: String,
    /// Where it goes.
    pub target: LogTarget,
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTarget {
    /// The journal under systemd, else the standard error.
    Auto,
    /// The standard error.
    Stderr,
    /// The systemd journal.
    Journald,
}

section!(RawLog { level: String = "info".to_owned(), target: LogTarget = LogTarget::Auto });

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl RawLog {
    pub(super) fn check(self) -> Result<Log, ConfigError> {
        match check_filter(&self.level) {
            Ok(()) => Ok(Log { level: self.level, target: self.target }),
            Err(allowed) => Err(value_error("log.level", &self.level, allowed)),
        }
    }
}

fn is_level(word: &str) -> bool {
    LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word))
}

/// Whether a filter says how much of us is logged. A filter takes a word that is no level for the name of a module, and
/// then says nothing of all others: a typo would silence the log.
fn check_filter(filter: &str) -> Result<(), &'static str> {
    let allowed = "allowed: error, warn, info, debug, trace, off, or MODULE=LEVEL as in undertone=debug, separated by \
                   commas; one of them must be a level alone or say what undertone logs";
    let mut speaks = false;
    for part in filter.split(',').map(str::trim) {
        match part.split_once('=') {
            None if is_level(part) => speaks = true,
            Some((module, level)) if is_level(level.trim()) && is_module(module.trim()) => {
                speaks |= module.trim().split("::").next() == Some("undertone");
            }
            _ => return Err(allowed),
        }
    }
    if speaks { Ok(()) } else { Err(allowed) }
}

fn is_module(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    #[test]
    fn a_level_that_would_silence_the_log_by_mistake_is_refused() {
        let parse = |level: &str| Config::parse(&format!("[log]\nlevel = \"{level}\""));
        for good in ["info", "WARN", "off", "undertone=debug", "info,async_nats=off", "error, undertone::service=trace"]
        {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "inof",
            "verbose",
            "",
            "info,",
            "debugg",
            "undertone=dbug",
            "undertoen=debug",
            "async_nats=info",
            "3",
            "info;x",
        ] {
            let e = parse(bad).expect_err(bad).to_string();
            assert!(e.contains(&format!("log.level = {bad}:")) && e.contains("error, warn, info"), "{e}");
        }
    }
}
