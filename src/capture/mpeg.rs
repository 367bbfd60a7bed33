//! MPEG audio (MP3 and its elder layers) frame by frame: what is in front, between and behind the frames is left out and counted.
//!
//! symphonia's reader takes any two bytes that look like a frame for one, wherever they are: in a cover picture, or in another
//! container around the sound. Here a frame counts only if others follow it without a gap. Source: ISO/IEC 11172-3, 2.4.1 and 2.4.2;
//! ID3v2.4.0, 3.1; APE tag specification 2.0.

use std::io::{self, Read};

use super::bytes::Bytes;
use super::parts::Parts;
use super::tags::id3v2_length;

/// Frames that must follow each other before the first of them is believed.
const CHAIN: usize = 4;

/// Bytes in front of the first frame that are searched for it.
const MAX_FRONT: u64 = 64 << 20;

/// Gaps within so many frames from the start that make it another container.
const EARLY_FRAMES: u64 = 100;

/// Kbit/s by layer 1, 2, 3 of MPEG 1, then layer 1, and 2 and 3, of MPEG 2.
const BIT_RATES: [[u32; 14]; 5] = [
    [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
    [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
];

/// What the header of a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    /// Bytes, header included.
    size: usize,
    /// Version, layer and rate, which all frames of a stream have in common.
    kind: u32,
    /// Where a Xing or Info tag would begin.
    side_end: usize,
}

impl Frame {
    /// Of the four bytes of a header; None if they are none, or of free format.
    fn parse(b: &[u8]) -> Option<Self> {
        let word = u32::from_be_bytes([*b.first()?, *b.get(1)?, *b.get(2)?, *b.get(3)?]);
        let (version, layer) = (word >> 19 & 3, word >> 17 & 3);
        let (rate, hz) = (word >> 12 & 15, word >> 10 & 3);
        if word >> 21 != 0x7ff || version == 1 || layer == 0 || rate == 0 || rate == 15 || hz == 3 || word & 3 == 2 {
            return None;
        }
        let first = version == 3;
        let table = match (first, layer) {
            (true, 3) => 0,
            (true, 2) => 1,
            (true, _) => 2,
            (false, 3) => 3,
            (false, _) => 4,
        };
        let bits = BIT_RATES[table][rate as usize - 1] * 1_000;
        let hz = [44_100, 48_000, 32_000][hz as usize] >> [2, 0, 1, 0][version as usize];
        let padding = word >> 9 & 1;
        let size = match (layer, first) {
            (3, _) => 4 * (12 * bits / hz + padding),
            (1, false) => 72 * bits / hz + padding,
            _ => 144 * bits / hz + padding,
        };
        let mono = word >> 6 & 3 == 3;
        let side = match (first, mono) {
            (true, false) => 32,
            (false, true) => 9,
            _ => 17,
        };
        Some(Self { size: size as usize, kind: word & 0xfffe_0c00, side_end: 4 + side })
    }
}

/// What comes next.
enum Next {
    /// A frame of so many bytes.
    Frame(Frame),
    /// Something that belongs there: a tag of so many bytes.
    Tag(u64),
    /// Something else.
    Junk,
    /// Nothing.
    End,
}

/// Frames of MPEG audio, one recording after the other.
pub(super) struct Framer {
    bytes: Bytes,
    kind: Option<u32>,
    /// What is left of the current frame.
    rest: Vec<u8>,
    at: usize,
    frames: u64,
    /// Bytes left out in front of the first frame and after it, and the gaps they make.
    front: u64,
    junk: u64,
    gaps: u64,
    /// The next frame begins another recording.
    boundary: bool,
    fault: Option<String>,
}

impl Framer {
    /// Finds the first frame. Gives the bytes back if there is none in front of which nothing else stands.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn open(mut bytes: Bytes) -> io::Result<Result<Self, Bytes>> {
        let mut front = 0;
        while chain(&mut bytes, None, CHAIN)?.is_none() {
            if bytes.peek(1)?.is_empty() || front >= MAX_FRONT {
                return Ok(Err(bytes));
            }
            let tag = id3v2_length(bytes.peek(10)?);
            front += if tag.is_none() { bytes.skip(1)? } else { 0 };
            bytes.skip(tag.unwrap_or(0))?;
        }
        let framer = Self {
            bytes,
            kind: None,
            rest: Vec::new(),
            at: 0,
            frames: 0,
            front,
            junk: 0,
            gaps: 0,
            boundary: false,
            fault: None,
        };
        Ok(Ok(framer))
    }

    /// What comes next. Right behind a frame another one of its kind needs no more to be believed.
    fn look(&mut self, behind: bool) -> io::Result<Next> {
        let frame = match chain(&mut self.bytes, self.kind, 1)? {
            Some(frame) if behind => Some(frame),
            _ => chain(&mut self.bytes, None, CHAIN)?,
        };
        if let Some(frame) = frame {
            return Ok(Next::Frame(frame));
        }
        let next = self.bytes.peek(32)?;
        if next.is_empty() {
            return Ok(Next::End);
        }
        let tag = if let Some(length) = id3v2_length(next) {
            Some(length)
        } else if next.starts_with(b"APETAGEX") && next.len() == 32 {
            // With its header, which the size leaves out; the footer alone when the items came before it.
            let size = u64::from(u32::from_le_bytes([next[12], next[13], next[14], next[15]]));
            Some(if next[23] & 0x20 != 0 { 32 + size } else { 32 })
        } else if next.starts_with(b"TAG") {
            Some(128)
        } else {
            None
        };
        Ok(tag.map_or(Next::Junk, Next::Tag))
    }

    /// Makes the next frame the current one; false where a recording ends.
    fn advance(&mut self) -> io::Result<bool> {
        let mut gap = 0;
        loop {
            match self.look(self.frames > 0 && gap == 0)? {
                Next::End => {
                    self.passed(gap);
                    return Ok(false);
                }
                Next::Tag(length) => {
                    self.bytes.skip(length)?;
                }
                Next::Junk => gap += self.bytes.skip(1)?,
                Next::Frame(frame) => {
                    self.passed(gap);
                    return self.take(frame);
                }
            }
        }
    }

    fn passed(&mut self, gap: u64) {
        if gap > 0 {
            self.junk += gap;
            self.gaps += 1;
        }
    }

    fn take(&mut self, frame: Frame) -> io::Result<bool> {
        if self.gaps > 2 && self.frames < EARLY_FRAMES {
            self.fault = Some("MPEG audio that is interrupted all the time: it lies in another container, from which it must be taken out first".to_owned());
            return Ok(false);
        }
        let head = self.bytes.peek(frame.side_end + 40)?;
        let named = |at: usize, names: &[&[u8; 4]]| head.get(at..at + 4).is_some_and(|b| names.iter().any(|n| b == *n));
        let first = named(frame.side_end, &[b"Xing", b"Info"]) || named(36, &[b"VBRI"]);
        // Its tag says how long a recording is, so a second tag begins a second recording; another rate does too.
        let other = self.kind.is_some_and(|kind| kind != frame.kind);
        if (first || other) && self.frames > 0 && !self.boundary {
            self.boundary = true;
            self.kind = Some(frame.kind);
            self.frames = 0;
            return Ok(false);
        }
        self.kind = Some(frame.kind);
        self.frames += 1;
        self.rest = self.bytes.exact(frame.size)?.unwrap_or_default();
        self.at = 0;
        Ok(!self.rest.is_empty())
    }
}

/// The frame at the start of `bytes`, if as many as `wanted` follow each other from there, or fewer up to the very end.
fn chain(bytes: &mut Bytes, kind: Option<u32>, wanted: usize) -> io::Result<Option<Frame>> {
    let Some(first) = Frame::parse(bytes.peek(4)?).filter(|f| kind.is_none_or(|k| k == f.kind)) else {
        return Ok(None);
    };
    let mut at = first.size;
    for n in 1..wanted {
        let there = bytes.peek(at + 10)?;
        let Some(next) = there.get(at..).filter(|b| b.len() >= 4 || b.starts_with(b"TAG")) else {
            // The last of several may be cut off; a lone one must be whole.
            return Ok((there.len() == at || n > 1).then_some(first));
        };
        // A tag behind the last frame, or in front of another recording.
        if [&b"TAG"[..], b"APETAGEX", b"ID3"].iter().any(|t| next.starts_with(t)) {
            return Ok(Some(first));
        }
        match Frame::parse(next).filter(|f| f.kind == first.kind) {
            Some(f) => at += f.size,
            None => return Ok(None),
        }
    }
    Ok(Some(first))
}

impl Parts for Framer {
    fn next_recording(&mut self) -> bool {
        std::mem::take(&mut self.boundary)
    }

    fn remarks(&self) -> Vec<String> {
        let mut all = Vec::new();
        if self.front > 0 {
            all.push(format!("{} bytes in front of its first frame are left out", self.front));
        }
        if self.junk > 0 {
            all.push(format!("{} bytes in {} places between or behind its frames are left out", self.junk, self.gaps));
        }
        all
    }

    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

impl Read for Framer {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.rest.len() && (self.boundary || !self.advance()?) {
            return Ok(0);
        }
        let n = (&self.rest[self.at..]).read(out)?;
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::parts::Recording;
    use super::*;

    /// `n` frames of MPEG 1 layer 3, 128 kbit/s, 44.1 kHz, stereo, with a tag in the first if asked for.
    fn frames(n: usize, tag: bool) -> Vec<u8> {
        let mut all = Vec::new();
        for i in 0..n {
            let mut frame = vec![0u8; 417];
            frame[..4].copy_from_slice(&[0xff, 0xfb, 0x90, 0x00]);
            frame[36] = i as u8;
            if tag && i == 0 {
                frame[36..40].copy_from_slice(b"Info");
            }
            all.extend(frame);
        }
        all
    }

    fn open(content: Vec<u8>) -> Option<Arc<Mutex<Framer>>> {
        let length = content.len() as u64;
        let bytes = Bytes::new(Box::new(io::Cursor::new(content)), Some(length));
        Some(Arc::new(Mutex::new(Framer::open(bytes).unwrap().ok()?)))
    }

    /// Bytes of each recording, and the remarks.
    fn read(content: Vec<u8>) -> (Vec<usize>, Vec<String>) {
        let framer = open(content).expect("frames");
        let mut lengths = Vec::new();
        loop {
            let mut all = Vec::new();
            Recording(Arc::<Mutex<Framer>>::clone(&framer)).read_to_end(&mut all).unwrap();
            assert!(all.chunks_exact(417).all(|f| f.starts_with(&[0xff, 0xfb])), "whole frames");
            lengths.push(all.len() / 417);
            if !framer.lock().unwrap().next_recording() {
                break;
            }
        }
        let remarks = framer.lock().unwrap().remarks();
        (lengths, remarks)
    }

    #[test]
    fn tags_pictures_and_rubbish_are_left_out() {
        let mut picture = b"ID3\x04\0\0\0\x60\0\0".to_vec();
        picture.resize(10 + (0x60 << 14), 0xff);
        let tag = [&b"TAG"[..], &[0x20; 125]].concat();
        assert_eq!(read([picture.clone(), frames(9, true), tag].concat()), (vec![9], vec![]));
        let (lengths, remarks) = read([vec![0xff; 3_000_001], frames(9, false)].concat());
        assert_eq!(lengths, [9]);
        assert!(remarks.len() == 1 && remarks[0].contains("3000001"), "{remarks:?}");
        let (lengths, remarks) = read([frames(200, false), vec![7; 500], frames(9, false)].concat());
        assert_eq!(lengths.iter().sum::<usize>(), 209);
        assert!(remarks[0].contains("500 bytes in 1 places"), "{remarks:?}");
    }

    #[test]
    fn one_recording_after_another_is_both() {
        let id3 = b"ID3\x03\0\0\0\0\0\x10................".to_vec();
        assert_eq!(read([frames(8, true), frames(5, true)].concat()).0, [8, 5]);
        assert_eq!(read([frames(8, true), id3, frames(5, true), frames(6, true)].concat()).0, [8, 5, 6]);
        assert_eq!(read([frames(8, false), frames(5, false)].concat()).0, [13]);
    }

    #[test]
    fn frames_inside_something_else_are_not_believed() {
        // Packets of 188 bytes, as in a transport stream.
        let mut stream = Vec::new();
        frames(200, false).chunks(184).for_each(|c| stream.extend([&[0x47, 0x41, 0, 0x10][..], c].concat()));
        assert!(open(stream).is_none());
        // Chunks of many frames with headers between them.
        let mut film = Vec::new();
        (0..20).for_each(|_| film.extend([b"01wb____".to_vec(), frames(10, false)].concat()));
        let framer = open(film).expect("a chain of frames");
        let mut all = Vec::new();
        Recording(Arc::<Mutex<Framer>>::clone(&framer)).read_to_end(&mut all).unwrap();
        assert!(framer.lock().unwrap().fault().is_some_and(|f| f.contains("another container")));
        assert!(open(vec![0x55; 100_000]).is_none());
        assert!(open(Vec::new()).is_none());
    }
}
