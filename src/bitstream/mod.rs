//! Bits on the wire and in files; normative text: docs/bitstream.md.

mod bundle;
mod coded;
mod crc;
mod error;
mod header;
mod index;
mod packed;
mod packet;
mod reader;
mod redundancy;
mod varint;
mod writer;

pub use bundle::{Bundle, MAX_PAYLOAD};
pub use coded::CodedBundle;
pub use crc::crc16;
pub use error::BitstreamError;
pub use header::{ContextRule, PayloadMode, StreamHeader};
pub use index::{END_INDEXED_LEN, IndexEntry, SeekIndex};
pub use packed::{Form, PackedBundle};
pub use packet::MessagePacket;
pub use reader::{ContainerReader, Item, ReaderOptions, Tail};
pub use redundancy::{COPY_STAGES, Redundancy, RedundancyWriter, read_redundancy};
pub use writer::ContainerWriter;

use crate::profile::Profile;

/// Entries of a codebook that 10 bits can name.
pub const MAX_CODE: u16 = (1 << Profile::BITS_PER_CODE) - 1;

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
    pub(super) const GRADED: u8 = 0x08;
    pub(super) const BACKGROUND: u8 = 0x09;
}
