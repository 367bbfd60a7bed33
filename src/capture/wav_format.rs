//! How the samples of a WAV file are stored.

/// Tags of formats.
const PCM: u16 = 1;
const FLOAT: u16 = 3;
const A_LAW: u16 = 6;
const MU_LAW: u16 = 7;
const EXTENSIBLE: u16 = 0xfffe;

/// Formats that are met and not read, so that their names can be said.
const FOREIGN: &[(u16, &str)] = &[
    (0x02, "Microsoft ADPCM"),
    (0x11, "IMA ADPCM"),
    (0x31, "GSM 6.10"),
    (0x40, "G.721 ADPCM"),
    (0x50, "MPEG audio"),
    (0x55, "MP3"),
    (0xff, "AAC"),
    (0x160, "Windows Media Audio"),
    (0x161, "Windows Media Audio"),
    (0x2000, "AC-3"),
    (0x2001, "DTS"),
];

/// How one value is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Unsigned 8 bit.
    U8,
    /// Signed, in so many bytes: 2, 3 or 4. Fewer bits lie at the upper end of theirs.
    Int(usize),
    Float32,
    Float64,
    ALaw,
    MuLaw,
}

/// What a `fmt ` chunk says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) format: Format,
    pub(super) rate: u32,
    pub(super) channels: u16,
    /// Places of the channels; None if it does not say.
    pub(super) mask: Option<u32>,
}

impl Layout {
    ///
    /// # Errors
    /// The reason why these samples cannot be read.
    pub(super) fn parse(body: &[u8], big_endian: bool) -> Result<Self, String> {
        let short = |at: usize| {
            let pair = body.get(at..at + 2).map(|b| [b[0], b[1]]);
            pair.map(|b| if big_endian { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) })
        };
        let long = |at: usize| {
            let four = body.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
            four.map(|b| if big_endian { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
        };
        let (Some(tag), Some(channels), Some(rate), Some(align)) = (short(0), short(2), long(4), short(12)) else {
            return Err(format!("a WAV file whose fmt chunk has {} bytes, at least 14 are needed", body.len()));
        };
        let (tag, mask) = match (tag, short(24), long(20)) {
            (EXTENSIBLE, Some(sub), mask) => (sub, mask),
            (EXTENSIBLE, None, _) => return Err("a WAV file whose extensible fmt chunk is cut".to_owned()),
            _ => (tag, None),
        };
        let bits = short(14).unwrap_or(8);
        // The container is what counts: 24 bits may lie in 4 bytes.
        let bytes = match align.checked_div(channels) {
            Some(bytes) if bytes > 0 && align % channels == 0 && usize::from(bytes) * 8 >= usize::from(bits) => {
                usize::from(bytes)
            }
            _ => usize::from(bits.div_ceil(8)),
        };
        let format = match (tag, bytes) {
            (PCM, 1) => Format::U8,
            (PCM, 2..=4) => Format::Int(bytes),
            (FLOAT, 4) => Format::Float32,
            (FLOAT, 8) => Format::Float64,
            (A_LAW, 1) => Format::ALaw,
            (MU_LAW, 1) => Format::MuLaw,
            (PCM, _) => return Err(format!("a WAV file of {bits} bits a sample, read are 8, 16, 24 and 32")),
            (FLOAT, _) => return Err(format!("a WAV file of floats of {bits} bits, read are 32 and 64")),
            (tag, _) => {
                let name = FOREIGN.iter().find(|f| f.0 == tag).map_or_else(String::new, |f| format!(" ({})", f.1));
                return Err(format!(
                    "a WAV file with sound of format {tag:#06x}{name}, read are PCM, floats, A-law and mu-law"
                ));
            }
        };
        Ok(Self { format, rate, channels, mask })
    }

    /// Bytes of one sample of every channel.
    pub(super) fn align(&self) -> usize {
        self.format.bytes() * usize::from(self.channels.max(1))
    }

    /// Duration of so many bytes, in words.
    pub(super) fn seconds(&self, bytes: u64) -> String {
        let samples = bytes / self.align() as u64;
        format!("{:.1} s", samples as f64 / f64::from(self.rate.max(1)))
    }
}

impl Format {
    /// Bytes of one value.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::ALaw | Self::MuLaw => 1,
            Self::Int(bytes) => bytes,
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// One value; `b` has as many bytes as it takes.
    pub(super) fn value(self, b: &[u8], big_endian: bool) -> f32 {
        // The bytes from the lowest on.
        let mut low = [0u8; 8];
        for (i, &byte) in b.iter().take(8).enumerate() {
            low[if big_endian { b.len() - 1 - i } else { i }] = byte;
        }
        match self {
            Self::U8 => (f32::from(low[0]) - 128.0) / 128.0,
            Self::Int(bytes) => {
                let all = u32::from_le_bytes([low[0], low[1], low[2], low[3]]);
                // At the upper end of 32 bits, so that the sign is theirs; what f32 cannot hold is rounded.
                let shifted = all << (8 * (4 - bytes)) as u32;
                (f64::from(shifted as i32) / f64::from(1u32 << 31)) as f32
            }
            Self::Float32 => f32::from_le_bytes([low[0], low[1], low[2], low[3]]),
            Self::Float64 => f64::from_le_bytes(low) as f32,
            Self::ALaw => a_law(low[0]),
            Self::MuLaw => mu_law(low[0]),
        }
    }
}

/// ITU-T G.711, A-law: 13 bits at the upper end of 16.
fn a_law(byte: u8) -> f32 {
    let byte = byte ^ 0x55;
    let (exponent, mantissa) = (i32::from(byte >> 4 & 7), i32::from(byte & 15));
    let size = if exponent == 0 { (mantissa << 4) + 8 } else { ((mantissa << 4) + 0x108) << (exponent - 1) };
    let value = if byte & 0x80 == 0 { -size } else { size };
    value as f32 / 32_768.0
}

/// ITU-T G.711, mu-law: 14 bits at the upper end of 16.
fn mu_law(byte: u8) -> f32 {
    let byte = !byte;
    let (exponent, mantissa) = (i32::from(byte >> 4 & 7), i32::from(byte & 15));
    let size = (((mantissa << 3) + 0x84) << exponent) - 0x84;
    let value = if byte & 0x80 == 0 { size } else { -size };
    value as f32 / 32_768.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_format_have_their_place() {
        let value = |f: Format, b: &[u8]| f.value(b, false);
        assert_eq!([value(Format::U8, &[0]), value(Format::U8, &[192])], [-1.0, 0.5]);
        assert_eq!(value(Format::Int(2), &[0, 0xc0]), -0.5);
        assert_eq!(value(Format::Int(3), &[0, 0, 0x40]), 0.5);
        assert_eq!(value(Format::Int(4), &[0, 0, 0, 0x80]), -1.0);
        assert_eq!(Format::Int(3).value(&[0x40, 0, 0], true), 0.5);
        assert_eq!(Format::Float32.value(&0.25f32.to_be_bytes(), true), 0.25);
        assert_eq!(value(Format::Float64, &(-0.75f64).to_le_bytes()), -0.75);
        assert!(value(Format::Float64, &1e300f64.to_le_bytes()).is_infinite());
        // G.711, tables 1a and 2a: the largest values and those around zero.
        assert_eq!(
            [a_law(0xaa), a_law(0x2a), a_law(0xd5)],
            [32_256.0 / 32_768.0, -32_256.0 / 32_768.0, 8.0 / 32_768.0]
        );
        assert_eq!([mu_law(0x80), mu_law(0x00), mu_law(0xff)], [32_124.0 / 32_768.0, -32_124.0 / 32_768.0, 0.0]);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let head = |tag: u16, bits: u16, align: u16| {
            let mut h = Vec::new();
            h.extend(tag.to_le_bytes());
            h.extend(1u16.to_le_bytes());
            h.extend(24_000u32.to_le_bytes());
            h.extend(48_000u32.to_le_bytes());
            h.extend(align.to_le_bytes());
            h.extend(bits.to_le_bytes());
            h
        };
        let parse = |tag, bits, align| Layout::parse(&head(tag, bits, align), false);
        assert_eq!(parse(1, 24, 4).unwrap().format, Format::Int(4));
        assert_eq!(parse(1, 12, 2).unwrap().format, Format::Int(2));
        assert_eq!(parse(1, 16, 0).unwrap().format, Format::Int(2));
        // Found by fuzzing: more bytes than a count of their bits holds.
        assert!(parse(3, 0, 0x3130).unwrap_err().contains("floats of 0 bits"));
        for (tag, bits, align, word) in [
            (0x55, 0, 1, "MP3"),
            (2, 4, 256, "ADPCM"),
            (1, 64, 8, "64 bits"),
            (3, 16, 2, "16 bits"),
            (0x1234, 8, 1, "0x1234"),
        ] {
            let e = parse(tag, bits, align).unwrap_err();
            assert!(e.contains(word), "{e}");
        }
        assert!(Layout::parse(&[1, 0, 1], false).unwrap_err().contains("3 bytes"));
        assert!(Layout::parse(&head(0xfffe, 16, 2), false).unwrap_err().contains("cut"));
    }
}
