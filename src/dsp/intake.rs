//! The one door through which samples from outside come in, whatever brought them.

use super::{Downmix, Resampler};
use crate::units::{CODEC_RATE, SampleRate};

/// Largest sample that is believed, in units of full scale: 24 dB above it. Recordings in floats may be louder than full scale; nothing
/// that a microphone or a mix made is as loud as this.
pub const MAX_SAMPLE: f32 = 16.0;

/// The sample, or None if it cannot be used: not a number, infinite, or beyond [`MAX_SAMPLE`].
pub fn usable_sample(x: f32) -> Option<f32> {
    // NaN is not within either.
    (x.abs() <= MAX_SAMPLE).then_some(x)
}

/// Interleaved samples of any rate and number of channels -> mono samples at the codec's rate.
///
/// What cannot be used becomes silence and is counted: one such value would spoil everything that a resampler, a level or a
/// network makes of its neighbours.
#[derive(Debug)]
pub struct Intake {
    rate: SampleRate,
    downmix: Downmix,
    resampler: Resampler,
    sample: Vec<f32>,
    mono: Vec<f32>,
    unusable: u64,
}

impl Intake {
    /// At the start of a recording or stream of this rate.
    pub fn new(rate: SampleRate, downmix: Downmix) -> Self {
        let resampler = Resampler::new(rate, CODEC_RATE);
        Self { rate, downmix, resampler, sample: Vec::new(), mono: Vec::new(), unusable: 0 }
    }

    /// Goes on with another rate or other channels; what the old ones left is appended to `out`.
    pub fn change(&mut self, rate: SampleRate, downmix: Downmix, out: &mut Vec<f32>) {
        if rate != self.rate {
            self.resampler.finish(out);
            self.resampler = Resampler::new(rate, CODEC_RATE);
            self.rate = rate;
        }
        self.sample.clear();
        self.downmix = downmix;
    }

    /// Appends what `interleaved` becomes to `out`. The values of one sample may come in several calls.
    pub fn push(&mut self, interleaved: impl IntoIterator<Item = f32>, out: &mut Vec<f32>) {
        self.mono.clear();
        for x in interleaved {
            self.unusable += u64::from(usable_sample(x).is_none());
            self.sample.push(usable_sample(x).unwrap_or(0.0));
            if self.sample.len() == self.downmix.channels() {
                self.mono.push(self.downmix.mix(&self.sample));
                self.sample.clear();
            }
        }
        self.resampler.push(&self.mono, out);
    }

    /// Ends the input: appends what is held back. An incomplete last sample is dropped.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        self.sample.clear();
        self.resampler.finish(out);
    }

    /// Values that could not be used so far.
    pub fn unusable(&self) -> u64 {
        self.unusable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32) -> Vec<f32> {
        (0..rate).map(|n| (n as f32 * 440.0 * std::f32::consts::TAU / rate as f32).sin() * 0.3).collect()
    }

    #[test]
    fn what_cannot_be_used_is_silence_and_spoils_nothing_else() {
        for rate in [24_000, 48_000, 44_100] {
            let through = |x: &[f32]| {
                let mut intake = Intake::new(SampleRate::new(rate).unwrap(), Downmix::mean(1));
                let mut out = Vec::new();
                x.chunks(1_001).for_each(|chunk| intake.push(chunk.iter().copied(), &mut out));
                intake.finish(&mut out);
                (out, intake.unusable())
            };
            let mut zeroed = tone(rate);
            zeroed[5_000] = 0.0;
            let (want, none) = through(&zeroed);
            assert_eq!((none, want.len()), (0, 24_000));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20, -1e20, f32::MAX, 16.5, -1_000.0] {
                let mut spoilt = tone(rate);
                spoilt[5_000] = bad;
                assert_eq!(through(&spoilt), (want.clone(), 1), "{bad} at {rate} Hz");
            }
        }
    }

    #[test]
    fn loud_floats_are_no_fault() {
        let mut intake = Intake::new(CODEC_RATE, Downmix::mean(1));
        let mut out = Vec::new();
        intake.push([1.5, -4.0, 16.0, f32::MIN_POSITIVE / 2.0], &mut out);
        assert_eq!((out, intake.unusable()), (vec![1.5, -4.0, 16.0, f32::MIN_POSITIVE / 2.0], 0));
    }

    #[test]
    fn rate_and_channels_may_change() {
        let rate = |hz| SampleRate::new(hz).unwrap();
        let mut intake = Intake::new(rate(48_000), Downmix::mean(2));
        let mut out = Vec::new();
        intake.push(vec![0.5; 96_000], &mut out);
        intake.change(rate(16_000), Downmix::mean(1), &mut out);
        assert_eq!(out.len(), 24_000);
        intake.push(vec![0.5; 16_000], &mut out);
        intake.finish(&mut out);
        assert_eq!(out.len(), 48_000);
    }
}
