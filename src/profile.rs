//! Every number of a codec model, in one place.

use std::time::Duration;

use crate::units::{CODEC_RATE, ModelId, OutOfRange, StageCount};

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

/// What every model has in common, because the format says so.
impl Profile {
    /// Samples of a frame.
    pub const FRAME_SAMPLES: usize = 480;
    /// Frames in a second.
    pub const FRAMES_PER_SECOND: u32 = CODEC_RATE.hz() / Self::FRAME_SAMPLES as u32;
    /// Length of a frame on the clock.
    pub const FRAME_TIME: Duration = Duration::from_millis(1_000 / Self::FRAMES_PER_SECOND as u64);
    /// Most frames in a bundle: one second.
    pub const MAX_FRAMES_PER_BUNDLE: u8 = Self::FRAMES_PER_SECOND as u8;
    /// Bits of a packed code.
    pub const BITS_PER_CODE: u32 = 10;
    /// Rate of a stage's packed codes.
    pub const KBPS_PER_STAGE: f64 = (Self::BITS_PER_CODE * Self::FRAMES_PER_SECOND) as f64 / 1_000.0;
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

impl StageCount {
    /// The stages that fit into a rate: the nearest multiple of 0.5 kbit/s.
    ///
    /// # Errors
    /// `OutOfRange` unless 0.5 to 12 kbit/s.
    pub fn from_kbps(kbps: f64) -> Result<Self, OutOfRange> {
        let error =
            || OutOfRange { what: "rate in kbit/s", got: kbps.to_string(), allowed: "0.5 to 12 in steps of 0.5" };
        let stages = kbps / Profile::KBPS_PER_STAGE;
        if !(stages - stages.round()).abs().le(&1e-6) {
            return Err(error());
        }
        Self::new(stages.round() as u8).map_err(|_| error())
    }

    /// Payload rate of packed codes.
    pub fn kbps(self) -> f64 {
        f64::from(self.value()) * Profile::KBPS_PER_STAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_steps_of_half_a_kilobit() {
        assert_eq!(StageCount::from_kbps(6.0).unwrap().value(), 12);
        assert_eq!(StageCount::from_kbps(0.5).unwrap().value(), 1);
        for bad in [0.0, 0.3, 1.2, 12.5, f64::NAN, f64::INFINITY, -1.0] {
            let e = StageCount::from_kbps(bad).unwrap_err().to_string();
            assert!(e.contains(&bad.to_string()) && e.contains("0.5 to 12"), "{e}");
        }
    }
}
