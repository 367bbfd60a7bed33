//! The program itself, with the shipped model, real files and real pipes.
#![cfg(feature = "full")]

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn undertone(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.args(args).env("UNDERTONE_MODEL", Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2"));
    command
}

fn run(args: &[&str]) -> Output {
    undertone(args).stdin(Stdio::null()).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let out = run(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The error text of a call that must fail with exit code `code`.
fn fails(code: i32, args: &[&str]) -> String {
    let out = run(args);
    assert_eq!(out.status.code(), Some(code), "{args:?}");
    String::from_utf8(out.stderr).unwrap()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    /// A buzzing voice-like tone.
    fn wav(&self, name: &str, rate: u32, channels: u16, seconds: f64) -> String {
        let path = self.path(name);
        let spec = hound::WavSpec {
            channels,
            sample_rate: rate,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut w = hound::WavWriter::create(&path, spec).unwrap();
        for n in 0..(seconds * f64::from(rate)) as u32 {
            let t = f64::from(n) / f64::from(rate);
            let x: f64 = (1..12).map(|k| (f64::from(k) * 820.0 * t).sin() / f64::from(k)).sum();
            for _ in 0..channels {
                w.write_sample((x * 5_000.0) as i16).unwrap();
            }
        }
        w.finalize().unwrap();
        path
    }
}

fn samples(path: &str) -> Vec<f32> {
    let mut r = hound::WavReader::open(path).unwrap();
    assert_eq!((r.spec().sample_rate, r.spec().channels), (24_000, 1));
    r.samples::<i16>().map(|s| f32::from(s.unwrap()) / 32_768.0).collect()
}

fn level(x: &[f32]) -> f32 {
    10.0 * (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32 + 1e-12).log10()
}

#[test]
fn a_recording_goes_there_and_back_at_every_kind_of_input() {
    let dir = Folder::new();
    for (rate, channels) in [(24_000, 1), (44_100, 3), (8_000, 1), (48_000, 2)] {
        let wav = dir.wav("in.wav", rate, channels, 1.3);
        let (utn, back) = (dir.path("a.utn"), dir.path("out.wav"));
        ok(&["encode", &wav, &utn, "--kbps", "6"]);
        ok(&["decode", &utn, &back]);
        let y = samples(&back);
        assert_eq!(y.len(), 31_200, "{rate} Hz, {channels} channels");
        assert!(level(&y) > -30.0, "{} dBFS", level(&y));
    }
}

#[test]
fn the_rate_is_what_was_asked_for() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 10.0);
    for kbps in ["0.5", "1.5", "8"] {
        let utn = dir.path("a.utn");
        ok(&["encode", &wav, &utn, "--kbps", kbps, "--packed"]);
        let real = fs::metadata(&utn).unwrap().len() as f64 * 8.0 / 10_000.0;
        let wanted: f64 = kbps.parse().unwrap();
        assert!(real > wanted && real < wanted + 0.1, "{kbps}: {real}");
    }
}

#[test]
fn pipes_give_the_same_bytes_as_files_and_leave_bundle_by_bundle() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 1.0);
    let (utn, back) = (dir.path("a.utn"), dir.path("out.wav"));
    ok(&["encode", &wav, &utn, "--kbps", "3", "--bundle", "5", "--packed", "--refine", "0", "--beam", "4"]);
    ok(&["decode", &utn, &back]);
    let raw: Vec<u8> = fs::read(&wav).unwrap()[44..].to_vec();
    let mut child = undertone(&["encode", "--raw", "s16le:24000:1", "-", "-", "--kbps", "3", "--packed"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    // 0.52 s are five bundles of 100 ms; they must come out while the input stays open.
    to.write_all(&raw[..24_960]).unwrap();
    let mut codes = vec![0; 23 + 5 * (19 + 3)];
    from.read_exact(&mut codes).unwrap();
    to.write_all(&raw[24_960..]).unwrap();
    drop(to);
    from.read_to_end(&mut codes).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(codes, fs::read(&utn).unwrap());

    let mut child = undertone(&["decode", "-", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&codes).unwrap();
    let piped = child.wait_with_output().unwrap().stdout;
    let file = fs::read(&back).unwrap();
    assert_eq!(&piped[..4], b"RIFF");
    // A file has room in its header for the lengths of RF64.
    assert!(piped[44..] == file[80..]);
}

#[test]
fn a_wav_on_a_pipe_is_read_as_it_comes() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 16_000, 1, 0.5);
    let mut child = undertone(&["encode", "-", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(&wav).unwrap()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    assert_eq!(&out.stdout[..4], b"UTN\x01");
}

#[test]
fn damaged_and_foreign_files_are_said_clearly() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 2.0);
    let (utn, back) = (dir.path("a.utn"), dir.path("out.wav"));
    ok(&["encode", &wav, &utn, "--kbps", "3", "--packed"]);
    let whole = fs::read(&utn).unwrap();

    fs::write(&utn, &whole[..whole.len() / 2]).unwrap();
    let out = run(&["decode", &utn, &back]);
    assert!(out.status.success() && String::from_utf8_lossy(&out.stderr).contains("cut"));
    assert!(samples(&back).len() > 11_000);

    let mut bad = whole.clone();
    bad[23 + 200] ^= 1;
    fs::write(&utn, &bad).unwrap();
    let e = fails(1, &["decode", &utn, &back]);
    assert!(e.contains("byte 214") && e.contains("check sum"), "{e}");
    assert!(samples(&back).len() > 10_000, "what came before the damage is kept");

    let mut other = whole.clone();
    other[5] ^= 0xFF;
    // The header's check sum must fit for the model to be looked at.
    let e = {
        fs::write(&utn, &other).unwrap();
        fails(1, &["decode", &utn, &back])
    };
    assert!(e.contains("check sum"), "{e}");

    for content in [&b""[..], b"UTN", b"RIFF", b"\0\0\0\0\0\0\0\0"] {
        fs::write(&utn, content).unwrap();
        let e = fails(1, &["decode", &utn, &back]);
        assert!(e.contains("a.utn"), "{e}");
        let e = fails(1, &["encode", &utn, &dir.path("other.utn")]);
        assert!(e.contains("a.utn") && e.contains("--raw"), "{e}");
    }
}

#[test]
fn a_stream_of_another_model_is_refused_with_both_names() {
    use undertone::bitstream::{ContainerWriter, StreamHeader};
    use undertone::fake;
    use undertone::units::StageCount;
    let dir = Folder::new();
    let mut bytes = Vec::new();
    let header = StreamHeader::packed(&fake::profile(16), StageCount::new(2).unwrap(), 5);
    ContainerWriter::new(header, &mut bytes).finish(None, &mut bytes);
    let utn = dir.path("a.utn");
    fs::write(&utn, bytes).unwrap();
    let e = fails(1, &["decode", &utn, &dir.path("out.wav")]);
    let id = ok(&["model", "info"]).lines().find_map(|l| l.strip_prefix("id")).unwrap().trim().to_owned();
    assert!(e.contains("66616b6566616b65") && e.contains(&id), "{e}");
}

#[test]
fn wrong_calls_name_the_value_and_the_range() {
    let e = fails(2, &["encode", "a", "b", "--kbps", "13"]);
    assert!(e.contains("13") && e.contains("0.5 to 12"), "{e}");
    let e = fails(2, &["encode", "a", "b", "--raw", "s24le:1:1"]);
    assert!(e.contains("s24le:1:1") && e.contains("s16le"), "{e}");
    let e = fails(2, &["send", "a", "--stream", "a b"]);
    assert!(e.contains("a b") && e.contains("1 to 64"), "{e}");
    let e = fails(1, &["encode", "/nonexistent.wav", "b"]);
    assert!(e.contains("/nonexistent.wav"), "{e}");
    let e = fails(1, &["model", "info", "/nonexistent"]);
    assert!(e.contains("/nonexistent") && e.contains("--model"), "{e}");
    let e = fails(1, &["serve", "--listen-pcm", "0.0.0.0:0"]);
    assert!(e.contains("0.0.0.0:0") && e.contains("allow_public"), "{e}");
    assert!(ok(&["--help"]).contains("encode"));
}

#[test]
fn a_missing_or_wrong_library_says_what_to_do() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 0.1);
    let text = dir.path("libonnxruntime.so");
    fs::write(&text, "not a library").unwrap();
    for library in ["/nonexistent/libonnxruntime.so", &text] {
        let out = undertone(&["encode", &wav, &dir.path("a.utn")]).env("ORT_DYLIB_PATH", library).output().unwrap();
        let e = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{e}");
        assert!(e.contains(library) && e.contains("make setup"), "{e}");
    }
}

#[test]
fn the_shipped_model_is_whole_and_a_changed_one_is_not_used() {
    assert!(ok(&["model", "verify"]).contains("golden codes"));
    let dir = Folder::new();
    let shipped = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2");
    for entry in fs::read_dir(&shipped).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path(path.file_name().unwrap().to_str().unwrap())).unwrap();
    }
    let mut books = fs::read(shipped.join("codebooks.safetensors")).unwrap();
    *books.last_mut().unwrap() ^= 1;
    fs::write(dir.path("codebooks.safetensors"), books).unwrap();
    let e = fails(1, &["model", "verify", dir.0.path().to_str().unwrap()]);
    assert!(e.contains("codebooks.safetensors") && e.contains("SHA-256"), "{e}");
}

#[test]
fn silence_stays_silent_and_quiet_or_clipped_input_survives() {
    let dir = Folder::new();
    let there_and_back = |name: &str, x: &[f32], kbps: &str| {
        let (raw, utn, back) = (dir.path(&format!("{name}.raw")), dir.path("b.utn"), dir.path("b.wav"));
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        fs::write(&raw, bytes).unwrap();
        ok(&["encode", &raw, &utn, "--raw", "f32le:24000:1", "--kbps", kbps]);
        ok(&["decode", &utn, &back]);
        samples(&back)
    };
    let buzz: Vec<f32> = (0..24_000)
        .map(|n| (1..10).map(|k| (n as f32 * 0.03 * k as f32).sin() / k as f32).sum::<f32>() * 0.1)
        .collect();
    for kbps in ["0.5", "1.5", "3", "6", "8"] {
        let y = there_and_back("silence", &vec![0.0; 24_000], kbps);
        assert!(level(&y) < -70.0, "{kbps} kbit/s: silence came back at {} dBFS", level(&y));
    }
    let quiet: Vec<f32> = buzz.iter().map(|x| x * 10f32.powf((-60.0 - level(&buzz)) / 20.0)).collect();
    let y = there_and_back("quiet", &quiet, "6");
    assert!((level(&y) + 60.0).abs() < 8.0, "-60 dBFS came back at {}", level(&y));
    let clipped: Vec<f32> = buzz.iter().map(|x| (x * 30.0).clamp(-1.0, 1.0)).collect();
    let y = there_and_back("clipped", &clipped, "6");
    assert!(level(&y) > -8.0 && y.iter().all(|v| v.abs() <= 1.0), "clipped came back at {}", level(&y));
}

#[test]
fn a_search_keeps_the_rate_and_the_length_and_pipes_can_have_it() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 3.0);
    let (plain, searched, back) = (dir.path("a.utn"), dir.path("b.utn"), dir.path("out.wav"));
    ok(&["encode", &wav, &plain, "--kbps", "4", "--refine", "0"]);
    ok(&["encode", &wav, &searched, "--kbps", "4", "--refine", "3"]);
    ok(&["decode", &searched, &back]);
    assert_eq!(samples(&back).len(), 72_000);
    let bytes = |path: &str| fs::read(path).unwrap();
    assert!(bytes(&searched).len() <= 1_500 && bytes(&searched) != bytes(&plain));
    // A pipe searches bundle by bundle: the same as with other pieces of the input.
    let raw = bytes(&wav)[44..].to_vec();
    let pipe = |piece: usize| {
        let options = ["encode", "--raw", "s16le:24000:1", "-", "-", "--packed", "--kbps", "2", "--refine", "2"];
        let mut child = undertone(&options).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut to = child.stdin.take().unwrap();
        let raw = raw.clone();
        let feeder = std::thread::spawn(move || raw.chunks(piece).for_each(|c| to.write_all(c).unwrap()));
        let out = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        assert!(out.status.success());
        out.stdout
    };
    assert_eq!(pipe(4_800), pipe(7_000));
    assert!(fails(2, &["encode", &wav, &plain, "--refine", "201"]).contains("201"));
}

#[test]
fn a_part_of_a_long_recording_is_decoded_from_its_place() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 40.0);
    let (utn, back, part) = (dir.path("a.utn"), dir.path("out.wav"), dir.path("part.wav"));
    // 80 bundles of half a second: enough for an index; 30 in the short file: none.
    for (bundle, start) in [("25", "31.25"), ("50", "31.25"), ("25", "0.5")] {
        ok(&["encode", &wav, &utn, "--kbps", "2", "--bundle", bundle]);
        ok(&["decode", &utn, &back]);
        ok(&["decode", &utn, &part, "--start", start, "--seconds", "2"]);
        let (all, some) = (samples(&back), samples(&part));
        let from = (start.parse::<f64>().unwrap() * 24_000.0) as usize;
        assert_eq!(some.len(), 48_000);
        // The phase of a voice runs from where decoding begins, so samples differ; what is heard does not.
        let power = |x: &[f32]| x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let change = 10.0 * (power(&some) / power(&all[from..][..some.len()])).log10();
        assert!(change.abs() < 1.0, "bundles of {bundle}, from {start} s: {change:.2} dB");
    }
    let e = fails(2, &["decode", &utn, &part, "--start", "-1"]);
    assert!(e.contains("-1"), "{e}");
}

#[test]
fn coded_files_are_smaller_within_their_rate_and_sound_the_same() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 6.0);
    let (packed, coded) = (dir.path("p.utn"), dir.path("c.utn"));
    let size = |path: &str| fs::metadata(path).unwrap().len();
    ok(&["encode", &wav, &packed, "--stages", "6", "--packed"]);
    ok(&["encode", &wav, &coded, "--stages", "6", "--coded"]);
    assert!(size(&coded) * 100 < size(&packed) * 95, "{} coded, {} packed", size(&coded), size(&packed));
    let (a, b) = (dir.path("a.wav"), dir.path("b.wav"));
    ok(&["decode", &packed, &a]);
    for level in ["scalar", "avx2", "avx512"] {
        // A level that the machine has not falls back to its best.
        let out = undertone(&["decode", &coded, &b]).env("UNDERTONE_SIMD", level).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "{level}");
    }
    for kbps in ["1.5", "3"] {
        ok(&["encode", &wav, &coded, "--kbps", kbps]);
        let real = size(&coded) as f64 * 8.0 / 6_000.0;
        assert!(real <= kbps.parse().unwrap(), "{real} kbit/s, wanted {kbps}");
    }
    // Cut anywhere, it decodes up to the bundle before the cut; from the middle, it is the same sound.
    let bytes = fs::read(&coded).unwrap();
    fs::write(dir.path("cut.utn"), &bytes[..bytes.len() / 2]).unwrap();
    ok(&["decode", &dir.path("cut.utn"), &b]);
    let n = samples(&b).len();
    assert!((40_000..96_000).contains(&n), "{n} samples of half the file");
}

#[test]
fn losses_are_concealed_and_counted() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 4.0);
    let (utn, clean) = (dir.path("a.utn"), dir.path("clean.wav"));
    ok(&["encode", &wav, &utn, "--stages", "6", "--bundle", "1"]);
    ok(&["decode", &utn, &clean]);
    let x = samples(&clean);
    let error = |extra: &[&str]| {
        let out = dir.path("out.wav");
        let args = [&["decode", &utn, &out, "--loss", "gilbert:0.2:2", "--loss-seed", "3"], extra].concat();
        let run = undertone(&args).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(run.status.success() && said.contains("bundles lost"), "{said}");
        let y = samples(&out);
        assert_eq!(y.len(), x.len());
        y.iter().zip(&x).map(|(a, b)| (a - b) * (a - b)).sum::<f32>()
    };
    let (silence, tokens) = (error(&["--conceal", "silence"]), error(&[]));
    let redundant = error(&["--redundancy", "6:4"]);
    assert_eq!(tokens, error(&[]), "the same losses and guesses every time");
    assert!(redundant < 0.2 * silence, "copies of all stages heal bursts: {redundant} of {silence}");
    let e = fails(2, &["decode", &utn, &clean, "--loss", "uniform:2"]);
    assert!(e.contains("uniform:2") && e.contains("0 to 1"), "{e}");
}

#[test]
fn a_recording_goes_on_the_same_way_for_the_same_seed() {
    let dir = Folder::new();
    let wav = dir.wav("in.wav", 24_000, 1, 1.0);
    let generate = |extra: &[&str]| {
        let out = dir.path("out.wav");
        ok(&[&["generate", "--prompt", &wav, &out, "--seconds", "0.5"], extra].concat());
        samples(&out)
    };
    let first = generate(&[]);
    assert!((35_000..=36_500).contains(&first.len()), "{} samples", first.len());
    assert!(first == generate(&[]) && first != generate(&["--seed", "2"]));
    assert!(
        generate(&["--temperature", "0"]) == generate(&["--temperature", "0", "--speculative", "4", "--seed", "9"])
    );
    assert_eq!(generate(&["--beam", "3", "--only"]).len(), first.len() - 24_000);
    let e = fails(1, &["generate", "--prompt", &wav, &dir.path("out.wav"), "--top-p", "0"]);
    assert!(e.contains("top-p 0 out of range"), "{e}");
}
