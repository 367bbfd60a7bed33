//! Recordings one behind the other in one file, and what lies between them, for readers that know only one.
//!
//! symphonia's FLAC reader takes whatever follows the last frame for a part of it, and then the last block does not decode (an issue to
//! report there: a frame that its check sum ends should be given even if no frame follows); its AIFF reader stops behind the first.
//! Sources: RFC 9639 (FLAC), 8.1; ID3v1.1; APE tag specification 2.0; ID3v2.4.0, 3.1; AIFF 1.3.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use symphonia::core::io::MediaSource;

use super::bytes::Bytes;
use super::kind::Kind;
use super::tags::{APE_STARTS, ID3V1, id3v2_length};

/// Recordings of one file: reading ends where one of them does.
pub(super) trait Parts: Read + Send {
    /// Whether another recording follows the one that ended; what is read from now on is its.
    fn next_recording(&mut self) -> bool;

    /// Why it is not to be read on.
    fn fault(&self) -> Option<&str> {
        None
    }

    /// What a user should be told.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The current recording, for symphonia.
pub(super) struct Recording(pub(super) Arc<Mutex<dyn Parts>>);

impl Read for Recording {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(out)
    }
}

impl Seek for Recording {
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl MediaSource for Recording {
    fn is_seekable(&self) -> bool {
        false
    }

    fn byte_len(&self) -> Option<u64> {
        None
    }
}

/// How a recording begins: so that no sound looks like it by chance, with the length of what must follow.
const FLAC_STARTS: [&[u8; 8]; 2] = [b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22"];

/// Most bytes given at a time.
const PIECE: usize = 4 << 10;

/// Bytes that are looked at before those in front of them are given: a tag, and what shows that it is one.
const AHEAD: usize = ID3V1 + 12;

/// Largest tag between two recordings that is looked for.
const MAX_TAG: u64 = 16 << 20;

/// FLAC streams without the tags between and behind them.
pub(super) struct FlacParts {
    bytes: Bytes,
    /// Whether something of the current one was given.
    begun: bool,
    ended: bool,
    another: bool,
}

impl FlacParts {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, begun: false, ended: false, another: false }
    }

    /// How many of the next bytes, at most `wanted`, belong to the current recording.
    fn sound(&mut self, wanted: usize) -> io::Result<usize> {
        let first = usize::from(!self.begun);
        let mut from = first;
        loop {
            let seen = self.bytes.peek(wanted + AHEAD)?;
            let last = seen.len() < wanted + AHEAD;
            let found = (from..seen.len()).find(|&at| begins(&seen[at..]));
            let Some(at) = found.or(last.then_some(seen.len())) else { return Ok(wanted) };
            if found.is_some() && seen[at..].starts_with(b"ID3") && !self.leads_to_another(at)? {
                from = at + 1;
                continue;
            }
            let seen = self.bytes.peek(wanted + AHEAD)?;
            let tag = at.checked_sub(ID3V1).filter(|&tag| seen[tag..].starts_with(b"TAG"));
            return Ok(tag.unwrap_or(at).min(wanted));
        }
    }

    /// Whether the tag so many bytes further on stands in front of another recording.
    fn leads_to_another(&mut self, at: usize) -> io::Result<bool> {
        let Some(length) = id3v2_length(&self.bytes.peek(at + 10)?[at..]).filter(|n| *n <= MAX_TAG) else {
            return Ok(false);
        };
        let behind = at + usize::try_from(length).unwrap_or(usize::MAX);
        Ok(self.bytes.peek(behind + 8)?.get(behind..).is_some_and(is_flac))
    }

    /// Passes over what stands between two recordings.
    fn pass_over(&mut self) -> io::Result<()> {
        self.ended = true;
        loop {
            let seen = self.bytes.peek(PIECE)?;
            if let Some(at) = (0..seen.len()).find(|&at| is_flac(&seen[at..])) {
                self.bytes.consume(at);
                self.another = true;
                return Ok(());
            }
            let n = seen.len();
            if n < PIECE {
                self.bytes.consume(n);
                return Ok(());
            }
            self.bytes.consume(n - 8);
        }
    }
}

fn is_flac(bytes: &[u8]) -> bool {
    FLAC_STARTS.iter().any(|s| bytes.starts_with(*s))
}

/// Whether a recording or a tag begins here.
fn begins(bytes: &[u8]) -> bool {
    is_flac(bytes) || APE_STARTS.iter().any(|s| bytes.starts_with(*s)) || id3v2_length(bytes).is_some()
}

impl Read for FlacParts {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ended || out.is_empty() {
            return Ok(0);
        }
        let n = self.sound(out.len().min(PIECE))?;
        if n == 0 {
            self.pass_over()?;
            return Ok(0);
        }
        self.begun = true;
        self.bytes.read(&mut out[..n])
    }
}

impl Parts for FlacParts {
    fn next_recording(&mut self) -> bool {
        let another = std::mem::take(&mut self.another);
        if another {
            (self.begun, self.ended) = (false, false);
        }
        another
    }
}

/// AIFF files one behind the other, each as long as it says. Where no other follows, what it says does not count.
pub(super) struct AiffParts {
    bytes: Bytes,
    /// Bytes up to where another may begin.
    left: Option<u64>,
    another: bool,
}

impl AiffParts {
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn new(bytes: Bytes) -> io::Result<Self> {
        let mut parts = Self { bytes, left: None, another: false };
        parts.measure()?;
        Ok(parts)
    }

    fn measure(&mut self) -> io::Result<()> {
        let head = self.bytes.peek(8)?;
        let size = head.get(4..8).map(|b| u64::from(u32::from_be_bytes([b[0], b[1], b[2], b[3]])));
        self.left = size.map(|n| 8 + n + n % 2);
        Ok(())
    }
}

/// Whether an AIFF file begins here.
fn is_aiff(bytes: &[u8]) -> bool {
    bytes.starts_with(b"FORM") && bytes.len() >= 12 && [b"AIFF", b"AIFC"].iter().any(|m| &bytes[8..12] == *m)
}

impl Read for AiffParts {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.another {
            return Ok(0);
        }
        if self.left == Some(0) {
            self.another = is_aiff(self.bytes.peek(12)?);
            self.left = None;
            return self.read(out);
        }
        let most = self.left.map_or(out.len(), |left| out.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        let n = self.bytes.read(&mut out[..most])?;
        self.left = self.left.map(|left| left - n as u64);
        Ok(n)
    }
}

impl Parts for AiffParts {
    fn next_recording(&mut self) -> bool {
        // Its reader may stop in front of what stands behind the sound.
        let mut rest = [0; PIECE];
        while !self.another && self.left.is_some() && matches!(self.read(&mut rest), Ok(n) if n > 0) {}
        std::mem::take(&mut self.another) && self.measure().is_ok()
    }
}

/// Boxes or chunks of a file that are looked at.
const MAX_BOXES: usize = 100_000;

/// Bytes of a file from where another recording begins, for containers that say how long they are.
///
/// # Errors
/// Those of the system.
pub(super) fn behind(kind: Kind, file: &File) -> io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    let mut seen = false;
    let mut at = 0u64;
    for _ in 0..MAX_BOXES {
        let mut head = [0; 16];
        let there = read_at(file, &mut head, at)?;
        let head = &head[..there];
        let another = match kind {
            Kind::Aiff => is_aiff(head),
            Kind::Mp4 => head.get(4..8) == Some(b"ftyp"),
            Kind::Caf => head.starts_with(b"caff"),
            _ => return Ok(None),
        };
        if another && seen {
            return Ok(Some(length - at));
        }
        let Some(size) = size(kind, head) else { return Ok(None) };
        // Free space may stand in front of the first.
        seen |= kind != Kind::Mp4 || matches!(head.get(4..8), Some(b"moov" | b"mdat"));
        at = match at.checked_add(size) {
            Some(at) if at < length => at,
            _ => return Ok(None),
        };
    }
    Ok(None)
}

/// Bytes of the box or chunk with this head; None if it goes on to the end, or is none.
fn size(kind: Kind, head: &[u8]) -> Option<u64> {
    let short = |at: usize| Some(u64::from(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?)));
    let long = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
    match kind {
        Kind::Aiff => short(4).map(|n| 8 + n + n % 2),
        Kind::Caf if head.starts_with(b"caff") => Some(8),
        Kind::Caf => long(4).and_then(|n| n.checked_add(12)),
        _ => match short(0)? {
            0 => None,
            1 => long(8).filter(|n| *n >= 16),
            n => Some(n).filter(|n| *n >= 8),
        },
    }
}

/// Fills as much of `out` as there is.
fn read_at(file: &File, out: &mut [u8], at: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < out.len() {
        match file.read_at(&mut out[n..], at + n as u64)? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each recording of a file is, read in pieces of these lengths.
    fn read(parts: impl Parts + 'static, piece: usize) -> Vec<Vec<u8>> {
        let shared: Arc<Mutex<dyn Parts>> = Arc::new(Mutex::new(parts));
        let mut all = Vec::new();
        loop {
            let mut recording = Recording(Arc::clone(&shared));
            let (mut whole, mut part) = (Vec::new(), vec![0; piece]);
            loop {
                match recording.read(&mut part).unwrap() {
                    0 => break,
                    n => whole.extend(&part[..n]),
                }
            }
            all.push(whole);
            if !shared.lock().unwrap().next_recording() {
                return all;
            }
        }
    }

    fn flac(n: usize) -> Vec<u8> {
        [&b"fLaC\0\0\0\x22"[..], &vec![b's'; n]].concat()
    }

    #[test]
    fn streams_are_told_apart_and_tags_belong_to_none() {
        let id3v1 = [&b"TAG"[..], &[b' '; 125]].concat();
        let id3v2 = [&b"ID3\x04\0\0\0\0\x08\0"[..], &[7; 1_024]].concat();
        let ape = [&b"APETAGEX\xd0\x07\0\0"[..], &[3; 5_000]].concat();
        for n in [0, 1, 100, 127, 128, 4_000, 4_096, 20_000] {
            let (one, two) = (flac(n), flac(n + 5));
            for between in [vec![], id3v1.clone(), id3v2.clone(), ape.clone(), [id3v1.clone(), id3v2.clone()].concat()]
            {
                let file = [&one[..], &between, &two, &id3v1].concat();
                for piece in [1, 100, 70_000] {
                    let bytes = Bytes::new(Box::new(io::Cursor::new(file.clone())), None);
                    assert!(read(FlacParts::new(bytes), piece) == [one.clone(), two.clone()], "{n}, {}", between.len());
                }
            }
        }
        // What only looks like a tag stays where it is.
        let odd = [flac(9), b"ID3\x04\0\0\0\0\x08\0 and more of it".to_vec()].concat();
        let bytes = Bytes::new(Box::new(io::Cursor::new(odd.clone())), None);
        assert!(read(FlacParts::new(bytes), 50) == [odd]);
    }

    #[test]
    fn aiff_files_are_as_long_as_they_say_if_others_follow() {
        let aiff = |n: usize, said: usize| {
            let size = u32::try_from(said + 4).unwrap().to_be_bytes();
            [&b"FORM"[..], &size, b"AIFF", &vec![b'a'; n]].concat()
        };
        let bytes = |content: Vec<u8>| Bytes::new(Box::new(io::Cursor::new(content)), None);
        let (one, two) = (aiff(6_000, 6_000), aiff(10, 10));
        let both = read(AiffParts::new(bytes([one.clone(), two.clone()].concat())).unwrap(), 99);
        assert!(both == [one.clone(), two]);
        // Never finished.
        let open = aiff(6_000, 0);
        assert!(read(AiffParts::new(bytes(open.clone())).unwrap(), 99) == [open]);
    }

    #[test]
    fn another_recording_behind_one_is_found_where_the_one_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let found = |kind, content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            behind(kind, &File::open(&path).unwrap()).unwrap()
        };
        let mp4 = b"\0\0\0\x0cftypM4A \0\0\0\x09mdatftyp\0\0\0\x01free\0\0\0\0\0\0\0\x10\0\0\0\x08moov".to_vec();
        let mp4 = [&mp4[..20], &[0; 1], &mp4[24..]].concat();
        let caf = b"caff\0\x01\0\0desc\0\0\0\0\0\0\0\x04fourdata\0\0\0\0\0\0\0\x05sound".to_vec();
        for (kind, one) in [(Kind::Mp4, mp4), (Kind::Caf, caf)] {
            assert_eq!(found(kind, &one), None, "{kind:?}");
            assert_eq!(found(kind, &[one.clone(), one.clone()].concat()), Some(one.len() as u64), "{kind:?}");
            assert_eq!(found(kind, &[one, vec![0; 99]].concat()), None, "{kind:?}");
        }
        assert_eq!(found(Kind::Caf, b"caff\0\x01\0\0data\xff\xff\xff\xff\xff\xff\xff\xffcaff\0\x01\0\0"), None);
        assert_eq!(found(Kind::Mp4, b""), None);
    }
}
