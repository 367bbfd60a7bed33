//! Conversions by the command line, and recordings to convert.
#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use undertone::bitstream::{ContainerReader, Item, ReaderOptions, Tail};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

pub fn undertone(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.args(args).env("UNDERTONE_MODEL", model()).stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Output {
    undertone(args).output().unwrap()
}

pub fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// What a call that succeeds says.
pub fn ok(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", said(&out));
    said(&out)
}

/// What a call that must fail says.
pub fn fails(args: &[&str]) -> String {
    let out = run(args);
    assert_eq!(out.status.code(), Some(1), "{args:?}: {}", said(&out));
    said(&out)
}

/// A quick way to encode that gives the same codes for the same samples.
pub const QUICK: &[&str] = &["--packed", "--kbps", "1.5", "--refine", "0", "--beam", "1"];

pub fn encode(from: &str, to: &str) -> String {
    ok(&[&["encode", from, to], QUICK].concat())
}

pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    pub fn write(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn names(&self) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    pub fn fifo(&self, name: &str) -> String {
        assert!(Command::new("mkfifo").arg(self.path(name)).status().unwrap().success());
        self.path(name)
    }
}

/// A buzz that comes and goes.
pub fn sound(seconds: f64) -> Vec<f32> {
    let value = |n: usize| {
        let t = n as f32 / 24_000.0;
        (1..12).map(|k| (k as f32 * 820.0 * t).sin() / k as f32).sum::<f32>() * 0.15 * (0.6 + 0.4 * (t * 9.0).sin())
    };
    (0..(seconds * 24_000.0) as usize).map(value).collect()
}

pub fn s16(x: &[f32]) -> Vec<i16> {
    x.iter().map(|v| (v * 32_768.0) as i16).collect()
}

pub fn bytes(x: &[i16]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn chunk(id: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&id[..], &length, body, &vec![0; body.len() % 2]].concat()
}

pub fn format(tag: u16, channels: u16, rate: u32, bits: u16) -> Vec<u8> {
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

pub fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
    let body = [b"WAVE".to_vec(), chunks.concat()].concat();
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [b"RIFF".to_vec(), length.to_vec(), body].concat()
}

/// 24 kHz, one channel, 16 bit.
pub fn wav(x: &[f32]) -> Vec<u8> {
    riff(&[chunk(b"fmt ", &format(1, 1, 24_000, 16)), chunk(b"data", &bytes(&s16(x)))])
}

pub fn float_wav(rate: u32, x: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    riff(&[chunk(b"fmt ", &format(3, 1, rate, 32)), chunk(b"data", &data)])
}

/// Samples of a WAV file that undertone wrote.
pub fn samples(path: &str) -> Vec<f32> {
    let mut reader = hound::WavReader::open(path).unwrap();
    reader.samples::<i16>().map(|s| f32::from(s.unwrap()) / 32_768.0).collect()
}

/// Frames of a container, the length it states, and how it ends.
pub fn contents(path: &str) -> (u64, Option<u64>, Tail) {
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

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
