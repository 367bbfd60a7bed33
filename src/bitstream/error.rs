//! Why bytes are not a stream of ours.

use super::MAGIC;
use crate::units::OutOfRange;

/// Why bytes are not a stream of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitstreamError {
    /// Not a container at all.
    #[error("not an undertone container: it starts with {got:02x?}, expected {MAGIC:02x?}")]
    Magic {
        /// First bytes.
        got: [u8; 4],
    },
    /// A container of another version.
    #[error("container version {got}, this program reads version 1")]
    Version {
        /// As found.
        got: u8,
    },
    /// A field outside its range.
    #[error("byte {offset}: {source}")]
    Field {
        /// Where in the stream.
        offset: u64,
        /// The value and what is allowed.
        source: OutOfRange,
    },
    /// A kind of payload that this program cannot decode.
    #[error("byte {offset}: {what} is not supported by this version of undertone")]
    Unsupported {
        /// Where in the stream.
        offset: u64,
        /// What it is.
        what: &'static str,
    },
    /// A check sum that does not fit: the bytes were damaged.
    #[error("byte {offset}: damaged record, its check sum is {got:04x}, computed {computed:04x}")]
    Crc {
        /// Where the record starts.
        offset: u64,
        /// As found.
        got: u16,
        /// Over the bytes found.
        computed: u16,
    },
    /// A record of no known kind.
    #[error("byte {offset}: unknown record {got:#04x}")]
    Tag {
        /// Where in the stream.
        offset: u64,
        /// As found.
        got: u8,
    },
    /// A bundle whose parts do not fit together.
    #[error("bundle at frame {first_frame}: {reason}")]
    Bundle {
        /// First frame of the bundle.
        first_frame: u64,
        /// The value and what is allowed.
        reason: String,
    },
}

impl BitstreamError {
    /// Name of the kind of error for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Magic { .. } => "magic",
            Self::Version { .. } => "version",
            Self::Field { .. } => "field",
            Self::Unsupported { .. } => "unsupported",
            Self::Crc { .. } => "crc",
            Self::Tag { .. } => "tag",
            Self::Bundle { .. } => "bundle",
        }
    }
}
