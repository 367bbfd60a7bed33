//! The WAV front: RIFF, RIFX, RF64 and BW64 as they are met in the wild, read forwards only.
//!
//! Lengths in WAV headers are often wrong: a program that wrote to a pipe or was killed could not go back to fill them in, and
//! beyond 4 GiB they do not fit. The sound is where its chunk begins, up to where the file or the chunk ends.
//! Sources: Microsoft's "Multimedia Programming Interface and Data Specifications 1.0" (1991) and "Multiple Channel Audio Data and
//! WAVE Files" (2007), EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64), ITU-T G.711.

use std::io::{self, Read};

use super::bytes::Bytes;
use super::wav_format::Layout;
use crate::dsp::{Downmix, Intake, MAX_PLACED};
use crate::units::{CODEC_RATE, SampleRate};

/// Most bytes of sound taken at a time.
const PIECE: usize = 16 << 10;

/// Largest `fmt ` chunk that is looked at; longer ones are cut.
const MAX_FORMAT: u64 = 4 << 10;

/// Chunks that may stand beside the sound.
const KNOWN: &[&[u8; 4]] = &[
    b"fmt ", b"data", b"fact", b"LIST", b"JUNK", b"junk", b"PAD ", b"FLLR", b"cue ", b"plst", b"smpl", b"inst",
    b"bext", b"iXML", b"axml", b"chna", b"ID3 ", b"id3 ", b"PEAK", b"DISP", b"ds64", b"levl", b"link", b"note",
    b"labl", b"ltxt", b"acid", b"strc", b"_PMX", b"cart", b"afsp", b"r64m", b"ubxt", b"mext", b"qlty", b"slnt",
    b"wavl",
];

/// Why a file is not taken for WAV.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WavError {
    /// The file or pipe failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not WAV, or none that is understood.
    #[error("{0}")]
    Format(String),
    /// Its rate or number of channels cannot be used.
    #[error("{0}")]
    Unusable(String),
}

/// Where a chunk of sound ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// After so many bytes.
    After(u64),
    /// Nobody knows: at the end of the file.
    Open,
}

/// A WAV file or pipe as mono samples at the codec's rate.
pub struct WavReader {
    bytes: Bytes,
    big_endian: bool,
    layout: Layout,
    intake: Intake,
    end: End,
    /// Bytes of the sound that the header announced, for those who are told when there are fewer.
    announced: Option<u64>,
    taken: u64,
    /// A value that is not complete.
    part: Vec<u8>,
    remarks: Vec<String>,
    ended: bool,
}

impl std::fmt::Debug for WavReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WavReader").field("layout", &self.layout).field("end", &self.end).finish_non_exhaustive()
    }
}

/// What the chunks in front of the sound say.
struct Head {
    big_endian: bool,
    layout: Layout,
    end: End,
    announced: Option<u64>,
    remark: Option<String>,
}

impl WavReader {
    /// Whether these first bytes are those of a WAV file.
    pub(super) fn is_wav(head: &[u8]) -> bool {
        head.len() >= 12
            && [b"RIFF", b"RIFX", b"RF64", b"BW64"].iter().any(|m| head.starts_with(*m))
            && &head[8..12] == b"WAVE"
    }

    /// Reads a WAV file from its first byte to where its sound begins. `length` is that of a regular file, None for a pipe.
    ///
    /// # Errors
    /// [`WavError`].
    pub fn open(from: impl Read + Send + Sync + 'static, length: Option<u64>) -> Result<Self, WavError> {
        Self::parse(Bytes::new(Box::new(from), length))
    }

    pub(super) fn parse(mut bytes: Bytes) -> Result<Self, WavError> {
        let head = head(&mut bytes)?;
        let (rate, downmix) = head.layout.checked()?;
        Ok(Self {
            bytes,
            big_endian: head.big_endian,
            layout: head.layout,
            intake: Intake::new(rate, downmix),
            end: head.end,
            announced: head.announced,
            taken: 0,
            part: Vec::new(),
            remarks: head.remark.into_iter().collect(),
            ended: false,
        })
    }

    /// Samples at the codec's rate that there are to come, if that is known.
    pub fn total_samples(&self) -> Option<u64> {
        let End::After(bytes) = self.end else { return None };
        let (samples, rate) = (bytes / self.layout.align() as u64, u64::from(self.layout.rate));
        samples.checked_mul(u64::from(CODEC_RATE.hz())).map(|n| n.div_ceil(rate.max(1)))
    }

    /// Appends the next piece to `out`; false at the end.
    ///
    /// # Errors
    /// [`WavError`].
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<bool, WavError> {
        if self.ended {
            return Ok(false);
        }
        let most = match self.end {
            End::After(left) => usize::try_from(left).unwrap_or(PIECE).min(PIECE),
            End::Open => PIECE,
        };
        let mut piece = vec![0; most];
        let n = self.bytes.read(&mut piece)?;
        if n == 0 {
            return self.ended_chunk(out);
        }
        if let End::After(left) = &mut self.end {
            *left -= n as u64;
        }
        self.taken += n as u64;
        let size = self.layout.format.bytes();
        self.part.extend_from_slice(&piece[..n]);
        let whole = self.part.len() - self.part.len() % size;
        let (layout, big_endian) = (self.layout, self.big_endian);
        self.intake.push(self.part[..whole].chunks_exact(size).map(|b| layout.format.value(b, big_endian)), out);
        self.part.drain(..whole);
        Ok(true)
    }

    /// Ends the input early: appends what is held back.
    pub(super) fn finish(&mut self, out: &mut Vec<f32>) {
        if !self.ended {
            self.intake.finish(out);
            self.ended = true;
        }
    }

    /// Values that could not be used so far.
    pub fn unusable(&self) -> u64 {
        self.intake.unusable()
    }

    /// What a user should be told.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// After the last byte of a chunk of sound: what follows may be more of it, or another file put behind this one.
    fn ended_chunk(&mut self, out: &mut Vec<f32>) -> Result<bool, WavError> {
        if let Some(announced) = self.announced.filter(|a| *a > self.taken) {
            let (said, there) = (self.layout.seconds(announced), self.layout.seconds(self.taken));
            self.remarks.push(format!("its header announces {said} of sound, but it ends after {there}"));
        }
        self.part.clear();
        if self.taken % 2 == 1 && !known(self.bytes.peek(4)?) {
            self.bytes.skip(1)?;
        }
        loop {
            let next = self.bytes.peek(12)?;
            if next.is_empty() {
                break;
            } else if Self::is_wav(next) {
                return self.another(out);
            } else if next.len() >= 8 && known(next) {
                let (id, size) = chunk(next, self.big_endian);
                self.bytes.consume(8);
                if &id == b"data" {
                    (self.end, self.announced, self.taken) = (End::After(size), Some(size), 0);
                    return Ok(true);
                }
                self.bytes.skip(size + size % 2)?;
            } else {
                if next.iter().any(|&b| b != 0) {
                    let count = self.bytes.left().map_or_else(String::new, |n| format!("{n} "));
                    self.remarks.push(format!(
                        "{count}bytes behind the end of its sound are left out: they are no chunk of a WAV file"
                    ));
                }
                break;
            }
        }
        self.finish(out);
        Ok(false)
    }

    /// Goes on with a file that was put behind this one.
    fn another(&mut self, out: &mut Vec<f32>) -> Result<bool, WavError> {
        let head = head(&mut self.bytes)?;
        let (rate, downmix) = head.layout.checked()?;
        self.intake.change(rate, downmix, out);
        (self.big_endian, self.layout) = (head.big_endian, head.layout);
        (self.end, self.announced, self.taken) = (head.end, head.announced, 0);
        self.remarks.extend(head.remark);
        Ok(true)
    }
}

fn known(id: &[u8]) -> bool {
    KNOWN.iter().any(|k| id.starts_with(*k))
}

/// Name and length of a chunk, from its 8 first bytes.
fn chunk(head: &[u8], big_endian: bool) -> ([u8; 4], u64) {
    let size = [head[4], head[5], head[6], head[7]];
    let size = if big_endian { u32::from_be_bytes(size) } else { u32::from_le_bytes(size) };
    ([head[0], head[1], head[2], head[3]], u64::from(size))
}

/// Reads up to the first byte of the sound.
fn head(bytes: &mut Bytes) -> Result<Head, WavError> {
    let bad = |reason: &str| WavError::Format(reason.to_owned());
    let magic = bytes.exact(12)?.filter(|m| WavReader::is_wav(m)).ok_or_else(|| bad("not a WAV file"))?;
    let (big_endian, long) = (magic.starts_with(b"RIFX"), magic.starts_with(b"RF64") || magic.starts_with(b"BW64"));
    let (mut layout, mut long_data) = (None, None);
    loop {
        let Some(next) = bytes.exact(8)? else {
            return Err(bad("a WAV file that ends before its sound: it has no data chunk"));
        };
        let (id, size) = chunk(&next, big_endian);
        match &id {
            b"ds64" if long => {
                let body = bytes.exact(24)?.ok_or_else(|| bad("an RF64 file that ends in its ds64 chunk"))?;
                // Length of the file, of the sound, and samples of it.
                long_data = Some(u64::from_le_bytes(std::array::from_fn(|i| body[8 + i])));
                bytes.skip((size + size % 2).saturating_sub(24))?;
            }
            b"fmt " => {
                let body = bytes
                    .exact(size.min(MAX_FORMAT) as usize)?
                    .ok_or_else(|| bad("a WAV file that ends in its fmt chunk"))?;
                layout = Some(Layout::parse(&body, big_endian).map_err(WavError::Format)?);
                bytes.skip(size.saturating_sub(MAX_FORMAT))?;
                pad(bytes, size)?;
            }
            b"data" => {
                let layout = layout.ok_or_else(|| bad("a WAV file whose sound comes before its fmt chunk"))?;
                let stated = if long && size == u64::from(u32::MAX) { long_data.unwrap_or(0) } else { size };
                let (end, announced, remark) = extent(bytes, stated, big_endian)?;
                return Ok(Head { big_endian, layout, end, announced, remark });
            }
            _ => {
                bytes.skip(size)?;
                pad(bytes, size)?;
            }
        }
    }
}

/// Passes over the byte after a chunk of odd length, which some programs leave out.
fn pad(bytes: &mut Bytes, size: u64) -> io::Result<()> {
    if size % 2 == 1 && !known(bytes.peek(4)?) {
        bytes.skip(1)?;
    }
    Ok(())
}

/// Where the sound ends, whose chunk states a length of `stated` bytes; what was announced; and a word on it.
fn extent(bytes: &mut Bytes, stated: u64, big_endian: bool) -> io::Result<(End, Option<u64>, Option<String>)> {
    // What programs write that cannot go back: all ones, or the largest that is positive in 32 bits, rounded down.
    let open = (0x7fff_f000..=0x8000_0000).contains(&stated)
        || (0xffff_f000..=0xffff_ffff).contains(&stated)
        || stated == u64::MAX;
    match (stated, bytes.left()) {
        (0, left) => {
            let next = bytes.peek(8)?;
            // Nothing but other chunks behind it: it is as empty as it says.
            let fits = next.len() == 8 && left.is_none_or(|left| chunk(next, big_endian).1 + 8 <= left + 1);
            if next.is_empty() || known(next) && fits {
                return Ok((End::After(0), None, None));
            }
            let remark = "it was never finished: its header says that it is empty; everything behind the header is taken for sound";
            Ok((left.map_or(End::Open, End::After), None, Some(remark.to_owned())))
        }
        (stated, Some(left)) if stated > left => Ok((End::After(left), (!open).then_some(stated), None)),
        // Of more than 4 GiB, 32 bits hold what is left over.
        (stated, Some(left)) if stated <= u64::from(u32::MAX) && left - stated > u64::from(u32::MAX) => {
            let whole = stated + ((left - stated) >> 32 << 32);
            let remark = "its sound is longer than a WAV header can say (4 GiB); it is taken up to the end of the file";
            Ok((End::After(whole), None, Some(remark.to_owned())))
        }
        (_, None) if open => Ok((End::Open, None, None)),
        (stated, _) => Ok((End::After(stated), Some(stated), None)),
    }
}

impl Layout {
    /// Rate and downmix, if they can be used.
    fn checked(&self) -> Result<(SampleRate, Downmix), WavError> {
        let channels = usize::from(self.channels);
        if !(1..=MAX_PLACED).contains(&channels) {
            return Err(WavError::Unusable(format!(
                "{channels} channels, allowed are 1 to {MAX_PLACED}: choose some of them first"
            )));
        }
        let rate = SampleRate::new(self.rate).map_err(|e| WavError::Unusable(e.to_string()))?;
        Ok((rate, Downmix::placed(channels, self.mask)))
    }
}
