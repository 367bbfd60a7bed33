//! WebAssembly and this machine make the same of the same bytes: the module runs under node, its parts run here.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use codec::bitstream::Form;
use codec::session::{Close, Message, PackedBundle, Reason, SessionEncoder, ThinWriter, Wire};
use codec::wire::{Framer, encode};
use codec::{Encoder, EncoderOptions, Model, Rate, StageCount};
use undertone_web::dialog::End;
use undertone_web::listening::Listening;
use undertone_web::publishing::Publishing;

const STAGES: u8 = 12;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model() -> Model {
    Model::open(root().join("models/undertone-24k-v2")).unwrap()
}

/// A voice-like sound: gliding harmonics that come and go, and a breath of hiss.
fn sound(seconds: f64, rate: f64) -> Vec<f32> {
    let (mut phase, mut noise) = (0.0f64, 1u32);
    (0..(seconds * rate) as usize)
        .map(|n| {
            let t = n as f64 / rate;
            phase += (110.0 + 40.0 * (2.0 * t).sin()) / rate * std::f64::consts::TAU;
            let voiced = (1..12).map(|h| (phase * f64::from(h)).sin() / f64::from(h)).sum::<f64>();
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let hiss = f64::from(noise >> 8) / f64::from(1 << 24) - 0.5;
            (0.15 * voiced * (3.0 * t).sin().max(0.0) + 0.01 * hiss) as f32
        })
        .collect()
}

/// What a daemon says that codes with the same token model.
fn ack(model: &Model, coded: bool) -> Message {
    Message::HelloAck {
        version: 1,
        model_id: model.profile().model_id,
        stages: StageCount::new(STAGES).unwrap(),
        coding: model.tokens().filter(|_| coded).map(|t| t.id()),
        wire: Wire::ALL,
    }
}

/// A session of 10 s: a second is lost in the middle, and one is silence that is described only. Pieces `(ms, bytes)`; without bytes
/// silence goes on.
fn session(model: &Model, coded: bool) -> Vec<(f64, Vec<u8>)> {
    let options = EncoderOptions::new(Rate::Stages(StageCount::new(STAGES).unwrap()));
    let mut encoder = Encoder::with(model, &options).unwrap();
    let bundles = encoder.push(&sound(10.0, 24_000.0)).unwrap();
    let mut coder = SessionEncoder::new(model.tokens().unwrap().clone()).on(Wire::ALL);
    let mut thin = ThinWriter::default();
    let mut pieces = Vec::new();
    let mut bytes = Vec::new();
    encode(&ack(model, coded), &mut bytes);
    for (bundle, n) in bundles.iter().zip(0u64..) {
        let (now, mut said) = (100.0 * n as f64 + 3.0, std::mem::take(&mut bytes));
        let packed = match n {
            40..45 => continue,
            60 => PackedBundle::background(bundle.first_frame, bundle.frames, &bundle.codes[..2]).unwrap(),
            61..70 => {
                pieces.push((now, said));
                continue;
            }
            _ => PackedBundle::pack(bundle),
        };
        let message = if coded && packed.form != Form::Background {
            let (bundle, checked) = coder.encode(&packed).unwrap();
            Message::Coded { sequence: n, bundle, checked }
        } else {
            coder.silence();
            Message::Bundle { sequence: n, bundle: packed }
        };
        encode(&thin.thin(message), &mut said);
        pieces.push((now, said));
    }
    let mut said = Vec::new();
    encode(&Message::Close(Close::new(Reason::StreamEnded, "")), &mut said);
    pieces.push((10_050.0, said));
    pieces
}

fn write(path: &Path, pieces: &[(f64, Vec<u8>)]) {
    let mut all = Vec::new();
    for (now, bytes) in pieces {
        all.extend_from_slice(&now.to_le_bytes());
        all.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        all.extend_from_slice(bytes);
    }
    std::fs::write(path, all).unwrap();
}

/// What the module makes of an input.
fn under_node(what: &str, pieces: &[(f64, Vec<u8>)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    write(&input, pieces);
    let module = root().join("target/web/undertone.wasm");
    assert!(module.exists(), "{}: `make web` builds it", module.display());
    let run = Command::new("node")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run.js"))
        .args([root().join("src/service/web/codec.js"), module, root().join("models/undertone-24k-v2")])
        .arg(what)
        .args([&input, &output])
        .output()
        .expect("node is there: `make test-web` installs it");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    print!("{what}: {}", String::from_utf8_lossy(&run.stdout));
    std::fs::read(output).unwrap()
}

fn listen_here(model: &Model, pieces: &[(f64, Vec<u8>)]) -> (Vec<f32>, u64) {
    let mut session = Listening::new(model, "main", "secret", StageCount::MAX).unwrap();
    let mut pcm = Vec::new();
    for (now, bytes) in pieces {
        let now = Duration::from_secs_f64(now / 1e3);
        match bytes.is_empty() {
            true => session.be_quiet(now, &mut pcm).unwrap(),
            false => match session.receive(bytes, now, &mut pcm) {
                Ok(()) => {}
                Err(End::Done(text)) => assert_eq!(text, "The stream ended"),
                Err(End::Failed(text)) => panic!("{text}"),
            },
        }
    }
    (pcm, session.figures().missing)
}

#[test]
#[ignore = "needs node and the module: make test-web"]
fn samples_of_the_module_are_those_of_this_machine() {
    let model = model();
    for coded in [true, false] {
        let pieces = session(&model, coded);
        let (here, missing) = listen_here(&model, &pieces);
        // 10 s, less what of the gap is not filled: no more than 200 ms are made up.
        assert!(
            missing >= 10 && (225_000..=240_000).contains(&here.len()),
            "{missing} missing, {} samples",
            here.len()
        );
        assert!(here.iter().map(|x| f64::from(x * x)).sum::<f64>() / here.len() as f64 > 1e-4, "no sound");
        let there = under_node("listen", &pieces);
        let there: Vec<f32> = there.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        assert_eq!(here.len(), there.len());
        let different = here.iter().zip(&there).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        let most = here.iter().zip(&there).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        assert_eq!(different, 0, "coded {coded}: {different} of {} samples differ, by {most:e} at most", here.len());
    }
}

#[test]
#[ignore = "needs node and the module: make test-web"]
fn codes_of_the_module_are_those_of_this_machine() {
    let model = model();
    let pcm = sound(6.0, 48_000.0);
    let mut pieces = Vec::new();
    let mut said = vec![b'm'];
    encode(&ack(&model, true), &mut said);
    pieces.push((0.0, said));
    for (samples, n) in pcm.chunks(1_280).zip(0u32..) {
        let piece = [b's'].into_iter().chain(samples.iter().flat_map(|s| s.to_le_bytes())).collect();
        pieces.push((f64::from(n) * 26.0, piece));
    }
    let mut here = Publishing::new(&model, "mic", "secret", 6.0, 48_000).unwrap();
    let mut sent = here.dialog().take();
    for (_, piece) in &pieces {
        match piece[0] {
            b'm' => here.receive(&piece[1..]).unwrap(),
            _ => {
                let (samples, _) = piece[1..].as_chunks::<4>();
                here.sound(&samples.iter().map(|&b| f32::from_le_bytes(b)).collect::<Vec<_>>()).unwrap();
            }
        }
        sent.append(&mut here.dialog().take());
    }
    here.finish().unwrap();
    sent.append(&mut here.dialog().take());
    let kbps = sent.len() as f64 * 8.0 / 6.0 / 1e3;
    assert!((3.0..6.5).contains(&kbps), "{kbps} kbit/s at a rate of 6");
    assert!(under_node("publish", &pieces) == sent, "the module sends other bytes");
    // And they are messages: Hello, bundles, the end.
    let mut framer = Framer::default();
    framer.push(&sent);
    let all: Vec<Message> = std::iter::from_fn(|| framer.next().unwrap()).collect();
    assert!(matches!(all.first(), Some(Message::Hello(h)) if h.token == "secret"));
    assert!(matches!(all.last(), Some(Message::Close(_))) && all.len() > 50, "{} messages", all.len());
}

#[test]
fn bad_names_rates_and_bytes_are_errors_that_name_them() {
    let model = model();
    let error = |end: End| match end {
        End::Failed(text) => text,
        End::Done(text) => panic!("no error: {text}"),
    };
    assert!(error(Listening::new(&model, "a b", "", StageCount::MAX).unwrap_err()).contains("a b"));
    assert!(error(Publishing::new(&model, "mic", "", 13.0, 48_000).unwrap_err()).contains("13"));
    assert!(error(Publishing::new(&model, "mic", "", 6.0, 7).unwrap_err()).contains('7'));
    let mut session = Listening::new(&model, "main", "", StageCount::MAX).unwrap();
    let mut pcm = Vec::new();
    assert!(session.receive(&[0xFF; 6], Duration::ZERO, &mut pcm).is_err());
    let mut bundle = Vec::new();
    encode(&Message::Bundle { sequence: 0, bundle: PackedBundle::background(0, 5, &[1, 2]).unwrap() }, &mut bundle);
    let mut session = Listening::new(&model, "main", "", StageCount::MAX).unwrap();
    let text = error(session.receive(&bundle, Duration::ZERO, &mut pcm).unwrap_err());
    assert!(text.contains("HelloAck"), "{text}");
}
