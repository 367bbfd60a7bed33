//! The codec in a few lines, with the shipped model: files, streams, bundles, tokens.

use std::path::Path;
use std::sync::OnceLock;

use undertone::{Decoder, Encoder, EncoderOptions, Error, Model, Rate, SampleRate, StreamDecoder, StreamEncoder};

fn model() -> &'static Model {
    static MADE: OnceLock<Model> = OnceLock::new();
    MADE.get_or_init(|| Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")).unwrap())
}

/// A tone that glides.
fn tone(samples: usize, rate: f32) -> Vec<f32> {
    let t = |n: usize| n as f32 / rate;
    (0..samples).map(|n| 0.3 * (std::f32::consts::TAU * (180.0 + 40.0 * t(n)) * t(n)).sin()).collect()
}

fn level(pcm: &[f32]) -> f32 {
    (pcm.iter().map(|x| x * x).sum::<f32>() / pcm.len() as f32).sqrt()
}

#[test]
fn bundles_are_the_same_for_any_pieces() {
    let pcm = tone(12_000, 24_000.0);
    let mut whole = Encoder::new(model(), Rate::kbps(6.0)).unwrap();
    let mut wanted = whole.push(&pcm).unwrap();
    wanted.extend(whole.finish().unwrap());
    let mut parts = Encoder::new(model(), Rate::kbps(6.0)).unwrap();
    let mut found: Vec<_> = pcm.chunks(777).flat_map(|piece| parts.push(piece).unwrap()).collect();
    found.extend(parts.finish().unwrap());
    assert_eq!(found, wanted);
    assert_eq!(wanted[0].stages.value(), 12);
    let mut decoder = Decoder::new(model());
    let mut sound = decoder.push(wanted[0].clone()).unwrap();
    sound.extend(decoder.lose(1).unwrap());
    assert_eq!(sound.len(), 6 * 480);
    assert!(matches!(Encoder::new(model(), Rate::kbps(6.2)), Err(Error::Range(_))));
    let wide = EncoderOptions::new(Rate::kbps(6.0)).bundle(51);
    assert!(matches!(Encoder::with(model(), &wide), Err(Error::Codec(_))));
}

#[test]
fn a_stream_of_bytes_is_as_long_as_its_recording() {
    let pcm = tone(44_100, 44_100.0);
    let options = EncoderOptions::new(Rate::kbps(6.0)).sample_rate(SampleRate::new(44_100).unwrap());
    let (mut encoder, mut decoder) = (StreamEncoder::new(model(), &options).unwrap(), StreamDecoder::new(model()));
    let (mut bytes, mut sound) = (Vec::new(), Vec::new());
    pcm.chunks(1_000).for_each(|piece| encoder.push(piece, &mut bytes).unwrap());
    encoder.finish(&mut bytes).unwrap();
    encoder.push(&pcm, &mut bytes).unwrap();
    bytes.chunks(99).for_each(|piece| decoder.push(piece, &mut sound).unwrap());
    decoder.finish(&mut sound).unwrap();
    assert!(decoder.is_ended());
    assert!(sound.len().abs_diff(24_000) <= 1, "{}", sound.len());
    assert!((0.15..0.27).contains(&level(&sound)), "{}", level(&sound));
    assert_eq!(model().decode(&bytes).unwrap(), sound);
    // Up to a cut it decodes, and the cut is told.
    let mut cut = StreamDecoder::new(model());
    let mut before = Vec::new();
    cut.push(&bytes[..bytes.len() - 20], &mut before).unwrap();
    assert!(matches!(cut.finish(&mut before), Err(Error::Cut { frames }) if frames > 40));
    assert!(before.len() > 20_000);
    assert!(model().decode(b"no stream").is_err());
}

#[test]
fn a_whole_file_keeps_its_rate_and_has_likely_codes() {
    let pcm = tone(36_000, 24_000.0);
    let bytes = model().encode(&pcm, &EncoderOptions::new(Rate::kbps(3.0))).unwrap();
    assert!(bytes.len() * 8 * 2 < 3 * 3_400, "{} bytes", bytes.len());
    assert_eq!(model().decode(&bytes).unwrap().len(), pcm.len());
    let stages = undertone::StageCount::new(2).unwrap();
    let mut encoder = Encoder::new(model(), Rate::Stages(stages)).unwrap();
    let codes: Vec<u16> = encoder.push(&pcm).unwrap().into_iter().flat_map(|b| b.codes).collect();
    let likelihoods = model().log_likelihoods(&codes, stages).unwrap();
    assert_eq!(likelihoods.len(), codes.len());
    assert!(likelihoods.iter().all(|l| *l < 0.0));
    // Those of everything that a frame may begin with are probabilities.
    let one = undertone::StageCount::ONE;
    let first = |code: u16| model().log_likelihoods(&[code], one).unwrap()[0];
    let sum: f64 = (0..1_024).map(|code| first(code).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    assert!(matches!(model().log_likelihoods(&codes[1..], stages), Err(Error::Codes { .. })));
    assert!(matches!(model().log_likelihoods(&[1_024, 0], stages), Err(Error::Codec(_))));
}
