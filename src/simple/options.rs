//! How sound is to be encoded.

use super::error::Error;
use crate::recording::Rate;
use crate::units::{CODEC_RATE, SampleRate, StageCount};

/// How sound is to be encoded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct EncoderOptions {
    /// How much it may take.
    pub rate: Rate,
    /// Rate of the samples that are pushed.
    pub sample_rate: SampleRate,
    /// Frames of 20 ms that travel together, 1 to 50; None takes what is usual: 5 live, more in files.
    pub bundle: Option<u8>,
}

impl EncoderOptions {
    /// That rate, samples at 24 kHz, and the usual bundles.
    pub fn new(rate: Rate) -> Self {
        Self { rate, sample_rate: CODEC_RATE, bundle: None }
    }

    /// Samples at another rate; they are resampled.
    #[must_use]
    pub fn sample_rate(mut self, rate: SampleRate) -> Self {
        self.sample_rate = rate;
        self
    }

    /// Bundles of so many frames, 1 to 50: fewer come sooner, more cost less beside their codes.
    #[must_use]
    pub fn bundle(mut self, frames: u8) -> Self {
        self.bundle = Some(frames);
        self
    }

    /// Stages of every frame.
    pub(super) fn stages(&self) -> Result<StageCount, Error> {
        match self.rate {
            Rate::Kbps(kbps) => Ok(StageCount::from_kbps(kbps)?),
            Rate::Stages(stages) => Ok(stages),
        }
    }
}
