//! The networks in plain Rust beside ONNX Runtime, with the shipped model: the same codes, the same sound; and the same bits on every
//! machine.

use std::path::Path;
use std::sync::OnceLock;

use safetensors::SafeTensors;
use undertone::bitstream::Bundle;
use undertone::codec::{Processor, decode_all, encode_all};
use undertone::infer::load_model;
use undertone::model::{DecodeRow, DecoderNet, EncodeRow, EncoderNet, Manifest, decoder_noise, sha256_hex};
use undertone::portable::{PortableDecoder, PortableEncoder, PortableModel};
use undertone::rvq::{BeamWidth, SimdLevel};
use undertone::units::StageCount;

const MODEL: &str = "models/undertone-24k-v2";

fn file(name: &str) -> Option<Vec<u8>> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL).join(name)).ok()
}

fn portable() -> &'static PortableModel {
    static MADE: OnceLock<PortableModel> = OnceLock::new();
    MADE.get_or_init(|| PortableModel::new(&file).unwrap())
}

fn onnx_runtime() -> Processor {
    load_model(Some(&Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL))).unwrap().processor(BeamWidth::GREEDY).unwrap()
}

/// A tensor of the golden example: the recipe's own figures for a second of a voice.
fn golden(name: &str) -> Vec<[u8; 4]> {
    let bytes = file("golden.safetensors").unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = tensors.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    assert!(!words.is_empty());
    words
}

fn golden_floats(name: &str) -> Vec<f32> {
    golden(name).into_iter().map(f32::from_le_bytes).collect()
}

/// The golden voice, a chord whose tones glide, and hiss that comes and goes.
fn recordings() -> Vec<(&'static str, Vec<f32>)> {
    let seconds = |n: usize| n as f32 / 24_000.0;
    let tone = |n, hz: f32| (std::f32::consts::TAU * hz * (seconds(n) + 0.1 * seconds(n) * seconds(n))).sin();
    let chord = (0..36_000).map(|n| 0.2 * (tone(n, 220.0) + tone(n, 331.0) + tone(n, 1_250.0))).collect();
    let mut hiss = vec![0.0; 24_000];
    decoder_noise(3, &mut hiss);
    for (n, x) in hiss.iter_mut().enumerate() {
        *x *= 0.2 * (0.5 - 0.5 * (std::f32::consts::TAU * 3.0 * seconds(n)).cos());
    }
    vec![("voice", golden_floats("pcm")), ("chord", chord), ("hiss", hiss)]
}

#[test]
fn codes_and_sound_are_those_of_onnx_runtime() {
    let (mut theirs, mut ours) = (onnx_runtime(), portable().processor(BeamWidth::GREEDY));
    let stages = StageCount::new(12).unwrap();
    let (mut frames, mut alike, mut worst) = (0, 0, 0.0f32);
    for (name, pcm) in recordings() {
        let wanted = encode_all(&mut theirs, &pcm, stages, 5).unwrap();
        let found = encode_all(&mut ours, &pcm, stages, 5).unwrap();
        assert_eq!(found.len(), wanted.len(), "{name}");
        for (a, b) in found.iter().zip(&wanted) {
            frames += a.by_frame().count();
            alike += a.by_frame().zip(b.by_frame()).filter(|(a, b)| a == b).count();
        }
        let (a, b) = (decode_all(&mut ours, &wanted).unwrap(), decode_all(&mut theirs, &wanted).unwrap());
        assert_eq!(a.len(), b.len(), "{name}");
        worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    println!("{alike} of {frames} frames alike, samples within {worst:e}");
    // A latent that lies between two entries may fall to either side by rounding alone; the sound is then the same to the ear.
    assert!(alike * 100 >= frames * 98, "{alike} of {frames} frames have the same codes");
    assert!(worst < 1e-4, "samples differ by {worst}");
}

#[test]
fn the_golden_example_comes_out() {
    let mut processor = portable().processor(BeamWidth::GREEDY);
    let profile = processor.profile();
    let pcm = golden_floats("pcm");
    let bundles = encode_all(&mut processor, &pcm, profile.stages, 50).unwrap();
    let mut codes: Vec<u16> = bundles.into_iter().flat_map(|b| b.codes).collect();
    let wanted: Vec<u16> = golden("codes").into_iter().map(|b| u16::try_from(i32::from_le_bytes(b)).unwrap()).collect();
    // The frame that carries the overlap is not in the example.
    codes.truncate(wanted.len());
    // After the first difference of a frame its other stages have another residual to find.
    let (mut same, mut compared) = (0, 0);
    for (found, wanted) in codes.chunks(profile.stages.index()).zip(wanted.chunks(profile.stages.index())) {
        let alike = found.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        (same, compared) = (same + alike, compared + (alike + 1).min(wanted.len()));
    }
    println!("{same} of {compared} golden codes");
    assert!(same * 100 >= compared * 99, "{same} of {compared} codes");
    let sound = decode_all(&mut processor, &golden_bundle(&wanted, profile.stages)).unwrap();
    let differences = sound.iter().zip(golden_floats("decoded")).map(|(a, b)| (a - b.clamp(-1.0, 1.0)).abs());
    let worst = differences.fold(0.0, f32::max);
    println!("golden samples within {worst:e}");
    assert!(worst < 2e-3, "samples differ by {worst}");
}

fn golden_bundle(codes: &[u16], stages: StageCount) -> [Bundle; 1] {
    let frames = u8::try_from(codes.len() / stages.index()).unwrap();
    [Bundle::new(0, frames, stages, codes.to_vec()).unwrap()]
}

/// Latents of the golden voice, then the decoder's samples of the golden latents, in calls of so many frames.
fn bits(level: SimdLevel, frames: usize) -> [String; 2] {
    let manifest = Manifest::parse(&file("manifest.toml").unwrap()).unwrap();
    let mut encoder = PortableEncoder::new(&file("encoder.onnx").unwrap(), &manifest, level).unwrap();
    let mut decoder = PortableDecoder::new(&file("decoder.onnx").unwrap(), &manifest, level).unwrap();
    let (pcm, latents) = (golden_floats("pcm"), golden_floats("latent"));
    let (mut made, mut sound) = (vec![0.0; latents.len()], vec![0.0; pcm.len()]);
    let mut state = vec![0.0; manifest.encoder.state_size];
    let size = frames * manifest.latent_dim;
    for (pcm, latents) in pcm.chunks(frames * 480).zip(made.chunks_mut(size)) {
        encoder.encode(&mut [EncodeRow { pcm, state: &mut state, latents }], pcm.len() / 480).unwrap();
    }
    let mut state = vec![0.0; manifest.decoder.state_size];
    for (i, (latents, pcm)) in latents.chunks(size).zip(sound.chunks_mut(frames * 480)).enumerate() {
        let count = pcm.len() / 480;
        let mut noise = vec![0.0; count * manifest.noise_dim];
        for (j, noise) in noise.chunks_mut(manifest.noise_dim).enumerate() {
            decoder_noise((i * frames + j) as u64, noise);
        }
        decoder.decode(&mut [DecodeRow { latents, noise: &noise, state: &mut state, pcm }], count).unwrap();
    }
    [made, sound].map(|values| sha256_hex(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
}

#[test]
fn every_machine_and_every_call_gives_the_same_bits() {
    let wanted = [
        "ec98b57137262b269662023e1ec098da49e5857f743a602f62d98eae23fe2643",
        "c3c7ac1f8a2b6d5bc402d3987e586d24f56ef3d5dfb6f823b8013b6f73e4c1fc",
    ];
    for level in SimdLevel::available() {
        assert_eq!(bits(level, 50), wanted, "{level:?}");
    }
    for frames in [1, 7] {
        assert_eq!(bits(SimdLevel::detect(), frames), wanted, "in calls of {frames} frames");
    }
}

#[test]
fn a_model_with_a_file_of_another_is_refused() {
    let changed = |name: &str| {
        let mut content = file(name)?;
        if name == "decoder.onnx" {
            content[1000] ^= 1;
        }
        Some(content)
    };
    let e = PortableModel::new(&changed).unwrap_err().to_string();
    assert!(e.contains("decoder.onnx") && e.contains("SHA-256"), "{e}");
    let lacking = |name: &str| if name == "encoder.onnx" { None } else { file(name) };
    let e = PortableModel::new(&lacking).unwrap_err().to_string();
    assert!(e.contains("encoder.onnx"), "{e}");
    // Bytes that are no graph, or a graph with something else in it, are an error and no panic.
    let manifest = Manifest::parse(&file("manifest.toml").unwrap()).unwrap();
    let encoder = file("encoder.onnx").unwrap();
    for cut in [0, 1, 100, encoder.len() / 2, encoder.len() - 1] {
        assert!(PortableEncoder::new(&encoder[..cut], &manifest, SimdLevel::Scalar).is_err(), "{cut}");
    }
    assert!(PortableDecoder::new(&encoder, &manifest, SimdLevel::Scalar).is_err());
}
