//! Why a recording fails.

use std::path::PathBuf;

use crate::bitstream::BitstreamError;

/// Ways in which a recording fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("{0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error(transparent)]
    Bitstream(#[from] BitstreamError),
    #[error("record.disk_mb is taken by recordings that are still running")]
    Full,
}

impl RecordError {
    /// The reason without names of files, for who may not see them.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Io(_, e) => e.to_string(),
            e => e.to_string(),
        }
    }
}
