//! How many stages a coded recording gets so that it stays within a rate.

use std::sync::Arc;

use anyhow::Result;

use crate::bitstream::StreamHeader;
use crate::codec::{Encoder, Grading, Loudness, Processor, RateControl, level_db};
use crate::entropy::StreamWriter;
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, StageCount};

/// What a coded stage of speech takes on average, kbit/s: the first guess, and all there is to go by on a pipe.
const TYPICAL_KBPS: f64 = 0.37;

/// Samples from the start of a recording that are encoded on trial: a minute. Longer ones are then steered.
pub(super) const TRIAL_SAMPLES: usize = 60 * 24_000;

/// Trials, and how much of the rate the best may leave unused.
const TRIALS: usize = 6;
const CLOSE: f64 = 0.985;

/// Stages for a rate that nobody has tried yet.
pub(super) fn guess(kbps: f64) -> f64 {
    kbps / TYPICAL_KBPS
}

/// What a recording is encoded with.
#[derive(Clone)]
pub(super) struct Trial<'a> {
    pub(super) tokens: &'a Arc<TokenModel>,
    pub(super) pcm: &'a [f32],
    pub(super) kbps: f64,
    pub(super) bundle: u8,
}

impl Trial<'_> {
    /// kbit/s of the coded recording, every byte counted.
    fn kbps(&self, processor: &mut Processor, most: StageCount, grading: Option<Grading>) -> Result<f64> {
        let profile = processor.profile();
        let mut bytes = Vec::new();
        let header = StreamHeader { graded: grading.is_some(), ..StreamHeader::packed(&profile, most, self.bundle) };
        let mut writer = StreamWriter::new(header, Some(Arc::clone(self.tokens)), &mut bytes);
        let mut encoder = Encoder::new(profile, most, self.bundle)?;
        encoder.set_job_frames(usize::from(self.bundle));
        if let Some(grading) = grading {
            encoder.set_grading(grading);
        }
        encoder.push(self.pcm);
        encoder.finish();
        while let Some(mut job) = encoder.next_job() {
            processor.run_encode(std::slice::from_mut(&mut job))?;
            encoder.accept(job);
            while let Some(bundle) = encoder.next_bundle() {
                writer.write(&bundle, &mut bytes)?;
            }
        }
        writer.finish(Some(self.pcm.len() as u64), &mut bytes);
        let seconds = self.pcm.len() as f64 / f64::from(CODEC_RATE.hz());
        Ok(bytes.len() as f64 * 8.0 / seconds.max(0.02) / 1000.0)
    }

    /// The most stages, the same for every frame, that stay within the rate; one if none do.
    pub(super) fn even(&self, processor: &mut Processor) -> Result<StageCount> {
        let most = processor.profile().stages;
        let mut stages = StageCount::new(guess(self.kbps).clamp(1.0, f64::from(most.value())) as u8)?;
        let fits = self.kbps(processor, stages, None)? <= self.kbps;
        loop {
            let next = if fits { stages.value() + 1 } else { stages.value().saturating_sub(1) };
            let Some(next) = StageCount::new(next).ok().filter(|&n| n <= most) else { return Ok(stages) };
            match (fits, self.kbps(processor, next, None)? <= self.kbps) {
                (true, true) | (false, false) => stages = next,
                (true, false) => return Ok(stages),
                (false, true) => return Ok(next),
            }
        }
    }

    /// Stages by level that use the rate up; those of the lowest trial if even that is over.
    pub(super) fn graded(&self, processor: &mut Processor) -> Result<Grading> {
        let profile = processor.profile();
        let mut loudness = Loudness::default();
        self.pcm.chunks(profile.frame_samples).for_each(|f| loudness.push(level_db(f)));
        let start = Grading::new(guess(self.kbps) as f32, loudness.mean_db());
        let limit = 2.0 * f64::from(profile.stages.value());
        // Bases that fit and that do not, each with the rate it gave; rates grow almost linearly with the base.
        let (mut under, mut over) = (None::<(f64, f64)>, None::<(f64, f64)>);
        let mut base = guess(self.kbps).min(f64::from(profile.stages.value()));
        for _ in 0..TRIALS {
            let got = self.kbps(processor, profile.stages, Some(Grading { base: base as f32, ..start }))?;
            if got <= self.kbps {
                under = under.filter(|u| u.0 > base).or(Some((base, got)));
                if got >= CLOSE * self.kbps || base >= limit {
                    break;
                }
            } else {
                over = Some((base, got));
            }
            base = match (under, over) {
                (Some(u), Some(o)) => u.0 + (0.993 * self.kbps - u.1) / (o.1 - u.1).max(1e-6) * (o.0 - u.0),
                _ => base + (0.993 * self.kbps - got) / TYPICAL_KBPS * 1.2,
            }
            .clamp(-limit, limit);
        }
        let best = under.or(over).map_or(start.base, |b| b.0 as f32);
        Ok(Grading { base: best, ..start })
    }
}

/// Steers a stream whose end is not known, or a recording after its trial.
pub(super) struct Steering {
    grading: Grading,
    control: RateControl,
    /// None: the level is known from the trial.
    loudness: Option<Loudness>,
    /// Frames that are left alone at the start.
    spared: u32,
}

impl Steering {
    /// After a trial of `spared` frames.
    pub(super) fn after(grading: Grading, kbps: f64, spared: u32) -> Self {
        Self { grading, control: RateControl::new(kbps as f32), loudness: None, spared }
    }

    /// From the first frame.
    pub(super) fn live(kbps: f64) -> Self {
        let loudness = Some(Loudness::default());
        let grading = Grading::new(guess(kbps) as f32, Loudness::default().mean_db());
        Self { grading, control: RateControl::new(kbps as f32), loudness, spared: 0 }
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
            self.control.spent(frames, bytes as u64 * 8);
        }
    }

    /// What the next frames get.
    pub(super) fn grading(&self) -> Grading {
        Grading { base: self.grading.base + self.control.correction(), ..self.grading }
    }
}
