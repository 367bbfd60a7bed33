//! What silence that is described instead of sent does to words and to the room, with the shipped model.
#![cfg(feature = "full")]

#[allow(dead_code)]
#[path = "common/voice.rs"]
mod voice;

use std::path::Path;

use undertone::capture::AudioInput;
use undertone::codec::{Concealer, Decoder, Encoder, Processor, level_db};
use undertone::infer::load_model;
use undertone::rvq::BeamWidth;
use undertone::units::StageCount;
use voice::speech;

/// Samples of a frame.
const FRAME: usize = 480;

const WORDS: [&str; 6] = ["Front_Center", "Rear_Left", "Side_Right", "Front_Left", "Rear_Right", "Side_Left"];

/// A room: noise that falls by 6 dB an octave from 1 kHz on, at about -58 dB.
fn room(samples: usize) -> Vec<f32> {
    let (mut x, mut low) = (0x1234_5678_9ABC_DEFFu64, 0.0);
    let noise = std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let white = (x >> 40) as f32 / 8_388_608.0 - 1.0;
        low += 0.25 * (white - low);
        low * 0.006
    });
    noise.take(samples).collect()
}

/// Words from their first loud sample on; of a folder of other recordings if the environment names one.
fn words() -> Vec<Vec<f32>> {
    let all: Vec<Vec<f32>> = match std::env::var("UNDERTONE_WORDS") {
        Ok(folder) => {
            let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
            paths.sort();
            let read = |path: &Path| {
                let (mut input, mut pcm) = (AudioInput::open(path, None).unwrap(), Vec::new());
                while input.read(&mut pcm).unwrap() {}
                pcm
            };
            paths.iter().map(|p| read(p)).collect()
        }
        Err(_) => WORDS.iter().map(|w| speech(&[w])).collect(),
    };
    let begin = |pcm: &Vec<f32>| {
        let peak = pcm.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let first = pcm.iter().position(|v| v.abs() > 0.1 * peak).unwrap();
        pcm[first..].iter().copied().take(36_000).collect()
    };
    all.iter().map(begin).collect()
}

/// Codes and decodes, with silence left out or not; gives the samples, and the bundles that were sent of how many.
fn there_and_back(p: &mut Processor, pcm: &[f32], leave_out: bool) -> (Vec<f32>, usize, usize) {
    let mut encoder = Encoder::new(p.profile(), StageCount::new(12).unwrap(), 5).unwrap();
    encoder.set_job_frames(5);
    if leave_out {
        encoder.leave_out_silence();
    }
    encoder.push(pcm);
    encoder.finish();
    let mut decoder = Decoder::concealing(p.profile(), Concealer::new(None));
    let (mut out, mut sent, mut all) = (Vec::new(), 0, 0);
    while let Some(bundle) = p.encode(&mut encoder).unwrap() {
        all += 1;
        let Some(packed) = encoder.pack(&bundle) else { continue };
        sent += 1;
        if packed.is_background() {
            let codes = packed.unpack().unwrap().codes;
            decoder.push_background(packed.first_frame, packed.frames, &codes).unwrap();
        } else {
            decoder.push(bundle).unwrap();
        }
        p.decode(&mut decoder, &mut out).unwrap();
    }
    assert_eq!(decoder.missing_frames(), 0);
    (out.split_off(p.profile().overlap_samples()), sent, all)
}

/// Levels in dB below 1, 2, 4, 8 and 12 kHz, each from the one before on.
fn bands(pcm: &[f32]) -> [f64; 5] {
    let mut power = [0.0f64; 5];
    for frame in pcm.chunks_exact(FRAME) {
        for k in 0..24u32 {
            let turn = std::f64::consts::TAU * f64::from(2 * k + 1) * 250.0 / 24_000.0;
            let (mut re, mut im) = (0.0, 0.0);
            for (i, &v) in frame.iter().enumerate() {
                let window = 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / FRAME as f64).cos();
                re += window * f64::from(v) * (turn * i as f64).cos();
                im += window * f64::from(v) * (turn * i as f64).sin();
            }
            let band = [2, 4, 8, 16, 24].iter().position(|&end| k < end).unwrap();
            power[band] += re * re + im * im;
        }
    }
    power.map(|p| 10.0 * (p / (pcm.len() / FRAME) as f64 + 1e-12).log10())
}

#[test]
fn words_begin_whole_after_silence_and_silence_sounds_like_the_room() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2");
    let mut p = load_model(Some(&folder)).unwrap().processor(BeamWidth::new(1).unwrap()).unwrap();
    let (mut pcm, mut begins) = (vec![0.0; 30_000], Vec::new());
    for word in words() {
        // At every place of a bundle.
        pcm.resize(pcm.len() + 38_400 + begins.len() * 1_111 % 2_400, 0.0);
        begins.push(pcm.len());
        pcm.extend(word);
    }
    pcm.resize(pcm.len() + 60_000, 0.0);
    let noise = room(pcm.len());
    pcm.iter_mut().zip(&noise).for_each(|(p, n)| *p += n);
    let (whole, _, _) = there_and_back(&mut p, &pcm, false);
    let (quiet, sent, all) = there_and_back(&mut p, &pcm, true);
    let mut worst = 0.0f32;
    for &begin in &begins {
        let first = begin..begin + 2 * FRAME;
        let change = level_db(&quiet[first.clone()]) - level_db(&whole[first]);
        println!("begin at {begin}: {change:.2} dB");
        worst = worst.max(change.abs());
    }
    // The last second of the silence at the end.
    let end = pcm.len() - 26_400..pcm.len() - 2_400;
    let (original, sent_whole, made) = (bands(&pcm[end.clone()]), bands(&whole[end.clone()]), bands(&quiet[end]));
    println!("{sent} of {all} bundles were sent; bands\n{original:.1?}\n{sent_whole:.1?}\n{made:.1?}");
    // Of twenty recordings it was half a decibel at most; other processors round otherwise.
    assert!(worst < 1.5, "the first 40 ms of a word changed by {worst} dB");
    assert!(sent * 4 < all * 3, "{sent} of {all} bundles were sent");
    for ((before, after), original) in sent_whole.iter().zip(&made).zip(&original) {
        assert!((before - after).abs() < 3.0, "{sent_whole:.1?} and {made:.1?}, the room {original:.1?}");
    }
}
