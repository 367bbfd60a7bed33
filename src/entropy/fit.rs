//! How many stages a coded recording gets so that it stays within a rate.

use std::sync::Arc;

use super::{StreamError, StreamWriter};
use crate::bitstream::StreamHeader;
use crate::codec::{CodecError, Encoder, Grading, Loudness, ProcessError, Processor, level_db};
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, StageCount};

/// What a coded stage of speech takes on average, kbit/s: the first guess, and all there is to go by on a pipe.
const TYPICAL_KBPS: f64 = 0.37;

/// Trials, and how much of the rate the best may leave unused.
const TRIALS: usize = 6;
const CLOSE: f64 = 0.985;

/// Stages for a rate that nobody has tried yet.
pub fn guess_stages(kbps: f64) -> f64 {
    kbps / TYPICAL_KBPS
}

/// Why a recording could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A network or the search failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The stream does not fit the model.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The container could not be written.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What a recording is encoded with.
#[derive(Debug, Clone)]
pub struct Fit<'a> {
    /// Codes the file.
    pub tokens: &'a Arc<TokenModel>,
    /// Samples at the codec's rate; of a long recording, the part that decides.
    pub pcm: &'a [f32],
    /// Rate that the file must not exceed, every byte counted.
    pub kbps: f64,
    /// Frames of a bundle.
    pub bundle: u8,
}

impl Fit<'_> {
    /// The coded recording, graded or with `most` stages in every frame.
    ///
    /// Errors: [`FitError`].
    pub fn encode(
        &self,
        processor: &mut Processor,
        most: StageCount,
        grading: Option<Grading>,
    ) -> Result<Vec<u8>, FitError> {
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
        Ok(bytes)
    }

    fn kbps(&self, processor: &mut Processor, most: StageCount, grading: Option<Grading>) -> Result<f64, FitError> {
        let bytes = self.encode(processor, most, grading)?.len() as f64;
        let seconds = self.pcm.len() as f64 / f64::from(CODEC_RATE.hz());
        Ok(bytes * 8.0 / seconds.max(0.02) / 1000.0)
    }

    /// The most stages, the same for every frame, that stay within the rate; one if none do.
    ///
    /// Errors: [`FitError`].
    pub fn even(&self, processor: &mut Processor) -> Result<StageCount, FitError> {
        let most = processor.profile().stages;
        let mut stages =
            StageCount::new(guess_stages(self.kbps).clamp(1.0, f64::from(most.value())) as u8).unwrap_or(most);
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
    ///
    /// Errors: [`FitError`].
    pub fn graded(&self, processor: &mut Processor) -> Result<Grading, FitError> {
        let profile = processor.profile();
        let mut loudness = Loudness::default();
        self.pcm.chunks(profile.frame_samples).for_each(|f| loudness.push(level_db(f)));
        let start = Grading::new(guess_stages(self.kbps) as f32, loudness.mean_db());
        let limit = 2.0 * f64::from(profile.stages.value());
        // Bases that fit and that do not, each with the rate it gave; rates grow almost linearly with the base.
        let (mut under, mut over) = (None::<(f64, f64)>, None::<(f64, f64)>);
        let mut base = guess_stages(self.kbps).min(f64::from(profile.stages.value()));
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
