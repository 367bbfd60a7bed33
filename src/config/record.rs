//! Which streams are recorded, where, and how much of the disk they may take.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::security::Pattern;
use super::{ConfigError, value_error, within};
use crate::session::StreamName;

/// Recording of streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Where the files go; it is made if it is missing.
    pub folder: PathBuf,
    streams: Vec<Pattern>,
    /// A new file is begun after this time.
    pub rotate_after: Duration,
    /// A new file is begun at this size in bytes.
    pub rotate_bytes: u64,
    /// Bytes of all recordings in the folder; the oldest finished ones are deleted.
    pub disk_bytes: u64,
    /// When what is written is forced to the disk.
    pub fsync: Fsync,
}

impl Record {
    /// Whether this stream is recorded.
    pub fn covers(&self, stream: &StreamName) -> bool {
        self.streams.iter().any(|p| p.covers(stream))
    }
}

/// When the system is asked to force a recording to the disk: what a power cut may take. A crash of the daemon takes
/// nothing that was written, whatever this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// The system decides.
    Never,
    /// With every write.
    Bundle,
    /// When the oldest bytes not forced are this old.
    Every(Duration),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawFsync {
    Word(String),
    Seconds(f64),
}

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRecord {
    folder: String,
    streams: Vec<String>,
    rotate_minutes: f64,
    rotate_mb: f64,
    disk_mb: f64,
    fsync: RawFsync,
}

impl Default for RawRecord {
    fn default() -> Self {
        Self {
            folder: String::new(),
            streams: vec!["*".to_owned()],
            rotate_minutes: 60.0,
            rotate_mb: 64.0,
            disk_mb: 1024.0,
            fsync: RawFsync::Seconds(5.0),
        }
    }
}

impl RawRecord {
    /// None if nothing is recorded; the values are checked all the same.
    pub(super) fn check(self) -> Result<Option<Record>, ConfigError> {
        let minutes = within("record.rotate_minutes", self.rotate_minutes, 0.01, 44_640.0)?;
        let megabytes = |key, got| within(key, got, 0.0001, 1e9).map(|mb| (mb * 1e6) as u64);
        let rotate_bytes = megabytes("record.rotate_mb", self.rotate_mb)?;
        let disk_bytes = megabytes("record.disk_mb", self.disk_mb)?;
        if disk_bytes < rotate_bytes {
            return Err(value_error("record.disk_mb", self.disk_mb, "allowed: at least record.rotate_mb"));
        }
        let fsync = match self.fsync {
            RawFsync::Word(word) if word == "never" => Fsync::Never,
            RawFsync::Word(word) if word == "bundle" => Fsync::Bundle,
            RawFsync::Word(word) => {
                return Err(value_error(
                    "record.fsync",
                    word,
                    "allowed: \"never\", \"bundle\", or seconds (0.1 to 3600)",
                ));
            }
            RawFsync::Seconds(s) => Fsync::Every(Duration::from_secs_f64(within("record.fsync", s, 0.1, 3_600.0)?)),
        };
        let streams = self.streams.iter().map(|p| Pattern::parse("record.streams", p)).collect::<Result<_, _>>()?;
        Ok((!self.folder.is_empty()).then(|| Record {
            folder: PathBuf::from(self.folder),
            streams,
            rotate_after: Duration::from_secs_f64(minutes * 60.0),
            rotate_bytes,
            disk_bytes,
            fsync,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn streams_policy_and_sizes_are_read() {
        let text = "[record]\nfolder = \"/x\"\nstreams = [\"radio.*\", \"a\"]\nrotate_mb = 2\ndisk_mb = 3\n";
        let record = |more: &str| Config::parse(&format!("{text}{more}")).unwrap().record.unwrap();
        let r = record("fsync = \"bundle\"");
        assert!(r.covers(&StreamName::new("radio.1").unwrap()) && r.covers(&StreamName::new("a").unwrap()));
        assert!(!r.covers(&StreamName::new("ab").unwrap()));
        assert_eq!((r.rotate_bytes, r.disk_bytes, r.fsync), (2_000_000, 3_000_000, Fsync::Bundle));
        assert_eq!(record("fsync = 2").fsync, Fsync::Every(Duration::from_secs(2)));
        assert_eq!(record("fsync = \"never\"").fsync, Fsync::Never);
        assert!(Config::parse("").unwrap().record.is_none());
    }

    #[test]
    fn errors_name_key_and_value() {
        for (text, wanted) in [
            ("disk_mb = 1", "record.disk_mb = 1: allowed: at least"),
            ("fsync = \"often\"", "record.fsync = often: allowed: \"never\""),
            ("fsync = 0", "record.fsync = 0: allowed 0.1 to 3600"),
            ("rotate_minutes = -1", "record.rotate_minutes = -1: allowed"),
            ("streams = [\"a b\"]", "record.streams = a b: allowed"),
            ("color = 1", "color"),
        ] {
            let error = Config::parse(&format!("[record]\n{text}")).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
