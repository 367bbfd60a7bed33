//! Audio from and to files and pipes (symphonia and opus-decoder read what is compressed) and sound devices (cpal).

mod bytes;
mod compressed;
pub mod device;
mod file;
mod input;
mod kind;
mod mpeg;
mod opus;
mod output;
mod parts;
mod tags;
mod wav;
mod wav_format;

pub use bytes::{is_standard, is_stream, open};
pub use file::{Content, OutputFile, other_content, same};
pub use input::{AudioInput, unusable_remark};
pub use output::AudioOutput;
pub use wav::{WavError, WavReader};

use std::path::PathBuf;

/// Why audio could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    #[error(
        "{path}: {reason}; understood are WAV, FLAC, Ogg (Vorbis, Opus), MP3, AAC, M4A, AIFF and CAF, and raw samples with \
         --raw s16le:24000:1"
    )]
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
    /// An output that is not written to, so that nothing is lost.
    #[error("{path}: {reason}")]
    Output {
        /// File, or `-` for a pipe.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}
