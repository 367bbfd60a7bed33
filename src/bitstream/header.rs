//! The stream header: everything that later bytes depend on.

use super::crc::crc16;
use super::{BitstreamError, MAGIC};
use crate::profile::Profile;
use crate::units::{CODEC_RATE, ModelId, OutOfRange, StageCount};

/// How the indices of a bundle are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadMode {
    /// 10 bits an index.
    Packed,
    /// Range-coded by a token model.
    Coded,
}

/// What a coded bundle may depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextRule {
    /// Nothing before it: it decodes alone.
    Bundle,
    /// All bundles before it.
    Continuous,
}

/// Parameters of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHeader {
    /// Which codes these are.
    pub model_id: ModelId,
    /// Samples of the codec in a second.
    pub sample_rate_hz: u32,
    /// Samples of a frame.
    pub frame_samples: u16,
    /// Stages of a bundle unless it says otherwise.
    pub stages: StageCount,
    /// Frames of a bundle unless it says otherwise.
    pub frames_per_bundle: u8,
    /// How indices are written.
    pub payload_mode: PayloadMode,
    /// What a coded bundle may depend on.
    pub context: ContextRule,
    /// Frames have stage counts of their own; only in coded streams.
    pub graded: bool,
    /// A packed stream may hold records of live streams: bundles whose frames have stage counts of their own.
    pub live: bool,
    /// The token model of coded payloads.
    pub token_model_id: Option<[u8; 8]>,
    /// Time of the first sample in microseconds since 1970, if known.
    pub start_time_us: Option<u64>,
}

const FLAG_START: u8 = 1;
const FLAG_TOKEN: u8 = 2;
const MODE_CODED: u8 = 1;
const MODE_CONTINUOUS: u8 = 2;
const MODE_GRADED: u8 = 4;
const MODE_LIVE: u8 = 8;
/// Bytes before the optional fields.
const FIXED: usize = 21;
/// Longest header: both optional fields and the check sum.
pub(super) const MAX_HEADER: usize = FIXED + 16 + 2;

impl StreamHeader {
    /// A stream of packed codes of this model.
    pub fn packed(profile: &Profile, stages: StageCount, frames_per_bundle: u8) -> Self {
        Self {
            model_id: profile.model_id,
            sample_rate_hz: CODEC_RATE.hz(),
            frame_samples: u16::try_from(profile.frame_samples).unwrap_or(u16::MAX),
            stages,
            frames_per_bundle,
            payload_mode: PayloadMode::Packed,
            context: ContextRule::Bundle,
            graded: false,
            live: false,
            token_model_id: None,
            start_time_us: None,
        }
    }

    /// Appends the header: docs/bitstream.md, section 2.
    pub fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        out.push(flag(self.start_time_us.is_some(), FLAG_START) | flag(self.token_model_id.is_some(), FLAG_TOKEN));
        out.extend_from_slice(&self.model_id.0);
        out.extend_from_slice(&self.sample_rate_hz.to_le_bytes()[..3]);
        out.extend_from_slice(&self.frame_samples.to_le_bytes());
        out.push(self.stages.value());
        out.push(self.frames_per_bundle);
        out.push(
            flag(self.payload_mode == PayloadMode::Coded, MODE_CODED)
                | flag(self.context == ContextRule::Continuous, MODE_CONTINUOUS)
                | flag(self.graded, MODE_GRADED)
                | flag(self.live, MODE_LIVE),
        );
        if let Some(time) = self.start_time_us {
            out.extend_from_slice(&time.to_le_bytes());
        }
        if let Some(id) = self.token_model_id {
            out.extend_from_slice(&id);
        }
        let crc = crc16(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header from the front of `bytes`; None if it is not complete yet. Also gives its length.
    ///
    /// # Errors
    /// [`BitstreamError`] for anything that cannot become a header.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, BitstreamError> {
        if let Some(&got) = bytes.first_chunk::<4>() {
            if got[..3] != MAGIC[..3] {
                return Err(BitstreamError::Magic { got });
            }
            if got[3] != MAGIC[3] {
                return Err(BitstreamError::Version { got: got[3] });
            }
        } else {
            let mut got = [0; 4];
            got[..bytes.len()].copy_from_slice(bytes);
            return if MAGIC.starts_with(bytes) { Ok(None) } else { Err(BitstreamError::Magic { got }) };
        }
        let Some(&flags) = bytes.get(4) else { return Ok(None) };
        if flags & !(FLAG_START | FLAG_TOKEN) != 0 {
            return Err(field(4, "header flags", flags, "0 to 3"));
        }
        let option = |bit: u8| if flags & bit != 0 { 8 } else { 0 };
        let length = FIXED + option(FLAG_START) + option(FLAG_TOKEN) + 2;
        let Some(whole) = bytes.get(..length) else { return Ok(None) };
        let (body, sum) = whole.split_at(length - 2);
        let (got, computed) = (u16::from_le_bytes([sum[0], sum[1]]), crc16(body));
        if got != computed {
            return Err(BitstreamError::Crc { offset: 0, got, computed });
        }
        let eight = |at: usize| -> [u8; 8] { std::array::from_fn(|i| body[at + i]) };
        let rate = u32::from_le_bytes([body[13], body[14], body[15], 0]);
        if rate != CODEC_RATE.hz() {
            return Err(field(13, "sample rate in Hz", rate, "24000"));
        }
        let frame_samples = u16::from_le_bytes([body[16], body[17]]);
        if usize::from(frame_samples) != Profile::FRAME_SAMPLES {
            return Err(field(16, "samples of a frame", frame_samples, "480"));
        }
        let stages = StageCount::new(body[18]).map_err(|source| BitstreamError::Field { offset: 18, source })?;
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&body[19]) {
            return Err(field(19, "frames of a bundle", body[19], "1 to 50"));
        }
        let mode = body[20];
        let (coded, graded, live) = (mode & MODE_CODED != 0, mode & MODE_GRADED != 0, mode & MODE_LIVE != 0);
        let known = mode & !(MODE_CODED | MODE_CONTINUOUS | MODE_GRADED | MODE_LIVE) == 0;
        if !known || (graded && !coded) || (live && coded) {
            return Err(field(20, "payload mode", mode, "0 to 3, 5, 7, 8, 10"));
        }
        let header = Self {
            model_id: ModelId(eight(5)),
            sample_rate_hz: rate,
            frame_samples,
            stages,
            frames_per_bundle: body[19],
            payload_mode: if coded { PayloadMode::Coded } else { PayloadMode::Packed },
            context: if mode & MODE_CONTINUOUS != 0 { ContextRule::Continuous } else { ContextRule::Bundle },
            graded,
            live,
            start_time_us: (flags & FLAG_START != 0).then(|| u64::from_le_bytes(eight(FIXED))),
            token_model_id: (flags & FLAG_TOKEN != 0).then(|| eight(FIXED + option(FLAG_START))),
        };
        Ok(Some((header, length)))
    }
}

fn field(offset: u64, what: &'static str, got: impl ToString, allowed: &'static str) -> BitstreamError {
    BitstreamError::Field { offset, source: OutOfRange { what, got: got.to_string(), allowed } }
}
