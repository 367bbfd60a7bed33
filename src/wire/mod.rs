//! Messages <-> bytes; the only module that names prost.

mod convert;
mod datagram;
mod framer;
mod thin;

pub use datagram::{Brief, Datagram, MAX_DATAGRAM};
pub use framer::{Framer, MAX_MESSAGE, encode, encode_padded};

use crate::units::OutOfRange;

/// Generated from proto/undertone/v1/stream.proto.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/undertone.v1.rs"));
}

/// Why bytes are not messages of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A length prefix beyond the limit.
    #[error("a message of {got} bytes, allowed at most 65536")]
    TooLarge {
        /// Length as claimed.
        got: u64,
    },
    /// A datagram beyond the limit.
    #[error("a datagram of {got} bytes, allowed at most 1150")]
    LargeDatagram {
        /// Its length.
        got: usize,
    },
    /// A length prefix that is not a varint of at most 5 bytes.
    #[error("the length of a message is not a varint of at most 5 bytes")]
    Length,
    /// Not protobuf, or not of this protocol.
    #[error("not a message of protocol undertone.v1: {0}")]
    Syntax(String),
    /// A required part is missing.
    #[error("message without {0}")]
    Missing(&'static str),
    /// A field outside its range.
    #[error(transparent)]
    Field(#[from] OutOfRange),
}

impl WireError {
    /// Name of the kind of error for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::LargeDatagram { .. } => "too_large",
            Self::Length => "length",
            Self::Syntax(_) => "syntax",
            Self::Missing(_) => "missing",
            Self::Field(_) => "field",
        }
    }
}
