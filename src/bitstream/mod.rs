//! Bits on the wire and in files; normative text: docs/bitstream.md.

mod bundle;
mod coded;
mod crc;
mod header;
mod index;
mod reader;
mod redundancy;
mod varint;
mod writer;

pub use bundle::Bundle;
pub use coded::CodedBundle;
pub use crc::crc16;
pub use header::{ContextRule, PayloadMode, StreamHeader};
pub use index::{END_INDEXED_LEN, IndexEntry, SeekIndex};
pub use reader::{ContainerReader, Item, Limits, Tail};
pub use redundancy::{COPY_STAGES, Redundancy, RedundancyWriter, read_redundancy};
pub use writer::ContainerWriter;

use crate::units::OutOfRange;

/// Entries of a codebook that 10 bits can name.
pub const MAX_CODE: u16 = 1023;

/// Most frames in a bundle: one second.
pub const MAX_FRAMES: u8 = 50;

/// Largest payload of a bundle in bytes: 50 graded frames of 24 stages.
pub const MAX_PAYLOAD: usize = 1532;

/// In place of a code: the frame has fewer stages than its bundle. Only after the last code of a frame.
pub const ABSENT: u16 = u16::MAX;

/// First bytes of a container; the last one is the version.
pub const MAGIC: [u8; 4] = *b"UTN\x01";

/// Tags of the records of a container.
mod tag {
    pub(super) const BUNDLE: u8 = 0x01;
    pub(super) const BUNDLE_AT: u8 = 0x02;
    pub(super) const END: u8 = 0x03;
    pub(super) const INDEX: u8 = 0x04;
    pub(super) const END_INDEXED: u8 = 0x05;
    pub(super) const CODED: u8 = 0x06;
    pub(super) const CODED_AT: u8 = 0x07;
}

/// Why bytes are not a stream of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
