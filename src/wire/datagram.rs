//! Datagrams of QUIC: a bundle with coarse copies of the frames before it, or a report.

use prost::Message as _;

use super::{WireError, convert, proto, thin};
use crate::jitter::Report;
use crate::session::{Message, Thin};

/// Largest datagram in bytes: one packet of QUIC carries it, of 1200 bytes with the longest head.
pub const MAX_DATAGRAM: usize = 1150;

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// Frames of codes; [`Thin::whole`] checks them.
    Bundle {
        /// Number of the bundle in its connection.
        sequence: u64,
        /// Its first frame.
        first_frame: u64,
        /// The rest.
        thin: Thin,
        /// Copies of frames before it; [`crate::bitstream::read_redundancy`] reads them.
        copies: Vec<u8>,
    },
    /// What the other end has received.
    Report(Report),
}

impl Datagram {
    /// The datagram of a bundle; None for any other message.
    pub fn bundle(message: Message, copies: Vec<u8>) -> Option<Self> {
        let (sequence, first_frame, thin) = Thin::alone(message)?;
        Some(Self::Bundle { sequence, first_frame, thin, copies })
    }

    /// The bytes to send: 0 and a report, or the number after that of the bundle, its first frame, its thin form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Bundle { sequence, first_frame, thin, copies } => {
                prost::encoding::encode_varint(sequence.saturating_add(1), &mut out);
                prost::encoding::encode_varint(*first_frame, &mut out);
                thin::encode_with(thin, copies, &mut out);
            }
            Self::Report(report) => {
                out.push(0);
                out.extend(convert::report_to_proto(report).encode_to_vec());
            }
        }
        out
    }

    /// Reads a datagram.
    ///
    /// Errors: [`WireError`] for what no peer writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(WireError::LargeDatagram { got: bytes.len() });
        }
        let mut rest = bytes;
        let mut varint = || prost::encoding::decode_varint(&mut rest).map_err(|e| WireError::Syntax(e.to_string()));
        let Some(sequence) = varint()?.checked_sub(1) else {
            let report = proto::Report::decode(rest).map_err(|e| WireError::Syntax(e.to_string()))?;
            return Ok(Self::Report(convert::report(&report)));
        };
        let first_frame = varint()?;
        if !thin::is_thin(rest) {
            return Err(WireError::Missing("a bundle"));
        }
        let (thin, copies) = thin::decode_with(rest)?;
        Ok(Self::Bundle { sequence, first_frame, thin, copies: copies.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use super::*;
    use crate::bitstream::Bundle;
    use crate::session::PackedBundle;
    use crate::units::StageCount;

    #[test]
    fn datagrams_come_back_and_large_ones_are_refused() {
        let codes = (0..30).collect();
        let bundle = PackedBundle::pack(&Bundle::new(9, 5, StageCount::new(6).unwrap(), codes).unwrap());
        let full = |sequence, copies| {
            let message = Message::Bundle { sequence, bundle: bundle.clone() };
            Datagram::bundle(message, copies).unwrap()
        };
        let report = Report { expected: 9, received: 8, jitter: Duration::from_millis(3), ..Report::default() };
        for d in [
            full(0, Vec::new()),
            full(1 << 60, vec![1, 2, 3]),
            Datagram::Report(report),
            Datagram::Report(Report::default()),
        ] {
            assert_eq!(Datagram::decode(&d.encode()).unwrap(), d);
        }
        let large = full(0, vec![0; MAX_DATAGRAM]);
        let e = Datagram::decode(&large.encode()).unwrap_err();
        assert!(e.to_string().contains("at most 1150"), "{e}");
        assert!(Datagram::decode(&[]).is_err());
        // After an hour of bundles of 100 ms: number, frame and head.
        let bundle = PackedBundle { first_frame: 180_000, ..bundle };
        let late = Datagram::bundle(Message::Bundle { sequence: 36_000, bundle: bundle.clone() }, Vec::new());
        assert_eq!(late.unwrap().encode().len(), bundle.payload.len() + 7);
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_errors_or_datagrams(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            if let Ok(datagram) = Datagram::decode(&bytes) {
                prop_assert_eq!(Datagram::decode(&datagram.encode()).unwrap(), datagram);
            }
        }
    }
}
