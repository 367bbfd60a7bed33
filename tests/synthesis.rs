//! Analysis by synthesis with the shipped model: it comes closer, leaves silence alone, and refuses what does not fit.
#![cfg(feature = "full")]

#[path = "common/voice.rs"]
mod voice;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use undertone::bitstream::Bundle;
use undertone::codec::{Encoder, Processor};
use undertone::infer::{LoadedModel, load_model};
use undertone::referee::estoi;
use undertone::rvq::BeamWidth;
use undertone::synthesis::{Refiner, analyse_all};
use undertone::units::StageCount;
use voice::{at_16_khz, decode, speech};

const VOICE: [&str; 2] = ["Front_Center", "Side_Right"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

fn model() -> LoadedModel {
    load_model(Some(&folder())).unwrap()
}

fn processor(model: &LoadedModel) -> Processor {
    model.processor(BeamWidth::new(2).unwrap()).unwrap()
}

fn there_and_back(p: &mut Processor, pcm: &[f32], latents: &[f32], stages: u8) -> Vec<f32> {
    let mut encoder = Encoder::new(p.profile(), StageCount::new(stages).unwrap(), 25).unwrap();
    encoder.set_job_frames(25);
    encoder.push(pcm);
    encoder.push_latents(latents);
    encoder.finish();
    let bundles: Vec<Bundle> = std::iter::from_fn(|| p.encode(&mut encoder).unwrap()).collect();
    decode(p, &bundles, pcm.len())
}

fn searched(p: &mut Processor, refiner: &mut Refiner, pcm: &[f32]) -> Vec<f32> {
    analyse_all(p, Some(refiner), pcm).unwrap()
}

#[test]
fn searched_speech_is_more_intelligible_with_the_same_codes_to_send() {
    let (model, pcm) = (model(), speech(&VOICE));
    let (mut p, mut refiner) = (processor(&model), model.refiner(20).unwrap().unwrap());
    let plain = analyse_all(&mut p, None, &pcm).unwrap();
    let better = searched(&mut p, &mut refiner, &pcm);
    let original = at_16_khz(&pcm);
    for stages in [12, 20] {
        let mut score =
            |latents: &[f32]| estoi(&original, &at_16_khz(&there_and_back(&mut p, &pcm, latents, stages))).unwrap();
        let (before, after) = (score(&plain), score(&better));
        assert!(after > before + 0.001, "{stages} stages: {before} -> {after}");
    }
}

#[test]
fn a_search_without_a_look_ahead_comes_closer_too() {
    let (model, mut pcm) = (model(), speech(&VOICE));
    let mut refiner = model.refiner(10).unwrap().unwrap();
    let (frame, dim) = (model.profile.frame_samples, model.profile.latent_dim);
    pcm.truncate(pcm.len() / (5 * frame) * 5 * frame);
    let mut latents = analyse_all(&mut processor(&model), None, &pcm).unwrap();
    let (mut first, mut last) = (0.0, 0.0);
    for (pcm, latents) in pcm.chunks_exact(5 * frame).zip(latents.chunks_exact_mut(5 * dim)) {
        let progress = refiner.refine(pcm, latents, 5).unwrap();
        first += progress.first;
        last += progress.last;
    }
    assert!(last < 0.95 * first, "{first} -> {last}");
}

#[test]
fn silence_around_speech_stays_silent() {
    let model = model();
    let (mut p, mut refiner) = (processor(&model), model.refiner(10).unwrap().unwrap());
    let voice = speech(&VOICE);
    let pcm = [vec![0.0; 24_000], voice.clone(), vec![0.0; 48_000]].concat();
    let latents = searched(&mut p, &mut refiner, &pcm);
    let out = there_and_back(&mut p, &pcm, &latents, 12);
    let db = |x: &[f32]| 10.0 * (x.iter().map(|v| f64::from(v * v)).sum::<f64>() / x.len() as f64 + 1e-20).log10();
    let (before, after) = (db(&out[..12_000]), db(&out[24_000 + voice.len() + 24_000..]));
    assert!(before < -70.0 && after < -70.0, "{before:.1} dB before, {after:.1} dB after");
}

#[test]
fn a_gradient_of_another_decoder_is_refused_and_one_that_is_missing_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder()).unwrap() {
        let file = file.unwrap();
        // Without files.toml, which would refuse the changed file first.
        if file.file_name() != "gradient.onnx" && file.file_name() != "files.toml" {
            std::fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
        }
    }
    let load = || load_model(Some(dir.path())).unwrap();
    assert!(load().refiner(5).unwrap().is_none());
    let mut graph = std::fs::read(folder().join("gradient.onnx")).unwrap();
    let hash = load().manifest.decoder.sha256.clone();
    let at = graph.windows(64).position(|w| w == hash.as_bytes()).unwrap();
    graph[at] = if graph[at] == b'0' { b'1' } else { b'0' };
    std::fs::write(dir.path().join("gradient.onnx"), &graph).unwrap();
    let message = load().refiner(5).unwrap_err().to_string();
    assert!(message.contains("another graph") && message.contains(&hash[1..]), "{message}");
    std::fs::write(dir.path().join("gradient.onnx"), b"no graph").unwrap();
    assert!(load().refiner(5).unwrap_err().to_string().contains("gradient"));
}

#[test]
fn a_refiner_can_be_used_for_one_recording_after_another() {
    let model = Arc::new(model());
    let pcm = speech(&VOICE);
    let (mut p, mut refiner) = (processor(&model), model.refiner(2).unwrap().unwrap());
    let first = searched(&mut p, &mut refiner, &pcm[..24_000]);
    searched(&mut p, &mut refiner, &pcm);
    assert_eq!(searched(&mut p, &mut refiner, &pcm[..24_000]), first);
}
