//! Audio from and to files and pipes (symphonia reads, hound writes) and sound devices (cpal).

pub mod device;
mod input;
mod output;

pub use input::AudioInput;
pub use output::AudioOutput;

use std::path::PathBuf;

/// Why audio could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file or pipe failed.
    #[error("{path}: {source}")]
    Io {
        /// File, or `-` for a pipe.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not a recording that is understood.
    #[error("{path}: {reason}; understood are WAV, FLAC, Ogg Vorbis and MP3, and raw samples with --raw s16le:24000:1")]
    Format {
        /// File, or `-` for a pipe.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// A sample rate or number of channels that cannot be used.
    #[error("{path}: {reason}")]
    Unusable {
        /// File, or `-` for a pipe.
        path: PathBuf,
        /// The value and the allowed range.
        reason: String,
    },
}
