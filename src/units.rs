//! Quantities with their units: a value that exists is in range, and nothing later checks it again.

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;

/// Most stages a model or a stream may have.
pub const MAX_STAGES: u8 = 24;
/// Sample rate inside the codec.
pub const CODEC_RATE: SampleRate = SampleRate(24_000);

/// A value outside its range, with what was given and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {got} out of range, allowed {allowed}")]
pub struct OutOfRange {
    /// What the value is, in words.
    pub what: &'static str,
    /// The value as given.
    pub got: String,
    /// The allowed range, in words.
    pub allowed: &'static str,
}

/// Number of quantiser stages, 1 to 24; each is worth 0.5 kbit/s of packed codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageCount(u8);

impl StageCount {
    /// All stages.
    pub const MAX: Self = Self(MAX_STAGES);
    /// The first stage alone.
    pub const ONE: Self = Self(1);

    ///
    /// # Errors
    /// `OutOfRange` unless 1 to 24.
    pub fn new(stages: u8) -> Result<Self, OutOfRange> {
        if (1..=MAX_STAGES).contains(&stages) {
            Ok(Self(stages))
        } else {
            Err(OutOfRange { what: "stage count", got: stages.to_string(), allowed: "1 to 24" })
        }
    }

    /// The count as a plain number.
    pub fn value(self) -> u8 {
        self.0
    }

    /// The count as an index type.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for StageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bits a second that every message of a stream takes in its time, padding included, 500 to 12 000: its sizes then say nothing of what
/// is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageRate(u16);

impl MessageRate {
    /// Bits of a coded stage of a frame that are hardly ever fewer.
    const FEWEST_STAGE_BITS: u16 = 5;

    ///
    /// # Errors
    /// `OutOfRange` unless 500 to 12 000 bit/s.
    pub fn new(bps: u32) -> Result<Self, OutOfRange> {
        match u16::try_from(bps) {
            Ok(narrow) if (500..=12_000).contains(&narrow) => Ok(Self(narrow)),
            _ => {
                let what = "rate of messages of one size in bit/s";
                Err(OutOfRange { what, got: bps.to_string(), allowed: "500 to 12000" })
            }
        }
    }

    /// What so many stages take packed.
    pub fn of_stages(stages: StageCount) -> Self {
        Self(500 * u16::from(stages.value()))
    }

    /// Bits a second.
    pub fn bps(self) -> u32 {
        u32::from(self.0)
    }

    /// A share of it, 0 to 1, in whole steps of 500 bit/s that are not above it.
    #[must_use]
    pub fn share(self, share: f64) -> Self {
        let steps = (f64::from(self.0) * share.clamp(0.0, 1.0) / 500.0).floor() as u16;
        Self((500 * steps.max(1)).min(self.0))
    }

    /// Bytes of a message of so many frames of 20 ms.
    pub fn bytes(self, frames: u8) -> usize {
        usize::from(self.0) * usize::from(frames) / 400
    }

    /// More stages than this are not sent at this rate, however little they take.
    pub fn most_stages(self) -> StageCount {
        let most = (self.0 / 50).div_ceil(Self::FEWEST_STAGE_BITS).clamp(1, u16::from(MAX_STAGES));
        StageCount(most as u8)
    }
}

/// Samples of one channel in a second, 8 000 to 192 000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SampleRate(u32);

impl SampleRate {
    ///
    /// # Errors
    /// `OutOfRange` unless 8 000 to 192 000 Hz.
    pub fn new(hz: u32) -> Result<Self, OutOfRange> {
        if (8_000..=192_000).contains(&hz) {
            Ok(Self(hz))
        } else {
            Err(OutOfRange { what: "sample rate in Hz", got: hz.to_string(), allowed: "8000 to 192000" })
        }
    }

    /// The rate in hertz.
    pub const fn hz(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SampleRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.0)
    }
}

/// Format of raw interleaved samples on a pipe or socket, written `s16le:24000:1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PcmFormat {
    /// How one sample is stored.
    pub encoding: PcmEncoding,
    /// Samples of one channel in a second.
    pub rate: SampleRate,
    /// Interleaved channels, 1 to 32.
    pub channels: u16,
}

/// How one raw sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PcmEncoding {
    /// Signed 16 bit, little endian.
    S16Le,
    /// 32-bit float, little endian, full scale 1.
    F32Le,
}

impl PcmFormat {
    /// What the codec itself works on: 24 kHz mono, signed 16 bit.
    pub const CODEC: Self = Self { encoding: PcmEncoding::S16Le, rate: CODEC_RATE, channels: 1 };

    /// Bytes of one sample of every channel.
    pub fn bytes_per_sample(self) -> usize {
        usize::from(self.channels)
            * match self.encoding {
                PcmEncoding::S16Le => 2,
                PcmEncoding::F32Le => 4,
            }
    }
}

impl FromStr for PcmFormat {
    type Err = OutOfRange;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error = || OutOfRange {
            what: "raw format",
            got: s.to_owned(),
            allowed: "ENCODING:HZ:CHANNELS with s16le or f32le, 8000 to 192000, 1 to 32, as in s16le:24000:1",
        };
        let mut parts = s.split(':');
        let (Some(encoding), Some(rate), Some(channels), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        let encoding = match encoding {
            "s16le" => PcmEncoding::S16Le,
            "f32le" => PcmEncoding::F32Le,
            _ => return Err(error()),
        };
        let rate = rate.parse().ok().and_then(|hz| SampleRate::new(hz).ok()).ok_or_else(error)?;
        let channels = channels.parse().ok().filter(|c| (1..=32).contains(c)).ok_or_else(error)?;
        Ok(Self { encoding, rate, channels })
    }
}

impl fmt::Display for PcmFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoding = match self.encoding {
            PcmEncoding::S16Le => "s16le",
            PcmEncoding::F32Le => "f32le",
        };
        write!(f, "{encoding}:{}:{}", self.rate.0, self.channels)
    }
}

/// First 8 bytes of the SHA-256 of a model's manifest: the name of the codes' meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub [u8; 8]);

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HEXLOWER.encode_display(&self.0).fmt(f)
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_formats_read_back_as_written() {
        for s in ["s16le:24000:1", "f32le:44100:3", "s16le:8000:2"] {
            assert_eq!(s.parse::<PcmFormat>().unwrap().to_string(), s);
        }
        for bad in [
            "",
            "s16le",
            "s16le:24000",
            "s16le:24000:1:1",
            "u8:24000:1",
            "s16le:7999:1",
            "s16le:24000:0",
            "s16le:24000:33",
        ] {
            let e = bad.parse::<PcmFormat>().unwrap_err().to_string();
            assert!(e.contains("8000 to 192000"), "{e}");
        }
    }
}
