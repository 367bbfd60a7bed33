//! What is wrong with a configuration.

use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not TOML, or a key that is not known.
    #[error("configuration: {0}")]
    Syntax(String),
    /// A value outside its range.
    #[error("configuration: {key} = {got}: {allowed}")]
    Value {
        /// Key in the file.
        key: &'static str,
        /// Value as given.
        got: String,
        /// What is allowed.
        allowed: String,
    },
}

pub(super) fn value_error(key: &'static str, got: impl ToString, allowed: impl ToString) -> ConfigError {
    ConfigError::Value { key, got: got.to_string(), allowed: allowed.to_string() }
}

pub(super) fn within<T: PartialOrd + ToString + Copy>(
    key: &'static str,
    got: T,
    low: T,
    high: T,
) -> Result<T, ConfigError> {
    if got >= low && got <= high {
        Ok(got)
    } else {
        Err(value_error(key, got, format!("allowed {} to {}", low.to_string(), high.to_string())))
    }
}
