//! A recorded voice, and its way through the codec.
#![allow(unreachable_pub)]

use std::path::Path;

use undertone::bitstream::Bundle;
use undertone::capture::AudioInput;
use undertone::codec::{Processor, decode_all};
use undertone::dsp::Resampler;
use undertone::units::{CODEC_RATE, SampleRate};

/// Debian's recordings of these names, one after the other, at 24 kHz.
pub fn speech(names: &[&str]) -> Vec<f32> {
    let mut pcm = Vec::new();
    for name in names {
        let path = format!("/usr/share/sounds/alsa/{name}.wav");
        let mut input = AudioInput::open(Path::new(&path), None).unwrap();
        while input.read(&mut pcm).unwrap() {}
    }
    pcm
}

pub fn at_16_khz(pcm: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    let mut resampler = Resampler::new(CODEC_RATE, SampleRate::new(16_000).unwrap());
    resampler.push(pcm, &mut out);
    resampler.finish(&mut out);
    out
}

/// What a recording of `samples` comes back as, in its place.
pub fn decode(p: &mut Processor, bundles: &[Bundle], samples: usize) -> Vec<f32> {
    let lag = p.profile().overlap_samples();
    let mut out = decode_all(p, bundles).unwrap().split_off(lag);
    out.truncate(samples);
    assert!(out.iter().all(|v| v.is_finite()));
    out
}
