//! A user's files: nothing is lost, and what others read is read or refused with a word.
#![cfg(feature = "full")]

#[path = "common/flac.rs"]
mod flac;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use undertone::bitstream::{ContainerReader, Item, ReaderOptions, Tail};

const PATIENCE: Duration = Duration::from_secs(60);

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

fn undertone(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.args(args).env("UNDERTONE_MODEL", model()).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    undertone(args).output().unwrap()
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// What a call that succeeds says.
fn ok(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", said(&out));
    said(&out)
}

/// What a call that must fail says.
fn fails(args: &[&str]) -> String {
    let out = run(args);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {}", said(&out));
    said(&out)
}

/// A quick way to encode that gives the same codes for the same samples.
const QUICK: &[&str] = &["--packed", "--kbps", "1.5", "--refine", "0", "--beam", "1"];

fn encode(from: &str, to: &str) -> String {
    ok(&[&["encode", from, to], QUICK].concat())
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn names(&self) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    fn fifo(&self, name: &str) -> String {
        assert!(Command::new("mkfifo").arg(self.path(name)).status().unwrap().success());
        self.path(name)
    }
}

/// A buzz that comes and goes.
fn sound(seconds: f64) -> Vec<f32> {
    let value = |n: usize| {
        let t = n as f32 / 24_000.0;
        (1..12).map(|k| (k as f32 * 820.0 * t).sin() / k as f32).sum::<f32>() * 0.15 * (0.6 + 0.4 * (t * 9.0).sin())
    };
    (0..(seconds * 24_000.0) as usize).map(value).collect()
}

fn s16(x: &[f32]) -> Vec<i16> {
    x.iter().map(|v| (v * 32_768.0) as i16).collect()
}

fn bytes(x: &[i16]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn chunk(id: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&id[..], &length, body, &vec![0; body.len() % 2]].concat()
}

fn format(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
    let align = channels * bits / 8;
    let mut f = Vec::new();
    f.extend(tag.to_le_bytes());
    f.extend(channels.to_le_bytes());
    f.extend(rate.to_le_bytes());
    f.extend((rate * u32::from(align)).to_le_bytes());
    f.extend(align.to_le_bytes());
    f.extend(bits.to_le_bytes());
    f
}

fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
    let body = [b"WAVE".to_vec(), chunks.concat()].concat();
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [b"RIFF".to_vec(), length.to_vec(), body].concat()
}

/// 24 kHz, one channel, 16 bit.
fn wav(x: &[f32]) -> Vec<u8> {
    riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), chunk(b"data", &bytes(&s16(x)))])
}

fn float_wav(rate: u32, x: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    riff(&[chunk(b"fmt ", &format(3, 1, rate, 32)), chunk(b"data", &data)])
}

/// Samples of a WAV file that undertone wrote.
fn samples(path: &str) -> Vec<f32> {
    let mut reader = hound::WavReader::open(path).unwrap();
    reader.samples::<i16>().map(|s| f32::from(s.unwrap()) / 32_768.0).collect()
}

/// Frames of a container, the length it states, and how it ends.
fn contents(path: &str) -> (u64, Option<u64>, Tail) {
    let mut reader = ContainerReader::new(ReaderOptions::default());
    reader.push(&fs::read(path).unwrap());
    let (mut frames, mut total) = (0, None);
    while let Some(item) = reader.next().unwrap() {
        match item {
            Item::Bundle(b) => frames += u64::from(b.frames),
            Item::End { total_samples } => total = total_samples,
            _ => {}
        }
    }
    (frames, total, reader.finish())
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_output_is_never_an_input_and_never_replaces_another_kind_of_file() {
    let dir = Folder::new();
    let (a, b) = (dir.write("a.wav", &wav(&sound(0.5))), dir.write("b.wav", &wav(&sound(0.3))));
    let (utn, other) = (dir.path("a.utn"), dir.path("b.utn"));
    encode(&a, &utn);
    encode(&b, &other);
    fs::hard_link(&a, dir.path("hard.wav")).unwrap();
    std::os::unix::fs::symlink("a.wav", dir.path("soft.wav")).unwrap();
    std::os::unix::fs::symlink("a.utn", dir.path("soft.utn")).unwrap();
    let (hard, soft, soft_utn) = (dir.path("hard.wav"), dir.path("soft.wav"), dir.path("soft.utn"));
    let before: Vec<_> = [&a, &b, &utn, &other].map(|p| fs::read(p).unwrap()).into();
    for (args, why) in [
        (["encode", &a, &a], "also the input"),
        (["encode", &a, &hard], "also the input"),
        (["encode", &a, &soft], "also the input"),
        (["decode", &utn, &utn], "also the input"),
        (["decode", &utn, &soft_utn], "also the input"),
        // As from encode *.wav.
        (["encode", &a, &b], "recording"),
        (["decode", &utn, &other], "codes"),
    ] {
        let e = fails(&args);
        assert!(e.contains(why), "{args:?}: {e}");
        let forced = run(&[&args[..], &["--force"]].concat());
        assert!(!forced.status.success() || why != "also the input", "{args:?}");
        fs::write(&b, &before[1]).unwrap();
        fs::write(&other, &before[3]).unwrap();
    }
    let e = fails(&["generate", "--prompt", &a, &a, "--seconds", "0.1"]);
    assert!(e.contains("also the input"), "{e}");
    let packets = dir.path("packets");
    ok(&["message", &b, &packets, "--packed"]);
    let packet = format!("{packets}/000000.utp");
    let e = fails(&["message", &packets, &packet, "--force"]);
    assert!(e.contains("also the input"), "{e}");
    fs::copy(&a, format!("{packets}/sound.utp")).unwrap();
    let e = fails(&["message", &format!("{packets}/sound.utp"), &packets, "--force"]);
    assert!(e.contains("also the input"), "{e}");
    let redirected = undertone(&["encode", "-", &a]).stdin(File::open(&a).unwrap()).output().unwrap();
    assert!(said(&redirected).contains("also the input"), "{}", said(&redirected));
    let after: Vec<_> = [&a, &b, &utn, &other].map(|p| fs::read(p).unwrap()).into();
    assert!(before == after, "nothing was changed");
    assert!(dir.names().iter().all(|n| !n.ends_with(".part")), "{:?}", dir.names());
}

#[test]
fn a_run_that_fails_leaves_what_was_there_and_one_that_does_not_replaces_it_whole() {
    let dir = Folder::new();
    let good = dir.write("good.wav", &wav(&sound(0.5)));
    let before = fs::read(&good).unwrap();
    let (garbage, utn) = (dir.write("garbage.utn", &[0x5a; 4_000]), dir.path("a.utn"));
    encode(&good, &utn);
    let mut damaged = fs::read(&utn).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let damaged = dir.write("damaged.utn", &damaged);
    for args in [
        &["decode", &garbage, &good][..],
        &["decode", &damaged, &good],
        &["decode", "/nonexistent", &good],
        &["listen", &good, "--from", "127.0.0.1:1"],
        &["generate", "--prompt", &garbage, &good],
        &["encode", &garbage, &dir.path("new.utn")],
        &["decode", &garbage, &dir.path("new.wav")],
    ] {
        fails(args);
        assert!(fs::read(&good).unwrap() == before, "{args:?}");
    }
    assert_eq!(dir.names(), ["a.utn", "damaged.utn", "garbage.utn", "good.wav"]);
    ok(&["decode", &utn, &good]);
    assert_eq!(samples(&good).len(), 12_000);
    assert_eq!(dir.names().len(), 4, "no part is left: {:?}", dir.names());
}

#[test]
fn a_live_pipe_into_a_file_loses_nothing_to_a_signal() {
    let dir = Folder::new();
    let raw = bytes(&s16(&sound(2.0)));
    for signal in ["INT", "TERM", "HUP", "KILL"] {
        let utn = dir.path(&format!("{signal}.utn"));
        let args = [&["encode", "--raw", "s16le:24000:1", "-", &utn], QUICK].concat();
        let mut child = undertone(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        to.write_all(&raw).unwrap();
        // 19 bundles of 5 frames can be encoded before more comes; each is in the file as soon as it is.
        let whole = || fs::metadata(&utn).is_ok_and(|m| m.len() >= 23 + 19 * 22);
        wait_until("the bundles are in the file", whole);
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let status = child.wait().unwrap();
        let (frames, total, tail) = contents(&utn);
        if signal == "KILL" {
            assert!(frames >= 95, "{frames} frames");
        } else {
            assert!(status.success(), "{signal}: {status}");
            assert_eq!((frames, total, tail), (101, Some(48_000), Tail::Complete), "{signal}");
        }
        ok(&["decode", &utn, &dir.path("out.wav")]);
    }
}

#[test]
fn an_interrupted_conversion_keeps_what_is_done_and_what_was_there() {
    let dir = Folder::new();
    let long = dir.write("long.wav", &wav(&sound(50.0)));
    let utn = dir.path("long.utn");
    encode(&long, &utn);
    for there in [false, true] {
        let out = dir.path("out.wav");
        if there {
            dir.write("out.wav", &wav(&sound(0.1)));
        }
        let before = fs::read(&out).ok();
        // A pipe that stays open, so that the decoder is in the middle whenever the signal comes.
        let mut child = undertone(&["decode", &utn, &out]).stderr(Stdio::piped()).spawn().unwrap();
        let begun = || dir.names().iter().any(|n| n.starts_with("out.wav") && (!there || n.ends_with(".part")));
        wait_until("the decoder writes", begun);
        Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap();
        let mut error = String::new();
        child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        let status = child.wait().unwrap();
        if status.success() {
            // It was faster than the signal.
            fs::remove_file(&out).unwrap();
            continue;
        }
        assert!(error.contains("interrupted"), "{error}");
        let kept = match there {
            true => dir.names().into_iter().find(|n| n.ends_with(".part")).map(|n| dir.path(&n)).unwrap(),
            false => out.clone(),
        };
        assert!(!samples(&kept).is_empty());
        assert!(!there || fs::read(&out).ok() == before);
        fs::remove_file(&kept).unwrap();
    }
}

#[test]
fn pipes_by_any_name_work_as_the_standard_ones() {
    let dir = Folder::new();
    let (wave, utn, back) = (dir.write("a.wav", &wav(&sound(1.0))), dir.path("a.utn"), dir.path("back.wav"));
    encode(&wave, &utn);
    ok(&["decode", &utn, &back]);
    let pipe = run(&["decode", &utn, "-"]).stdout;
    // As long as the file, and as good.
    assert_eq!((pipe.len() - 44, &pipe[..4]), (fs::read(&back).unwrap().len() - 80, &b"RIFF"[..]));
    assert!(pipe[44..] == fs::read(&back).unwrap()[80..]);
    assert!(run(&["decode", &utn, "/dev/stdout"]).stdout == pipe);
    // A named pipe, in and out.
    let (into, out) = (dir.fifo("in"), dir.fifo("out"));
    let reader = std::thread::spawn({
        let out = out.clone();
        move || fs::read(out).unwrap()
    });
    let codes = fs::read(&utn).unwrap();
    let writer = std::thread::spawn({
        let into = into.clone();
        move || fs::write(into, codes).unwrap()
    });
    ok(&["decode", &into, &out]);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == pipe);
    let writer = std::thread::spawn({
        let (into, wave) = (into.clone(), fs::read(&wave).unwrap());
        move || fs::write(into, wave).unwrap()
    });
    let piped = dir.path("piped.utn");
    encode(&into, &piped);
    writer.join().unwrap();
    assert_eq!(contents(&piped).0, contents(&utn).0);
}

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
    let list = |padded: bool| {
        let mut odd = b"LIST\x0b\0\0\0INFOISFT\x03\0\0".to_vec();
        odd.truncate(19);
        let pad = if padded { vec![0] } else { Vec::new() };
        let data = chunk(b"data", &bytes(&s16(&x)));
        riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), odd, pad, data])
    };
    let rf64 = |magic: &[u8; 4], data: u64| {
        let mut ds64 = Vec::new();
        [u64::from(all) + 72, data, u64::from(all) / 2].iter().for_each(|v| ds64.extend(v.to_le_bytes()));
        ds64.extend([0; 4]);
        let mut w =
            riff(&[chunk(b"ds64", &ds64), chunk(b"fmt ", &format(1, 1, 24_000, 16)), chunk(b"data", &bytes(&s16(&x)))]);
        w[..4].copy_from_slice(magic);
        w[4..8].fill(0xff);
        let at = w.windows(4).position(|b| b == b"data").unwrap();
        w[at + 4..at + 8].fill(0xff);
        w
    };
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
        ("odd list, padded", list(true), ""),
        ("odd list", list(false), ""),
        ("RF64", rf64(b"RF64", all.into()), ""),
        ("BW64", rf64(b"BW64", all.into()), ""),
        ("RF64, never finished", rf64(b"RF64", 0), "never finished"),
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

#[test]
fn small_faults_of_the_command_line_stay_mended() {
    use undertone::bitstream::{Bundle, ContainerWriter, StreamHeader};
    use undertone::model::Manifest;
    use undertone::units::StageCount;
    let dir = Folder::new();
    let utn = dir.path("a.utn");
    encode(&dir.write("a.wav", &wav(&sound(1.0))), &utn);
    // Nobody reads.
    for args in [&["model", "info"][..], &["--help"]] {
        let mut child = undertone(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success() && !said(&out).contains("panicked"), "{args:?}: {}", said(&out));
    }
    let e = fails(&["decode", &utn, &dir.path("past.wav"), "--start", "5"]);
    assert!(e.contains("past the end") && e.contains("1.00 s"), "{e}");
    assert!(!Path::new(&dir.path("past.wav")).exists());
    for args in
        [&["encode", "/nonexistent.wav", &dir.path("x.utn")][..], &["decode", "/nonexistent.utn", &dir.path("x.wav")]]
    {
        let e = fails(args);
        assert_eq!(e.matches("No such file").count(), 1, "{e}");
    }
    // A frame number from nowhere asks for no memory and no hours of silence.
    let manifest = Manifest::parse(&fs::read(model().join("manifest.toml")).unwrap()).unwrap();
    let stages = StageCount::new(3).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ContainerWriter::new(StreamHeader::packed(&manifest.profile(), stages, 5), &mut bytes);
    for first in [1 << 40, (1 << 40) + 5, (1 << 50)] {
        writer.write(&Bundle::new(first, 5, stages, vec![1; 15]).unwrap(), &mut bytes).unwrap();
    }
    writer.finish(None, &mut bytes);
    let far = dir.write("far.utn", &bytes);
    ok(&["decode", &far, &dir.path("far.wav"), "--loss", "uniform:0", "--loss-seed", "3"]);
    assert!(samples(&dir.path("far.wav")).len() <= 15 * 480);
}

#[test]
fn every_file_of_a_model_folder_is_checked_where_it_is_loaded() {
    let dir = Folder::new();
    let copy = |name: &str| {
        let folder = dir.0.path().join(name);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(model()).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder.to_string_lossy().into_owned()
    };
    let wave = dir.write("a.wav", &wav(&sound(0.3)));
    let folder = copy("model");
    ok(&["model", "verify", &folder]);
    for name in [
        "tokens.safetensors",
        "draft.safetensors",
        "gradient.onnx",
        "encoder-int8.onnx",
        "decoder-frame.onnx",
        "encoder.onnx",
    ] {
        let path = Path::new(&folder).join(name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let at = flipped.len() * 2 / 3;
        flipped[at] ^= 0x10;
        fs::write(&path, flipped).unwrap();
        let e = fails(&["model", "verify", &folder]);
        assert!(e.contains(name) && e.contains("SHA-256"), "{e}");
        if name == "tokens.safetensors" || name == "gradient.onnx" {
            let e = fails(&["encode", &wave, &dir.path("x.utn"), "--model", &folder]);
            assert!(e.contains(name) && !Path::new(&dir.path("x.utn")).exists(), "{e}");
        }
        fs::write(&path, whole).unwrap();
    }
    fs::write(Path::new(&folder).join("more.onnx"), "from elsewhere").unwrap();
    let e = fails(&["model", "verify", &folder]);
    assert!(e.contains("more.onnx"), "{e}");
    fs::remove_file(Path::new(&folder).join("files.toml")).unwrap();
    let words = ok(&[&["encode", &wave, &dir.path("y.utn"), "--model", &folder], QUICK].concat());
    assert!(words.contains("files.toml") && words.lines().count() == 1, "{words}");
}

#[test]
fn a_recording_of_whole_seconds_is_encoded_to_its_end() {
    // Its last piece has no frame of its own: nothing is asked of the networks then.
    let folder = Folder::new();
    let wav = folder.write(
        "whole.wav",
        &riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), chunk(b"data", &bytes(&s16(&sound(10.0))))]),
    );
    ok(&["encode", &wav, &folder.path("whole.utn"), "--kbps", "3", "--refine", "0", "--beam", "1"]);
    ok(&["decode", &folder.path("whole.utn"), &folder.path("back.wav")]);
    assert_eq!(fs::metadata(folder.path("back.wav")).unwrap().len(), 80 + 2 * 240_000);
}
