//! Tags that players put behind a recording. symphonia's FLAC reader takes them for a part of the last block, which then does not
//! decode (an issue to report there: a frame that its check sum ends should be given even if no frame follows).
//! Sources: ID3v1.1, Lyrics3 v2.00, APE tag specification 2.0.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::bytes::Bytes;

/// An ID3v1 tag.
const ID3V1: usize = 128;

/// Header or footer of an APE tag.
const APE: usize = 32;

/// Start of either, with the version.
const APE_STARTS: [&[u8; 12]; 2] = [b"APETAGEX\xd0\x07\0\0", b"APETAGEX\xe8\x03\0\0"];

/// Bytes of tags at the end of a file.
pub(super) fn behind(mut file: &File) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut tags = 0u64;
    // One behind the other.
    while let Some(tag) = last(&mut file, length - tags)? {
        if tag == 0 || tag > length - tags {
            break;
        }
        tags += tag;
    }
    Ok(tags)
}

/// Length of the tag that ends at byte `end`; None if none does.
fn last(file: &mut &File, end: u64) -> io::Result<Option<u64>> {
    let mut tail = vec![0; usize::try_from(end).unwrap_or(usize::MAX).min(ID3V1)];
    file.seek(SeekFrom::Start(end - tail.len() as u64))?;
    file.read_exact(&mut tail)?;
    if tail.len() == ID3V1 && tail.starts_with(b"TAG") {
        return Ok(Some(ID3V1 as u64));
    }
    if let Some(footer) = tail.len().checked_sub(APE).map(|at| &tail[at..])
        && APE_STARTS.iter().any(|s| footer.starts_with(*s))
    {
        let word = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
        let header = if word(20) >> 31 == 1 { APE as u64 } else { 0 };
        return Ok(Some(u64::from(word(12)) + header));
    }
    if let Some(at) = tail.len().checked_sub(15)
        && tail.ends_with(b"LYRICS200")
    {
        let digits = std::str::from_utf8(&tail[at..at + 6]).ok().and_then(|d| d.parse::<u64>().ok());
        return Ok(digits.map(|n| n + 15));
    }
    Ok(None)
}

/// A pipe without the tags at its end: an ID3v1 tag as the last bytes, an APE tag from where it starts.
pub(super) struct Untagged {
    from: Bytes,
    held: Vec<u8>,
    ended: bool,
}

impl Untagged {
    pub(super) fn new(from: Bytes) -> Self {
        Self { from, held: Vec::new(), ended: false }
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4_096];
        while !self.ended && self.held.len() <= ID3V1 {
            let n = self.from.read(&mut chunk)?;
            // An APE tag may begin in what came before.
            let start = self.held.len().saturating_sub(11);
            self.held.extend_from_slice(&chunk[..n]);
            let ape = self.held[start..].windows(12).position(|w| APE_STARTS.iter().any(|s| w == *s));
            if let Some(at) = ape {
                self.held.truncate(start + at);
                self.ended = true;
            } else if n == 0 {
                self.ended = true;
                let last = self.held.len().checked_sub(ID3V1);
                if let Some(at) = last.filter(|&at| self.held[at..].starts_with(b"TAG")) {
                    self.held.truncate(at);
                }
            }
        }
        Ok(())
    }
}

impl Read for Untagged {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.fill()?;
        let ready = self.held.len() - if self.ended { 0 } else { ID3V1 };
        let n = ready.min(out.len());
        out[..n].copy_from_slice(&self.held[..n]);
        self.held.drain(..n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ape(items: usize, header: bool) -> Vec<u8> {
        let mut end = APE_STARTS[0].to_vec();
        end.extend(u32::try_from(items + APE).unwrap().to_le_bytes());
        end.extend(1u32.to_le_bytes());
        end.extend((u32::from(header) << 31).to_le_bytes());
        end.resize(APE, 0);
        let head = if header { end.clone() } else { Vec::new() };
        [head, vec![b'i'; items], end].concat()
    }

    #[test]
    fn tags_at_the_end_of_files_and_pipes_are_left_out() {
        let id3 = [&b"TAG"[..], &[b' '; 125]].concat();
        let lyrics = [&b"LYRICSBEGIN"[..], b"abc", b"000014", b"LYRICS200"].concat();
        let dir = tempfile::tempdir().unwrap();
        for (tags, pipe) in [
            (Vec::new(), true),
            (id3.clone(), true),
            (ape(90_000, true), true),
            ([ape(50, true), id3.clone()].concat(), true),
            // On a pipe, what came before it has gone.
            (ape(500, false), false),
            ([lyrics, id3].concat(), false),
        ] {
            for sound in [&b""[..], b"s", &[b's'; 50_000]] {
                let path = dir.path().join("a");
                std::fs::write(&path, [sound, &tags].concat()).unwrap();
                assert_eq!(behind(&File::open(&path).unwrap()).unwrap(), tags.len() as u64);
                let bytes = Bytes::new(Box::new(File::open(&path).unwrap()), None);
                let mut all = Vec::new();
                Untagged::new(bytes).read_to_end(&mut all).unwrap();
                assert!(!pipe || all == sound, "{} of {} bytes", all.len(), sound.len());
            }
        }
    }
}
