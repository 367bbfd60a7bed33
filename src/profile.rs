//! Every number of a codec model, in one place.

use std::time::Duration;

use crate::units::{CODEC_RATE, ModelId, StageCount};

/// Most frames in a bundle: one second.
pub const MAX_FRAMES_PER_BUNDLE: u8 = 50;

/// Numbers that follow from a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Which codes these are.
    pub model_id: ModelId,
    /// Name of the model.
    pub name: String,
    /// Samples of a frame.
    pub frame_samples: usize,
    /// Algorithmic delay in samples, the frame included.
    pub delay_samples: usize,
    /// Width of a latent.
    pub latent_dim: usize,
    /// Entries of a codebook.
    pub entries: usize,
    /// Random numbers the decoder takes for one frame.
    pub noise_dim: usize,
    /// Stages of the model.
    pub stages: StageCount,
    /// Floats of an encoder's state.
    pub encoder_state: usize,
    /// Floats of a decoder's state.
    pub decoder_state: usize,
}

impl Profile {
    /// Samples of silence after a recording of `samples` so that everything of it can be decoded.
    pub fn padding(&self, samples: u64) -> usize {
        let frame = self.frame_samples as u64;
        let frames = (samples + self.overlap_samples() as u64).div_ceil(frame);
        (frames * frame - samples) as usize
    }

    /// Length of frames on the clock.
    pub fn media_time(&self, frames: u8) -> Duration {
        Duration::from_secs_f64(f64::from(frames) * self.frame_samples as f64 / f64::from(CODEC_RATE.hz()))
    }

    /// Samples by which decoded audio lags the original when both run frame by frame: the synthesis overlap.
    pub fn overlap_samples(&self) -> usize {
        self.delay_samples - self.frame_samples
    }
}
