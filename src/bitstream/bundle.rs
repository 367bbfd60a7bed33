//! A bundle: consecutive frames that travel together, and its packed payload.

use super::{BitstreamError, MAX_CODE, MAX_FRAMES};
use crate::units::{BITS_PER_CODE, StageCount};

/// Consecutive frames of codes, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames in the bundle, 1 to 50.
    pub frames: u8,
    /// Stages of every frame.
    pub stages: StageCount,
    /// Indices below 1024, `[frames][stages]`, row-major.
    pub codes: Vec<u16>,
}

impl Bundle {
    /// Errors: [`BitstreamError::Bundle`] unless 1 to 50 frames and as many codes below 1024 as frames times stages.
    pub fn new(first_frame: u64, frames: u8, stages: StageCount, codes: Vec<u16>) -> Result<Self, BitstreamError> {
        let error = |reason| BitstreamError::Bundle { first_frame, reason };
        if !(1..=MAX_FRAMES).contains(&frames) {
            return Err(error(format!("{frames} frames out of range, allowed 1 to {MAX_FRAMES}")));
        }
        let wanted = usize::from(frames) * stages.index();
        if codes.len() != wanted {
            return Err(error(format!("{} codes, expected {wanted}", codes.len())));
        }
        if let Some(code) = codes.iter().find(|&&c| c > MAX_CODE) {
            return Err(error(format!("code {code} out of range, allowed 0 to {MAX_CODE}")));
        }
        if first_frame.checked_add(u64::from(frames)).is_none() {
            return Err(error("frame number overflows 64 bits".to_owned()));
        }
        Ok(Self { first_frame, frames, stages, codes })
    }

    /// Bytes of a packed payload.
    pub fn payload_len(frames: u8, stages: StageCount) -> usize {
        (usize::from(frames) * stages.index() * BITS_PER_CODE as usize).div_ceil(8)
    }

    /// Appends the packed payload: frame after frame, stage after stage, 10 bits each, most significant bit first,
    /// padded with zero bits to a byte.
    pub fn pack_into(&self, out: &mut Vec<u8>) {
        pack(self.codes.iter().copied(), out);
    }

    /// Reads a packed payload.
    ///
    /// Errors: [`BitstreamError::Bundle`] for a payload of another length, or with padding that is not zero.
    pub fn unpack(first_frame: u64, frames: u8, stages: StageCount, payload: &[u8]) -> Result<Self, BitstreamError> {
        check_payload(first_frame, frames, stages, payload)?;
        let mut codes = Vec::with_capacity(usize::from(frames) * stages.index());
        codes.extend(Codes { payload, bit: 0, left: usize::from(frames) * stages.index() });
        Self::new(first_frame, frames, stages, codes)
    }

    /// Appends the payload of the first `to` stages of a payload of `from` stages. Nothing is decoded; a relay lowers
    /// a listener's rate this way.
    ///
    /// Errors: as [`Bundle::unpack`], and if `to` is more than `from`.
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
    if !(1..=MAX_FRAMES).contains(&frames) {
        return error(format!("{frames} frames out of range, allowed 1 to {MAX_FRAMES}"));
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

fn pack(codes: impl Iterator<Item = u16>, out: &mut Vec<u8>) {
    let (mut held, mut bits) = (0u32, 0u32);
    for code in codes {
        held = (held << BITS_PER_CODE) | u32::from(code & MAX_CODE);
        bits += BITS_PER_CODE;
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
