//! Datagrams of QUIC: a bundle with coarse copies of the frames before it, or a report.

use prost::Message as _;

use super::{WireError, convert, proto, thin};
use crate::bitstream::{Bundle, Form};
use crate::jitter::Report;
use crate::session::{Message, PackedBundle, Thin};
use crate::units::StageCount;

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
    /// Another description of silence, whose numbers follow from what came before.
    Brief(Brief),
    /// What the other end has received.
    Report(Report),
}

/// A description of silence of five frames, of whose numbers only the low bits are said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    /// Low bits of the number of the bundle.
    pub sequence: u8,
    /// Low bits of its first frame.
    pub first_frame: u16,
    /// Indices of one frame.
    pub payload: Vec<u8>,
}

/// First numbers of datagrams that are no bundle with a number; that of a bundle is this much more than its own.
const REPORT: u64 = 0;
const BRIEF: u64 = 1;
const BUNDLES: u64 = 2;

impl Brief {
    /// Frames of the bundle.
    pub const FRAMES: u8 = 5;

    /// The brief form of a bundle; None if it has none.
    pub fn of(sequence: u64, bundle: &PackedBundle) -> Option<Self> {
        let fits = bundle.is_background() && bundle.frames == Self::FRAMES;
        let (sequence, first_frame) = (sequence as u8, bundle.first_frame as u16);
        (fits && stages_of(&bundle.payload).is_some()).then(|| Self {
            sequence,
            first_frame,
            payload: bundle.payload.clone(),
        })
    }

    /// The bundle with its number, whose numbers are those next to a bundle's that came before it.
    ///
    /// # Errors
    /// [`WireError`] for a payload that no peer writes.
    pub fn whole(self, (sequence, first_frame): (u64, u64)) -> Result<(u64, PackedBundle), WireError> {
        let near = |said: i64, bits: u32, known: u64| {
            let (half, span) = (1i64 << (bits - 1), 1i64 << bits);
            let ahead = (said - (known % span as u64) as i64 + half).rem_euclid(span) - half;
            known.checked_add_signed(ahead).unwrap_or(said as u64)
        };
        let stages = stages_of(&self.payload).ok_or(WireError::Missing("codes of one frame"))?;
        let first_frame = near(i64::from(self.first_frame), 16, first_frame);
        let (frames, form, payload) = (Self::FRAMES, Form::Background, self.payload);
        Ok((near(i64::from(self.sequence), 8, sequence), PackedBundle { first_frame, frames, stages, form, payload }))
    }
}

/// Stages of one frame of so many bytes, at most four.
fn stages_of(payload: &[u8]) -> Option<StageCount> {
    (1..=4).filter_map(|n| StageCount::new(n).ok()).find(|&n| Bundle::payload_len(1, n) == payload.len())
}

impl Datagram {
    /// The datagram of a bundle; None for any other message.
    pub fn bundle(message: Message, copies: Vec<u8>) -> Option<Self> {
        let (sequence, first_frame, thin) = Thin::alone(message)?;
        Some(Self::Bundle { sequence, first_frame, thin, copies })
    }

    /// The bytes to send: 0 and a report, 1 and a brief bundle, or the number of the bundle and 2, its first frame, its thin form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Bundle { sequence, first_frame, thin, copies } => {
                prost::encoding::encode_varint(sequence.saturating_add(BUNDLES), &mut out);
                prost::encoding::encode_varint(*first_frame, &mut out);
                thin::encode_with(thin, copies, &mut out);
            }
            Self::Brief(Brief { sequence, first_frame, payload }) => {
                out.extend([BRIEF as u8, *sequence]);
                out.extend(first_frame.to_be_bytes());
                out.extend(payload);
            }
            Self::Report(report) => {
                out.push(REPORT as u8);
                out.extend(convert::report_to_proto(report).encode_to_vec());
            }
        }
        out
    }

    /// The bytes of a bundle in exactly so many; None if it does not fit, or is silence or a report.
    pub fn encode_padded(&self, bytes: usize) -> Option<Vec<u8>> {
        let plain = self.encode();
        let Self::Bundle { sequence, first_frame, thin, copies } = self else { return None };
        if plain.len() == bytes {
            return Some(plain);
        }
        let mut out = Vec::with_capacity(bytes);
        prost::encoding::encode_varint(sequence.saturating_add(BUNDLES), &mut out);
        prost::encoding::encode_varint(*first_frame, &mut out);
        // No copies, as long as something follows.
        let copies = if copies.is_empty() { &[0] } else { copies.as_slice() };
        thin::encode_with(thin, copies, &mut out);
        if out.len() > bytes || thin.background {
            return None;
        }
        out.resize(bytes, 0);
        Some(out)
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`WireError`] for what no peer writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_DATAGRAM {
            return Err(WireError::LargeDatagram { got: bytes.len() });
        }
        let mut rest = bytes;
        let mut varint = || prost::encoding::decode_varint(&mut rest).map_err(|e| WireError::Syntax(e.to_string()));
        let number = varint()?;
        let Some(sequence) = number.checked_sub(BUNDLES) else {
            if number == BRIEF {
                let short = || WireError::Missing("the rest of a brief bundle");
                let ([sequence, high, low], payload) = rest.split_first_chunk::<3>().ok_or_else(short)?;
                stages_of(payload).ok_or_else(short)?;
                let (sequence, first_frame) = (*sequence, u16::from_be_bytes([*high, *low]));
                return Ok(Self::Brief(Brief { sequence, first_frame, payload: payload.to_vec() }));
            }
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

    #[test]
    fn brief_silence_is_what_it_was_near_what_came_before() {
        for known in [(0, 0), (300, 40_000), (1 << 40, 65_535), (u64::MAX - 9, u64::MAX - 99)] {
            for (ahead, frames) in [(0i64, 0i64), (1, 20), (127, 32_000), (-3, -60)] {
                let Some((sequence, first)) = known.0.checked_add_signed(ahead).zip(known.1.checked_add_signed(frames))
                else {
                    continue;
                };
                let bundle = PackedBundle::background(first, 5, &[1, 2, 3, 4]).unwrap();
                let bytes = Datagram::Brief(Brief::of(sequence, &bundle).unwrap()).encode();
                assert_eq!(bytes.len(), 9);
                let Datagram::Brief(brief) = Datagram::decode(&bytes).unwrap() else { panic!("not brief") };
                assert_eq!(brief.whole(known).unwrap(), (sequence, bundle));
            }
        }
        assert_eq!(Brief::of(0, &PackedBundle::background(0, 4, &[1]).unwrap()), None);
        assert!(Datagram::decode(&[1, 2, 3]).is_err() && Datagram::decode(&[1, 2, 3, 4, 5]).is_err());
    }

    #[test]
    fn datagrams_of_one_size_are_what_they_were() {
        let codes = (0..30).collect();
        let bundle = PackedBundle::pack(&Bundle::new(9, 5, StageCount::new(6).unwrap(), codes).unwrap());
        for copies in [Vec::new(), vec![1, 1, 0, 0]] {
            let message = Message::Bundle { sequence: 300, bundle: bundle.clone() };
            let datagram = Datagram::bundle(message, copies.clone()).unwrap();
            let plain = datagram.encode();
            let mut fits = 0;
            for bytes in 0..200 {
                let Some(padded) = datagram.encode_padded(bytes) else { continue };
                assert_eq!(padded.len(), bytes);
                let Datagram::Bundle { sequence, thin, copies: behind, .. } = Datagram::decode(&padded).unwrap() else {
                    panic!("not a bundle")
                };
                let Message::Bundle { bundle: got, .. } =
                    thin.whole(sequence, 9, false, crate::session::Wire::ALL).unwrap()
                else {
                    panic!("not packed")
                };
                assert_eq!((sequence, got), (300, bundle.clone()));
                let read = |bytes: &[u8]| match bytes {
                    [] => None,
                    bytes => crate::bitstream::read_redundancy(9, bytes).unwrap(),
                };
                assert_eq!(read(&behind), read(&copies));
                fits += 1;
            }
            assert!(fits >= 200 - plain.len() - 4, "{fits}");
            assert_eq!(datagram.encode_padded(plain.len() - 1), None);
        }
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
