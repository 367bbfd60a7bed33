//! Every number of a codec model, in one place.

use crate::model::Manifest;
use crate::units::{ModelId, StageCount};

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
    /// Numbers of a checked manifest.
    pub fn from_manifest(m: &Manifest) -> Self {
        Self {
            model_id: m.id,
            name: m.name.clone(),
            frame_samples: m.frame_samples,
            delay_samples: m.delay_samples,
            latent_dim: m.latent_dim,
            entries: m.entries,
            noise_dim: m.noise_dim,
            stages: u8::try_from(m.stages).ok().and_then(|s| StageCount::new(s).ok()).unwrap_or(StageCount::MAX),
            encoder_state: m.encoder.state_size,
            decoder_state: m.decoder.state_size,
        }
    }

    /// Samples of silence after a recording of `samples` so that everything of it can be decoded.
    pub fn padding(&self, samples: u64) -> usize {
        let frame = self.frame_samples as u64;
        let frames = (samples + self.overlap_samples() as u64).div_ceil(frame);
        (frames * frame - samples) as usize
    }

    /// Samples by which decoded audio lags the original when both run frame by frame: the synthesis overlap.
    pub fn overlap_samples(&self) -> usize {
        self.delay_samples - self.frame_samples
    }
}
