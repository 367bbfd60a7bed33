//! Keeping coded streams of unknown length at their rate.

use super::guess_stages;
use crate::codec::{BitReservoir, Grading, Loudness, level_db};
use crate::units::CODEC_RATE;

/// Samples from the start of a recording that are encoded on trial: a minute. Longer ones are then steered.
pub(super) const TRIAL_SAMPLES: usize = 60 * CODEC_RATE.hz() as usize;

/// Steers a stream whose end is not known, or a recording after its trial.
pub(super) struct Steering {
    grading: Grading,
    reservoir: BitReservoir,
    /// None: the level is known from the trial.
    loudness: Option<Loudness>,
    /// Frames that are left alone at the start.
    spared: u32,
}

impl Steering {
    /// After a trial of `spared` frames.
    pub(super) fn after(grading: Grading, kbps: f64, spared: u32) -> Self {
        Self { grading, reservoir: BitReservoir::new(kbps as f32), loudness: None, spared }
    }

    /// From the first frame.
    pub(super) fn live(kbps: f64) -> Self {
        let loudness = Some(Loudness::default());
        let grading = Grading::new(guess_stages(kbps) as f32, Loudness::default().mean_db());
        Self { grading, reservoir: BitReservoir::new(kbps as f32), loudness, spared: 0 }
    }

    /// Notes samples `[frames * frame_samples]` that are about to be encoded.
    pub(super) fn hear(&mut self, pcm: &[f32], frame_samples: usize) {
        if let Some(loudness) = &mut self.loudness {
            pcm.chunks_exact(frame_samples).for_each(|f| loudness.push(level_db(f)));
            self.grading.pivot_db = loudness.mean_db();
        }
    }

    /// Notes what a bundle took.
    pub(super) fn spent(&mut self, frames: u8, bytes: usize) {
        let frames = u32::from(frames);
        if self.spared >= frames {
            self.spared -= frames;
        } else {
            self.reservoir.spent(frames, bytes as u64 * 8);
        }
    }

    /// What the next frames get.
    pub(super) fn grading(&self) -> Grading {
        Grading { base: self.grading.base + self.reservoir.correction(), ..self.grading }
    }
}
