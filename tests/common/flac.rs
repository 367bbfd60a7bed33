//! The smallest FLAC and Ogg streams: samples as they are, in frames of 480 (RFC 9639; RFC 3533).
#![allow(dead_code, unreachable_pub)]

const BLOCK: usize = 480;

fn crc8(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |crc, b| (0..8).fold(crc ^ b, |c, _| if c & 0x80 != 0 { c << 1 ^ 7 } else { c << 1 }))
}

fn crc16(bytes: &[u8]) -> u16 {
    let step = |c: u16| if c & 0x8000 != 0 { c << 1 ^ 0x8005 } else { c << 1 };
    bytes.iter().fold(0, |crc, b| (0..8).fold(crc ^ u16::from(*b) << 8, |c, _| step(c)))
}

fn stream_info(rate: u32, samples: usize) -> Vec<u8> {
    let mut info = Vec::new();
    info.extend((BLOCK as u16).to_be_bytes());
    info.extend((BLOCK as u16).to_be_bytes());
    info.extend([0; 6]);
    // Rate, one channel, 16 bits, samples.
    let packed = u64::from(rate) << 44 | 15 << 36 | samples as u64;
    info.extend(packed.to_be_bytes());
    info.extend([0; 16]);
    info
}

fn frame(number: usize, samples: &[i16]) -> Vec<u8> {
    // Fixed block size (16 bits of it follow), rate and sample size of the stream, one channel.
    let mut f = vec![0xff, 0xf8, 0x70, 0x00];
    f.extend(char::from_u32(number as u32).unwrap().to_string().into_bytes());
    f.extend((samples.len() as u16 - 1).to_be_bytes());
    f.push(crc8(&f));
    // A verbatim subframe.
    f.push(0x02);
    f.extend(samples.iter().flat_map(|s| s.to_be_bytes()));
    f.extend(crc16(&f).to_be_bytes());
    f
}

pub fn flac(rate: u32, samples: &[i16]) -> Vec<u8> {
    let mut all = b"fLaC\x80\0\0\x22".to_vec();
    all.extend(stream_info(rate, samples.len()));
    samples.chunks(BLOCK).enumerate().for_each(|(n, s)| all.extend(frame(n, s)));
    all
}

fn page(serial: u32, number: u32, kind: u8, granule: u64, packets: &[Vec<u8>]) -> Vec<u8> {
    let mut p = b"OggS\0".to_vec();
    p.push(kind);
    p.extend(granule.to_le_bytes());
    p.extend(serial.to_le_bytes());
    p.extend(number.to_le_bytes());
    p.extend([0; 4]);
    let lacing: Vec<u8> =
        packets.iter().flat_map(|k| [vec![255; k.len() / 255], vec![(k.len() % 255) as u8]].concat()).collect();
    p.push(lacing.len() as u8);
    p.extend(lacing);
    p.extend(packets.concat());
    let step = |c: u32| if c >> 31 != 0 { c << 1 ^ 0x04c1_1db7 } else { c << 1 };
    let crc = p.iter().fold(0u32, |crc, b| (0..8).fold(crc ^ u32::from(*b) << 24, |c, _| step(c)));
    p[22..26].copy_from_slice(&crc.to_le_bytes());
    p
}

/// One logical stream of FLAC in Ogg.
pub fn ogg_flac(serial: u32, rate: u32, samples: &[i16]) -> Vec<u8> {
    let mut first = b"\x7fFLAC\x01\0\0\x01fLaC\0\0\0\x22".to_vec();
    first.extend(stream_info(rate, samples.len()));
    // An empty Vorbis comment.
    let comment = b"\x84\0\0\x08\0\0\0\0\0\0\0\0".to_vec();
    let mut all = [page(serial, 0, 2, 0, &[first]), page(serial, 1, 0, 0, &[comment])].concat();
    let frames: Vec<_> = samples.chunks(BLOCK).enumerate().map(|(n, s)| frame(n, s)).collect();
    let last = frames.len().div_ceil(10) - 1;
    for (n, group) in frames.chunks(10).enumerate() {
        let granule = ((n + 1) * 10 * BLOCK).min(samples.len()) as u64;
        let kind = if n == last { 4 } else { 0 };
        all.extend(page(serial, n as u32 + 2, kind, granule, group));
    }
    all
}

/// `n` silent frames of MPEG 1 layer 3 at 48 kHz, 128 kbit/s, stereo; the first holds a Xing tag that counts the others if asked for.
pub fn mp3(n: usize, tag: bool) -> Vec<u8> {
    let mut all = Vec::new();
    for i in 0..n + usize::from(tag) {
        let mut f = vec![0u8; 384];
        f[..4].copy_from_slice(&[0xff, 0xfb, 0x94, 0x00]);
        if tag && i == 0 {
            f[36..44].copy_from_slice(b"Xing\0\0\0\x01");
            f[44..48].copy_from_slice(&(n as u32).to_be_bytes());
        }
        all.extend(f);
    }
    all
}
