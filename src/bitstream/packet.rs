//! A packet of a voice message: whatever a radio or a mesh carries at once, decodable alone (docs/bitstream.md, section 8).

use super::varint::{self, Found};
use super::{BitstreamError, Bundle, crc16};
use crate::profile::Profile;
use crate::units::{OutOfRange, StageCount};

/// First byte of a packet, and the version in the high half of the second.
const MARK: u8 = 0x75;
const VERSION: u8 = 1;

/// Flags in the low half of the second byte.
const CODED: u8 = 1;
const LAST: u8 = 2;

/// Mark, flags, tag, message, frames, stages, and the check sum.
const FIXED: usize = 10;

/// Some frames of a voice message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessagePacket {
    /// The payload is graded and range-coded, and its context begins with it; otherwise it is packed.
    pub coded: bool,
    /// No frames follow.
    pub last: bool,
    /// First two bytes of the model's id, and in a coded packet those of the token model's added bit by bit.
    pub tag: [u8; 2],
    /// Tells messages apart.
    pub message: u16,
    /// Number of the first frame in the message.
    pub first_frame: u64,
    /// Frames, 1 to 50.
    pub frames: u8,
    /// Stages of each frame; in a coded packet the most that one may have.
    pub stages: StageCount,
    /// The indices.
    pub payload: Vec<u8>,
}

impl MessagePacket {
    /// Bytes of a packet besides its payload.
    pub fn head_len(first_frame: u64) -> usize {
        let mut number = Vec::new();
        varint::put(first_frame, &mut number);
        FIXED + number.len()
    }

    /// The bytes of the packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::head_len(self.first_frame) + self.payload.len());
        let flags = if self.coded { CODED } else { 0 } | if self.last { LAST } else { 0 };
        out.extend([MARK, VERSION << 4 | flags]);
        out.extend(self.tag);
        out.extend(self.message.to_le_bytes());
        varint::put(self.first_frame, &mut out);
        out.extend([self.frames, self.stages.value()]);
        out.extend(&self.payload);
        out.extend(crc16(&out).to_le_bytes());
        out
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// [`BitstreamError`] for anything that [`MessagePacket::encode`] would not write. What a coded payload means is the entropy
    /// coder's business.
    pub fn parse(bytes: &[u8]) -> Result<Self, BitstreamError> {
        let field = |what, got: String, allowed| {
            let source = OutOfRange { what, got, allowed };
            BitstreamError::Field { offset: 0, source }
        };
        let short = || field("length of a packet in bytes", bytes.len().to_string(), "what its head says");
        let (body, sum) = bytes.split_last_chunk::<2>().ok_or_else(short)?;
        let (&[mark, second, tag0, tag1, message0, message1], rest) =
            body.split_first_chunk::<6>().ok_or_else(short)?;
        if mark != MARK {
            return Err(field("first byte", format!("{mark:#04x}"), "0x75, with which packets of messages begin"));
        }
        let (got, computed) = (u16::from_le_bytes(*sum), crc16(body));
        if got != computed {
            return Err(BitstreamError::Crc { offset: 0, got, computed });
        }
        if second >> 4 != VERSION {
            return Err(BitstreamError::Version { got: second >> 4 });
        }
        if second & 0xF & !(CODED | LAST) != 0 {
            return Err(field("flags of a packet", (second & 0xF).to_string(), "0 to 3"));
        }
        let Found::Value(first_frame, used) = varint::get(rest) else { return Err(short()) };
        let [frames, stages, payload @ ..] = &rest[used..] else { return Err(short()) };
        let (frames, coded) = (*frames, second & CODED != 0);
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
            return Err(field("frames of a packet", frames.to_string(), "1 to 50"));
        }
        let stages = StageCount::new(*stages).map_err(|source| BitstreamError::Field { offset: 0, source })?;
        if first_frame.checked_add(u64::from(frames)).is_none() {
            return Err(field("first frame", first_frame.to_string(), "less than 2^64 - 50"));
        }
        let fits = match coded {
            true => payload.len() <= Bundle::graded_len(frames, stages),
            false => payload.len() == Bundle::payload_len(frames, stages),
        };
        if !fits {
            return Err(field("payload in bytes", payload.len().to_string(), "what its frames and stages take"));
        }
        Ok(Self {
            coded,
            last: second & LAST != 0,
            tag: [tag0, tag1],
            message: u16::from_le_bytes([message0, message1]),
            first_frame,
            frames,
            stages,
            payload: payload.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> MessagePacket {
        let stages = StageCount::new(8).unwrap();
        let (tag, message, payload) = ([1, 2], 0xBEEF, vec![0; 50]);
        MessagePacket { coded: false, last: true, tag, message, first_frame: 300, frames: 5, stages, payload }
    }

    #[test]
    fn packets_read_back_and_damage_is_noticed() {
        let coded = MessagePacket { coded: true, last: false, payload: vec![7; 31], ..packet() };
        for packet in [packet(), coded] {
            let bytes = packet.encode();
            assert_eq!(bytes.len(), MessagePacket::head_len(300) + packet.payload.len());
            assert_eq!(MessagePacket::parse(&bytes).unwrap(), packet);
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 0x10;
                assert!(MessagePacket::parse(&bad).is_err(), "byte {at}");
                assert!(MessagePacket::parse(&bytes[..at]).is_err(), "cut at {at}");
            }
        }
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        for bad in [
            MessagePacket { frames: 51, ..packet() },
            MessagePacket { frames: 0, ..packet() },
            MessagePacket { first_frame: u64::MAX, ..packet() },
            MessagePacket { payload: vec![0; 51], ..packet() },
            MessagePacket { coded: true, payload: vec![0; 55], ..packet() },
        ] {
            assert!(MessagePacket::parse(&bad.encode()).is_err(), "{bad:?}");
        }
    }
}
