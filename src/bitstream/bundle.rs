//! A bundle: consecutive frames that travel together, and its packed payload.

use std::ops::Range;

use super::{ABSENT, BitstreamError, MAX_CODE};
use crate::profile::Profile;
use crate::units::StageCount;

const BITS_PER_CODE: u32 = Profile::BITS_PER_CODE;

/// Bits of a frame's stage count in a graded payload.
const BITS_PER_DEPTH: u32 = 5;

/// Largest payload of a bundle in bytes: 50 graded frames of 24 stages.
pub const MAX_PAYLOAD: usize = Bundle::graded_len(Profile::MAX_FRAMES_PER_BUNDLE, StageCount::MAX);

/// Consecutive frames of codes, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames in the bundle, 1 to 50.
    pub frames: u8,
    /// Stages of every frame; of a graded bundle, the most that a frame may have.
    pub stages: StageCount,
    /// Indices below 1024, `[frames][stages]`, row-major; [`ABSENT`] for stages that a frame does not have.
    pub codes: Vec<u16>,
}

impl Bundle {
    ///
    /// # Errors
    /// [`BitstreamError::Bundle`] unless 1 to 50 frames and as many codes below 1024 as frames times stages.
    pub fn new(first_frame: u64, frames: u8, stages: StageCount, codes: Vec<u16>) -> Result<Self, BitstreamError> {
        let error = |reason| BitstreamError::Bundle { first_frame, reason };
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
            return Err(error(format!("{frames} frames out of range, allowed 1 to 50")));
        }
        let wanted = usize::from(frames) * stages.index();
        if codes.len() != wanted {
            return Err(error(format!("{} codes, expected {wanted}", codes.len())));
        }
        if let Some(code) = codes.iter().find(|&&c| c > MAX_CODE && c != ABSENT) {
            return Err(error(format!("code {code} out of range, allowed 0 to {MAX_CODE}")));
        }
        let holes = codes.chunks_exact(stages.index()).any(|f| f[present(f).len()..].iter().any(|&c| c != ABSENT));
        if holes || codes.chunks_exact(stages.index()).any(|f| f[0] == ABSENT) {
            return Err(error("a frame lacks a stage before its last".to_owned()));
        }
        if first_frame.checked_add(u64::from(frames)).is_none() {
            return Err(error("frame number overflows 64 bits".to_owned()));
        }
        Ok(Self { first_frame, frames, stages, codes })
    }

    /// Codes of each frame, as many as it has stages.
    pub fn by_frame(&self) -> impl DoubleEndedIterator<Item = &[u16]> + ExactSizeIterator {
        self.codes.chunks_exact(self.stages.index()).map(present)
    }

    /// True if some frame has fewer stages than `stages`: it cannot be packed the plain way.
    pub fn is_graded(&self) -> bool {
        self.codes.contains(&ABSENT)
    }

    /// Longest graded payload in bytes.
    pub const fn graded_len(frames: u8, stages: StageCount) -> usize {
        let frame = stages.index() * BITS_PER_CODE as usize + BITS_PER_DEPTH as usize;
        (frames as usize * frame).div_ceil(8)
    }

    /// Appends the graded payload: before the codes of each frame their number in 5 bits.
    pub fn pack_graded_into(&self, out: &mut Vec<u8>) {
        out.extend(self.pack_layer(0..self.stages.index()));
    }

    /// Reads a graded payload.
    ///
    /// # Errors
    /// [`BitstreamError::Bundle`] for a stage count out of range, bits that are missing or left over, or padding that
    /// is not zero.
    pub fn unpack_graded(
        first_frame: u64,
        frames: u8,
        stages: StageCount,
        payload: &[u8],
    ) -> Result<Self, BitstreamError> {
        let codes = Self::unpack_layer(first_frame, frames, stages, 0..stages.index(), payload)?;
        Self::new(first_frame, frames, stages, codes)
    }

    /// The payload of some stages of a graded bundle: before the codes of each frame the number of all its stages in 5 bits.
    pub fn pack_layer(&self, stages: Range<usize>) -> Vec<u8> {
        let fields = self.by_frame().flat_map(|frame| {
            let depth = std::iter::once((frame.len() as u16, BITS_PER_DEPTH));
            let codes = frame.iter().take(stages.end).skip(stages.start);
            depth.chain(codes.map(|&c| (c & MAX_CODE, BITS_PER_CODE)))
        });
        let mut out = Vec::new();
        pack_fields(fields, &mut out);
        out
    }

    /// Most bytes of what [`Bundle::pack_layer`] makes of so many frames and stages.
    pub fn layer_len(frames: u8, stages: usize) -> usize {
        (usize::from(frames) * (BITS_PER_DEPTH as usize + stages * BITS_PER_CODE as usize)).div_ceil(8)
    }

    /// Reads what [`Bundle::pack_layer`] wrote of a bundle whose frames have at most `most` stages: `[frames][stages]`, with [`ABSENT`]
    /// for codes that a frame does not have.
    ///
    /// # Errors
    /// As [`Bundle::unpack_graded`].
    pub fn unpack_layer(
        first_frame: u64,
        frames: u8,
        most: StageCount,
        stages: Range<usize>,
        payload: &[u8],
    ) -> Result<Vec<u16>, BitstreamError> {
        let error = |reason: String| BitstreamError::Bundle { first_frame, reason };
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
            return Err(error(format!("{frames} frames out of range, allowed 1 to 50")));
        }
        let mut bits = Bits { payload, at: 0 };
        let short = || error(format!("payload of {} bytes ends too early", payload.len()));
        let mut codes = Vec::with_capacity(usize::from(frames) * stages.len());
        for _ in 0..frames {
            let depth = usize::from(bits.take(BITS_PER_DEPTH).ok_or_else(short)?);
            if !(1..=most.index()).contains(&depth) {
                return Err(error(format!("a frame of {depth} stages, allowed 1 to {most}")));
            }
            let here = depth.min(stages.end).saturating_sub(stages.start);
            for _ in 0..here {
                codes.push(bits.take(BITS_PER_CODE).ok_or_else(short)?);
            }
            codes.resize(codes.len() + stages.len() - here, ABSENT);
        }
        bits.finish().ok_or_else(|| error("bits are left over".to_owned()))?;
        Ok(codes)
    }

    /// Bytes of a packed payload.
    pub fn payload_len(frames: u8, stages: StageCount) -> usize {
        (usize::from(frames) * stages.index() * BITS_PER_CODE as usize).div_ceil(8)
    }

    /// Appends the packed payload: frame after frame, stage after stage, 10 bits each, most significant bit first,
    /// padded with zero bits to a byte.
    pub fn pack_into(&self, out: &mut Vec<u8>) {
        debug_assert!(!self.is_graded(), "a graded bundle has a graded payload");
        pack(self.codes.iter().copied(), out);
    }

    /// Reads a packed payload.
    ///
    /// # Errors
    /// [`BitstreamError::Bundle`] for a payload of another length, or with padding that is not zero.
    pub fn unpack(first_frame: u64, frames: u8, stages: StageCount, payload: &[u8]) -> Result<Self, BitstreamError> {
        check_payload(first_frame, frames, stages, payload)?;
        let mut codes = Vec::with_capacity(usize::from(frames) * stages.index());
        codes.extend(Codes { payload, bit: 0, left: usize::from(frames) * stages.index() });
        Self::new(first_frame, frames, stages, codes)
    }

    /// Appends the payload of the first `to` stages of a payload of `from` stages. Nothing is decoded; a relay lowers
    /// a listener's rate this way.
    ///
    /// # Errors
    /// As [`Bundle::unpack`], and if `to` is more than `from`.
    pub fn truncate_packed(
        frames: u8,
        from: StageCount,
        to: StageCount,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), BitstreamError> {
        check_payload(0, frames, from, payload)?;
        if to > from {
            let reason = format!("{to} stages wanted of {from}");
            return Err(BitstreamError::Bundle { first_frame: 0, reason });
        }
        let codes = Codes { payload, bit: 0, left: usize::from(frames) * from.index() };
        pack(codes.enumerate().filter(|(i, _)| i % from.index() < to.index()).map(|(_, c)| c), out);
        Ok(())
    }

    /// The same frames with the first `stages` stages, or as they are if they have no more.
    pub fn truncated(&self, stages: StageCount) -> Self {
        let kept = stages.min(self.stages);
        let codes = self.codes.chunks_exact(self.stages.index()).flat_map(|f| &f[..kept.index()]).copied().collect();
        Self { first_frame: self.first_frame, frames: self.frames, stages: kept, codes }
    }
}

fn check_payload(first_frame: u64, frames: u8, stages: StageCount, payload: &[u8]) -> Result<(), BitstreamError> {
    let error = |reason| Err(BitstreamError::Bundle { first_frame, reason });
    if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&frames) {
        return error(format!("{frames} frames out of range, allowed 1 to 50"));
    }
    let wanted = Bundle::payload_len(frames, stages);
    if payload.len() != wanted {
        return error(format!("payload of {} bytes, {frames} frames of {stages} stages take {wanted}", payload.len()));
    }
    let padding = wanted * 8 - usize::from(frames) * stages.index() * BITS_PER_CODE as usize;
    if payload.last().is_some_and(|&b| b & ((1u16 << padding) - 1) as u8 != 0) {
        return error("padding bits are not zero".to_owned());
    }
    Ok(())
}

/// Reads values bit by bit.
struct Bits<'a> {
    payload: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next value of `width` bits, at most 16; None past the end.
    fn take(&mut self, width: u32) -> Option<u16> {
        let end = self.at + width as usize;
        let value = (self.at..end).try_fold(0u16, |value, bit| {
            let byte = *self.payload.get(bit / 8)?;
            Some((value << 1) | u16::from((byte >> (7 - bit % 8)) & 1))
        })?;
        self.at = end;
        Some(value)
    }

    /// None unless fewer than eight bits are left, and all of them zero.
    fn finish(mut self) -> Option<()> {
        let rest = self.payload.len() * 8 - self.at;
        (rest < 8 && self.take(rest as u32) == Some(0)).then_some(())
    }
}

/// The codes that a frame has.
fn present(frame: &[u16]) -> &[u16] {
    &frame[..frame.iter().position(|&c| c == ABSENT).unwrap_or(frame.len())]
}

fn pack(codes: impl Iterator<Item = u16>, out: &mut Vec<u8>) {
    pack_fields(codes.map(|code| (code & MAX_CODE, BITS_PER_CODE)), out);
}

/// Writes values of so many bits each, most significant bit first, and fills the last byte with zeros.
fn pack_fields(fields: impl Iterator<Item = (u16, u32)>, out: &mut Vec<u8>) {
    let (mut held, mut bits) = (0u32, 0u32);
    for (value, width) in fields {
        held = (held << width) | u32::from(value);
        bits += width;
        while bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
        }
    }
    if bits > 0 {
        out.push((held << (8 - bits)) as u8);
    }
}

/// Codes of a payload of the right length.
struct Codes<'a> {
    payload: &'a [u8],
    bit: usize,
    left: usize,
}

impl Iterator for Codes<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        // Ten bits lie in two bytes when they start at an even bit, as they always do.
        let (byte, shift) = (self.bit / 8, self.bit % 8);
        let pair = u16::from_be_bytes([*self.payload.get(byte)?, *self.payload.get(byte + 1)?]);
        self.bit += BITS_PER_CODE as usize;
        Some((pair >> (6 - shift)) & MAX_CODE)
    }
}
