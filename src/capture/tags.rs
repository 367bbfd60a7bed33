//! Tags that players put behind a recording. symphonia's FLAC reader takes them for a part of the last block, which then does not
//! decode (an issue to report there: a frame that its check sum ends should be given even if no frame follows).
//! Sources: ID3v1.1, ID3v2.4.0 (3.1), Lyrics3 v2.00, APE tag specification 2.0.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// An ID3v1 tag.
pub(super) const ID3V1: usize = 128;

/// Header or footer of an APE tag.
const APE: usize = 32;

/// Start of either, with the version.
pub(super) const APE_STARTS: [&[u8; 12]; 2] = [b"APETAGEX\xd0\x07\0\0", b"APETAGEX\xe8\x03\0\0"];

/// Length of an ID3v2 tag with its header and footer, from its first 10 bytes; None if it is none.
pub(super) fn id3v2_length(b: &[u8]) -> Option<u64> {
    let whole = b.len() >= 10
        && b.starts_with(b"ID3")
        && b[3] != 0xff
        && b[4] != 0xff
        && b[6..10].iter().all(|x| x & 0x80 == 0);
    let size = || b[6..10].iter().fold(0u64, |n, &x| n << 7 | u64::from(x));
    whole.then(|| 10 + size() + if b[5] & 0x10 != 0 { 10 } else { 0 })
}

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
    fn tags_at_the_end_of_files_are_left_out() {
        let id3 = [&b"TAG"[..], &[b' '; 125]].concat();
        let lyrics = [&b"LYRICSBEGIN"[..], b"abc", b"000014", b"LYRICS200"].concat();
        let dir = tempfile::tempdir().unwrap();
        for tags in [
            Vec::new(),
            id3.clone(),
            ape(90_000, true),
            [ape(50, true), id3.clone()].concat(),
            ape(500, false),
            [lyrics, id3].concat(),
        ] {
            for sound in [&b""[..], b"s", &[b's'; 50_000]] {
                let path = dir.path().join("a");
                std::fs::write(&path, [sound, &tags].concat()).unwrap();
                assert_eq!(behind(&File::open(&path).unwrap()).unwrap(), tags.len() as u64);
            }
        }
    }
}
