//! What others recorded: every format is read whole, or refused with a word.
#![cfg(feature = "full")]

#[path = "common/convert.rs"]
mod convert;
#[path = "common/flac.rs"]
mod flac;

use std::fs::{self, File};

use convert::{
    Folder, QUICK, bytes, chunk, contents, encode, fails, float_wav, format, ok, riff, s16, said, samples, sound,
    undertone, wav,
};

#[test]
fn samples_that_cannot_be_used_become_silence_and_are_said_once() {
    let dir = Folder::new();
    for rate in [24_000, 48_000] {
        let mut x: Vec<f32> = sound(6.0).iter().flat_map(|&v| vec![v; rate as usize / 24_000]).collect();
        x[50_000] = 0.0;
        let clean = dir.write("clean.wav", &float_wav(rate, &x));
        let args = |wave: &str, utn: &str| ok(&["encode", wave, utn, "--kbps", "1.5", "--refine", "0", "--beam", "1"]);
        assert_eq!(args(&clean, &dir.path("clean.utn")), "");
        let wanted = fs::read(dir.path("clean.utn")).unwrap();
        assert!(wanted.len() as f64 * 8.0 / 6.0 <= 1_500.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20] {
            x[50_000] = bad;
            let words = args(&dir.write("bad.wav", &float_wav(rate, &x)), &dir.path("bad.utn"));
            assert!(words.contains("1 samples cannot be used") && words.lines().count() == 1, "{words}");
            assert!(fs::read(dir.path("bad.utn")).unwrap() == wanted, "{bad} at {rate} Hz");
        }
    }
}

#[test]
fn speech_in_the_centre_of_5_1_is_as_loud_as_alone_and_too_many_channels_are_refused() {
    let dir = Folder::new();
    let x = s16(&sound(1.0));
    let surround = |channels: usize, mask: u32, speech: usize| {
        let data: Vec<i16> =
            x.iter().flat_map(|&v| (0..channels).map(move |c| if c == speech { v } else { 0 })).collect();
        let mut f = format(0xfffe, channels as u16, 24_000, 16);
        f.extend(22u16.to_le_bytes());
        f.extend(16u16.to_le_bytes());
        f.extend(mask.to_le_bytes());
        f.extend(b"\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71");
        riff(&[chunk(b"fmt ", &f), chunk(b"data", &bytes(&data))])
    };
    let coded = |content: &[u8]| {
        encode(&dir.write("in.wav", content), &dir.path("out.utn"));
        fs::read(dir.path("out.utn")).unwrap()
    };
    let alone = coded(&wav(&sound(1.0)));
    for (channels, mask, centre) in [(6, 0x3f, 2), (6, 0x60f, 2), (8, 0x63f, 2), (3, 0x7, 2), (2, 0xc, 0)] {
        assert!(coded(&surround(channels, mask, centre)) == alone, "{channels} channels");
    }
    let e = fails(&["encode", &dir.write("in.wav", &surround(9, 0, 0)), &dir.path("nine.utn")]);
    assert!(e.contains("9 channels") && e.contains("1 to 8"), "{e}");
}

/// A WAV file with a chunk of an odd length before the samples.
fn with_odd_list(x: &[f32], padded: bool) -> Vec<u8> {
    let mut odd = b"LIST\x0b\0\0\0INFOISFT\x03\0\0".to_vec();
    odd.truncate(19);
    let pad = if padded { vec![0] } else { Vec::new() };
    riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), odd, pad, chunk(b"data", &bytes(&s16(x)))])
}

/// A file with lengths of 64 bits, that of its data as given.
fn rf64(x: &[f32], magic: &[u8; 4], data: u64) -> Vec<u8> {
    let (mut ds64, all) = (Vec::new(), x.len() as u64 * 2);
    [all + 72, data, all / 2].iter().for_each(|v| ds64.extend(v.to_le_bytes()));
    ds64.extend([0; 4]);
    let format = chunk(b"fmt ", &format(1, 1, 24_000, 16));
    let mut w = riff(&[chunk(b"ds64", &ds64), format, chunk(b"data", &bytes(&s16(x)))]);
    w[..4].copy_from_slice(magic);
    w[4..8].fill(0xff);
    let at = w.windows(4).position(|b| b == b"data").unwrap();
    w[at + 4..at + 8].fill(0xff);
    w
}

#[test]
fn wav_headers_with_wrong_lengths_give_the_same_sound() {
    let dir = Folder::new();
    let x = sound(1.0);
    let base = wav(&x);
    encode(&dir.write("base.wav", &base), &dir.path("base.utn"));
    let wanted = fs::read(dir.path("base.utn")).unwrap();
    let with = |riff_length: u32, data_length: u32| {
        let mut w = base.clone();
        w[4..8].copy_from_slice(&riff_length.to_le_bytes());
        w[40..44].copy_from_slice(&data_length.to_le_bytes());
        w
    };
    let (length, all) = (base.len() as u32 - 8, base.len() as u32 - 44);
    for (name, content, word) in [
        ("riff 0", with(0, all), ""),
        ("riff 8", with(8, all), ""),
        ("riff too small", with(length - 8, all), ""),
        ("riff too large", with(u32::MAX, all), ""),
        ("never finished", with(36, 0), "never finished"),
        ("never finished, all 0", with(0, 0), "never finished"),
        ("to a pipe", with(0, u32::MAX), ""),
        ("to a pipe, as sox", with(0x7fff_f024, 0x7fff_f000), ""),
        ("cut off", with(length + 1_000, all + 1_000), "announces"),
        ("odd list, padded", with_odd_list(&x, true), ""),
        ("odd list", with_odd_list(&x, false), ""),
        ("RF64", rf64(&x, b"RF64", all.into()), ""),
        ("BW64", rf64(&x, b"BW64", all.into()), ""),
        ("RF64, never finished", rf64(&x, b"RF64", 0), "never finished"),
        ("junk behind", [base.clone(), vec![7; 333]].concat(), "333 bytes behind"),
        ("a chunk behind", [base.clone(), chunk(b"LIST", b"INFO")].concat(), ""),
    ] {
        let path = dir.write("in.wav", &content);
        let words = encode(&path, &dir.path("out.utn"));
        assert!(fs::read(dir.path("out.utn")).unwrap() == wanted, "{name}: {words}");
        assert!(if word.is_empty() { words.is_empty() } else { words.contains(word) }, "{name}: {words}");
    }
    // An empty recording is empty.
    let empty = riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), chunk(b"data", b"")]);
    assert_eq!(encode(&dir.write("in.wav", &empty), &dir.path("out.utn")), "");
    assert_eq!(contents(&dir.path("out.utn")).0, 0);
    // Two in one file are both.
    encode(&dir.write("in.wav", &[base.clone(), base].concat()), &dir.path("out.utn"));
    assert_eq!(contents(&dir.path("out.utn")).1, Some(48_000));
    let e = fails(&[
        "encode",
        &dir.write("in.wav", &riff(&[chunk(b"fmt ", &format(0x55, 1, 24_000, 8))])),
        &dir.path("x.utn"),
    ]);
    assert!(e.contains("MP3"), "{e}");
}

#[test]
fn compressed_recordings_with_tags_and_others_behind_them_are_read_whole() {
    let dir = Folder::new();
    let x = s16(&sound(1.01));
    encode(&dir.write("base.wav", &wav(&sound(1.01))), &dir.path("base.utn"));
    let wanted = fs::read(dir.path("base.utn")).unwrap();
    let id3v1 = [&b"TAG"[..], &[0x20; 125]].concat();
    let mut ape = b"APETAGEX\xd0\x07\0\0\x20\0\0\0\0\0\0\0\0\0\0\xa0".to_vec();
    ape.resize(32, 0);
    ape.extend_from_within(..32);
    let mut id3v2 = b"ID3\x04\0\0\0\x60\0\0".to_vec();
    id3v2.resize(10 + (0x60 << 14), 0xff);
    let plain = flac::flac(24_000, &x);
    for (name, content) in [
        ("plain", plain.clone()),
        ("ID3v1 behind", [plain.clone(), id3v1.clone()].concat()),
        ("APEv2 behind", [plain.clone(), ape.clone()].concat()),
        ("both behind", [plain.clone(), ape, id3v1].concat()),
        ("a large picture in front", [id3v2.clone(), plain.clone()].concat()),
        ("in Ogg", flac::ogg_flac(7, 24_000, &x)),
    ] {
        let path = dir.write("in", &content);
        assert_eq!(encode(&path, &dir.path("out.utn")), "", "{name}");
        assert!(fs::read(dir.path("out.utn")).unwrap() == wanted, "{name}");
        // The same through a pipe.
        let to = dir.path("piped.utn");
        let mut piped = undertone(&[&["encode", "-", &to, "--bundle", "25"], QUICK].concat());
        let piped = piped.stdin(File::open(&path).unwrap()).output().unwrap();
        assert!(piped.status.success() && piped.stderr.is_empty(), "{name}: {}", said(&piped));
        assert!(fs::read(dir.path("piped.utn")).unwrap() == wanted, "{name} through a pipe");
    }
    // Radio: one stream after the other, at another rate.
    let chain = dir.write("chain.ogg", &[flac::ogg_flac(7, 24_000, &x), flac::ogg_flac(8, 48_000, &x)].concat());
    let half = (x.len() + x.len() / 2) as u64;
    assert_eq!(encode(&chain, &dir.path("out.utn")), "");
    assert_eq!(contents(&dir.path("out.utn")).1, Some(half));
    let out = undertone(&[&["encode", "-", "-"], QUICK].concat()).stdin(File::open(&chain).unwrap()).output().unwrap();
    assert_eq!(contents(&dir.write("out.utn", &out.stdout)).1, Some(half));
    // A page that is missing: what is there, and a word.
    let ogg = flac::ogg_flac(7, 24_000, &x);
    let pages: Vec<usize> = ogg.windows(4).enumerate().filter(|(_, w)| w == b"OggS").map(|(at, _)| at).collect();
    let holed = [&ogg[..pages[3]], &ogg[pages[4]..]].concat();
    let words = encode(&dir.write("in", &holed), &dir.path("out.utn"));
    assert!(words.contains("could be decoded"), "{words}");
    // Cut in the middle.
    let words = encode(&dir.write("in", &plain[..plain.len() - 700]), &dir.path("out.utn"));
    assert!(words.contains("announces 1.01 s") || words.contains("cut off"), "{words}");
}

/// One channel of 16 bit at 24 kHz.
fn aiff(x: &[i16]) -> Vec<u8> {
    let long = |n: usize| u32::try_from(n).unwrap().to_be_bytes();
    let sound: Vec<u8> = x.iter().flat_map(|v| v.to_be_bytes()).collect();
    let common =
        [&b"COMM"[..], &long(18), &[0, 1], &long(x.len()), &[0, 16, 0x40, 0x0d, 0xbb, 0x80, 0, 0, 0, 0, 0, 0]].concat();
    let body = [&b"AIFF"[..], &common, b"SSND", &long(8 + sound.len()), &[0; 8], &sound].concat();
    [&b"FORM"[..], &long(body.len()), &body].concat()
}

#[test]
fn recordings_one_behind_the_other_in_one_file_are_all_read_or_said() {
    let dir = Folder::new();
    let (x, y) = (s16(&sound(1.01)), s16(&sound(0.52)));
    let (more, id3v1) = (x.len() + y.len(), [&b"TAG"[..], &[0x20; 125]].concat());
    let resampled = x.len() + y.len() / 2;
    for (name, content, samples) in [
        ("FLAC", [flac::flac(24_000, &x), flac::flac(24_000, &y)].concat(), more),
        ("FLAC with tags", [flac::flac(24_000, &x), id3v1.clone(), flac::flac(24_000, &y), id3v1].concat(), more),
        ("FLAC of two rates", [flac::flac(24_000, &x), flac::flac(48_000, &y)].concat(), resampled),
        ("AIFF", [aiff(&x), aiff(&y)].concat(), more),
        ("one AIFF", aiff(&x), x.len()),
    ] {
        let path = dir.write("in", &content);
        assert_eq!(encode(&path, &dir.path("out.utn")), "", "{name}");
        assert_eq!(contents(&dir.path("out.utn")).1, Some(samples as u64), "{name}");
        let mut piped = undertone(&[&["encode", "-", &dir.path("piped.utn")], QUICK].concat());
        let piped = piped.stdin(File::open(&path).unwrap()).output().unwrap();
        assert!(piped.status.success() && piped.stderr.is_empty(), "{name}: {}", said(&piped));
        assert_eq!(contents(&dir.path("piped.utn")).1, Some(samples as u64), "{name} through a pipe");
    }
}

#[test]
fn mpeg_audio_is_read_whole_or_refused() {
    let dir = Folder::new();
    let length = |content: &[u8]| {
        let words = encode(&dir.write("in.mp3", content), &dir.path("out.utn"));
        (contents(&dir.path("out.utn")).1.unwrap() / 576, words)
    };
    let plain = flac::mp3(50, false);
    assert_eq!(length(&plain), (50, String::new()));
    let mut id3v2 = b"ID3\x04\0\0\0\x60\0\0".to_vec();
    id3v2.resize(10 + (0x60 << 14), 0xff);
    assert_eq!(length(&[id3v2, plain.clone()].concat()), (50, String::new()));
    let (frames, words) = length(&[vec![0xff; 1_500_000], plain.clone()].concat());
    assert!(frames == 50 && words.contains("1500000 bytes in front"), "{frames}: {words}");
    assert_eq!(length(&[flac::mp3(40, true), flac::mp3(30, true)].concat()).0, 70, "both of two in one file");
    let mut stream = Vec::new();
    plain.chunks(184).for_each(|c| stream.extend([&[0x47, 0x41, 0, 0x10][..], c, &vec![0xff; 184 - c.len()]].concat()));
    for (name, content) in [("x.ts", stream.clone()), ("x.mp3", stream)] {
        let e = fails(&["encode", &dir.write(name, &content), &dir.path("ts.utn")]);
        assert!(e.contains("transport stream"), "{e}");
    }
}

#[test]
fn streams_one_behind_the_other_are_all_decoded() {
    let dir = Folder::new();
    let (a, b) = (dir.path("a.utn"), dir.path("b.utn"));
    encode(&dir.write("a.wav", &wav(&sound(0.7))), &a);
    encode(&dir.write("b.wav", &wav(&sound(0.4))), &b);
    let both = dir.write("both.utn", &[fs::read(&a).unwrap(), fs::read(&b).unwrap()].concat());
    let [one, two, all] = [&a, &b, &both].map(|utn| {
        ok(&["decode", utn, &dir.path("out.wav")]);
        samples(&dir.path("out.wav"))
    });
    assert!(all == [one, two].concat());
    let piped = undertone(&["decode", "-", "-"]).stdin(File::open(&both).unwrap()).output().unwrap();
    assert_eq!((piped.stdout.len() - 44) / 2, all.len());
    ok(&["decode", &both, &dir.path("out.wav"), "--start", "0.8", "--seconds", "0.1"]);
    assert!(samples(&dir.path("out.wav")) == all[19_200..21_600]);
    let junk = dir.write("junk.utn", &[fs::read(&a).unwrap(), b"something else".to_vec()].concat());
    assert!(ok(&["decode", &junk, &dir.path("out.wav")]).contains("behind the end"));
}
