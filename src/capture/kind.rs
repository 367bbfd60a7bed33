//! What a file is, by its first bytes: never by where something inside it looks like sound.

use std::io;

use super::bytes::Bytes;

/// Containers and raw streams that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Wav,
    Flac,
    Ogg,
    /// MP4, M4A, MOV.
    Mp4,
    Aiff,
    Caf,
    /// AAC in ADTS frames.
    Adts,
    /// None of these: MPEG audio if there are frames of it, one behind the other.
    Other,
}

/// Containers that are not read, though there may be sound in them that looks like ours: their names, and how to tell them.
const FOREIGN: &[(&str, usize, &[u8])] = &[
    ("a file of undertone's codes", 0, b"UTN\x01"),
    ("an MPEG program stream", 0, &[0, 0, 1, 0xba]),
    ("an AVI film", 8, b"AVI "),
    ("a Flash video", 0, b"FLV"),
    ("a Matroska or WebM file", 0, &[0x1a, 0x45, 0xdf, 0xa3]),
    ("a Windows Media file", 0, &[0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11]),
    ("a RealMedia file", 0, b".RMF"),
    ("a Wave64 file", 0, b"riff"),
    ("a Sun audio file", 0, b".snd"),
    ("a WavPack file", 0, b"wvpk"),
    ("a Monkey's Audio file", 0, b"MAC "),
    ("a Musepack file", 0, b"MPCK"),
    ("a DSD file", 0, b"DSD "),
    ("an AMR recording", 0, b"#!AMR"),
    ("a MIDI file", 0, b"MThd"),
    ("a picture", 0, &[0xff, 0xd8, 0xff]),
    ("a picture", 0, b"\x89PNG"),
    ("a PDF document", 0, b"%PDF"),
    ("a ZIP archive", 0, b"PK\x03\x04"),
    ("a gzip archive", 0, &[0x1f, 0x8b]),
];

/// Lengths of packets of an MPEG transport stream: plain, with time codes in front (offset 4), with check sums behind.
const PACKETS: [(usize, usize); 3] = [(188, 0), (192, 4), (204, 0)];

/// Packets that must begin where they should.
const PACKETS_SEEN: usize = 3;

/// Tells what follows.
///
/// # Errors
/// The inner one is why it cannot be read, in words.
pub(super) fn detect(bytes: &mut Bytes) -> io::Result<Result<Kind, String>> {
    let head = bytes.peek(16)?.to_vec();
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|b| b.starts_with(magic));
    if head.is_empty() {
        return Ok(Err("the file is empty".to_owned()));
    }
    if super::wav::WavReader::is_wav(&head) {
        return Ok(Ok(Kind::Wav));
    }
    let kind = if at(0, b"fLaC") {
        Kind::Flac
    } else if at(0, b"OggS") {
        Kind::Ogg
    } else if at(4, b"ftyp") || at(4, b"moov") || at(4, b"mdat") {
        Kind::Mp4
    } else if at(0, b"FORM") && (at(8, b"AIFF") || at(8, b"AIFC")) {
        Kind::Aiff
    } else if at(0, b"caff") {
        Kind::Caf
    } else if adts_chain(bytes)? {
        Kind::Adts
    } else {
        Kind::Other
    };
    if kind != Kind::Other {
        return Ok(Ok(kind));
    }
    if transport_stream(bytes)? {
        let advice = "take the sound out of it first, as in ffmpeg -i FILE sound.flac";
        return Ok(Err(format!("an MPEG transport stream, which is not read: {advice}")));
    }
    match FOREIGN.iter().find(|(_, offset, magic)| at(*offset, magic)) {
        Some((name, ..)) => Ok(Err(format!("{name}, which is not read"))),
        None => Ok(Ok(kind)),
    }
}

fn transport_stream(bytes: &mut Bytes) -> io::Result<bool> {
    // Only what may be one is waited for.
    let first = bytes.peek(5)?;
    if first.first() != Some(&0x47) && first.get(4) != Some(&0x47) {
        return Ok(false);
    }
    let there = bytes.peek(PACKETS_SEEN * 204 + 5)?;
    Ok(PACKETS.iter().any(|&(length, offset)| {
        let mut places = (0..PACKETS_SEEN).map(|n| there.get(offset + n * length));
        there.len() > 2 * length && places.all(|b| b == Some(&0x47))
    }))
}

/// Whether three ADTS frames (ISO/IEC 14496-3, 1.A.3.2) follow each other from here, or all that there are.
fn adts_chain(bytes: &mut Bytes) -> io::Result<bool> {
    let mut at = 0;
    for n in 0..3 {
        let head = bytes.peek(at + 7)?;
        let Some(h) = head.get(at..at + 7) else { return Ok(n > 0 && head.len() == at) };
        let length = usize::from(h[3] & 3) << 11 | usize::from(h[4]) << 3 | usize::from(h[5] >> 5);
        if h[0] != 0xff || h[1] & 0xf6 != 0xf0 || h[2] >> 2 & 15 > 12 || length < 7 {
            return Ok(false);
        }
        at += length;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(content: Vec<u8>) -> Result<Kind, String> {
        let length = content.len() as u64;
        detect(&mut Bytes::new(Box::new(io::Cursor::new(content)), Some(length))).unwrap()
    }

    #[test]
    fn files_are_known_by_their_first_bytes_and_what_is_not_read_has_a_name() {
        assert_eq!(what(b"BW64\0\0\0\0WAVEds64".to_vec()), Ok(Kind::Wav));
        assert_eq!(what(b"fLaC".to_vec()), Ok(Kind::Flac));
        assert_eq!(what(b"\0\0\0\x20ftypM4A \0\0\0\0".to_vec()), Ok(Kind::Mp4));
        assert_eq!(what(b"FORM\0\0\0\0AIFCxxxx".to_vec()), Ok(Kind::Aiff));
        assert_eq!(what(vec![0xff, 0xfb, 0x90, 0, 0, 0, 0, 0]), Ok(Kind::Other));
        for (length, offset) in PACKETS {
            let mut stream = vec![0u8; 5 * length];
            (0..5).for_each(|n| stream[offset + n * length] = 0x47);
            assert!(what(stream).unwrap_err().contains("transport stream"), "{length}");
        }
        for (start, name) in [
            (&b"RIFF\0\0\0\0AVI LIST"[..], "AVI"),
            (b"\x1a\x45\xdf\xa3....", "Matroska"),
            (b"UTN\x01....", "codes"),
            (b"", "empty"),
        ] {
            let e = what(start.to_vec()).unwrap_err();
            assert!(e.contains(name), "{e}");
        }
        // A text that begins with the letter of a packet's first byte.
        assert_eq!(what([b"G".to_vec(), vec![b'o'; 900]].concat()), Ok(Kind::Other));
    }

    #[test]
    fn aac_frames_must_follow_each_other() {
        let frame = |n: usize| {
            [vec![0xff, 0xf1, 0x50, 0x80, (n >> 3) as u8, ((n & 7) << 5) as u8, 0xfc], vec![0; n - 7]].concat()
        };
        assert_eq!(what([frame(100), frame(90), frame(80), frame(99)].concat()), Ok(Kind::Adts));
        assert_eq!(what([frame(100), frame(90)].concat()), Ok(Kind::Adts));
        assert_eq!(what([frame(100), vec![0; 3], frame(90), frame(80)].concat()), Ok(Kind::Other));
    }
}
