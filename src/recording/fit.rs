//! How many stages a coded recording gets so that it stays within a rate.

use std::sync::Arc;

use crate::bitstream::{ABSENT, StreamHeader};
use crate::codec::{CodecError, EncodeJob, Encoder, Grading, Loudness, level_db};
use crate::entropy::{StreamError, StreamWriter};
use crate::profile::Profile;
use crate::rvq::Ladder;
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
#[non_exhaustive]
pub enum FitError {
    /// The ladder is shorter than the recording.
    #[error("no codes for frame {frame}: there are {frames} frames")]
    Missing {
        /// The frame.
        frame: usize,
        /// Frames that there are.
        frames: usize,
    },
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
    /// Codes of its frames, the silence after it included ([`crate::synthesis::analyse_all`], [`Processor::ladder`]).
    ///
    /// [`Processor::ladder`]: crate::codec::Processor::ladder
    pub ladder: &'a Ladder,
    /// Rate that the file must not exceed, every byte counted.
    pub kbps: f64,
    /// Frames of a bundle.
    pub bundle: u8,
}

/// A recording at its rate.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// What it was encoded with.
    pub grading: Grading,
    /// The coded file.
    pub bytes: Vec<u8>,
}

impl Fit<'_> {
    /// The coded recording, graded or with `most` stages in every frame.
    ///
    /// # Errors
    /// [`FitError`].
    pub fn encode(
        &self,
        profile: &Arc<Profile>,
        most: StageCount,
        grading: Option<Grading>,
    ) -> Result<Vec<u8>, FitError> {
        let mut bytes = Vec::new();
        let header = StreamHeader { graded: grading.is_some(), ..StreamHeader::packed(profile, most, self.bundle) };
        let mut writer = StreamWriter::new(header, Some(Arc::clone(self.tokens)), &mut bytes);
        let mut encoder = Encoder::new(Arc::clone(profile), most, self.bundle)?;
        encoder.set_job_frames(usize::from(self.bundle));
        if let Some(grading) = grading {
            encoder.set_grading(grading);
        }
        encoder.push(self.pcm);
        encoder.finish();
        while let Some(bundle) = encoder.advance(|job| self.codes(job))? {
            writer.write(&bundle, &mut bytes)?;
        }
        writer.finish(Some(self.pcm.len() as u64), &mut bytes);
        Ok(bytes)
    }

    /// Puts the codes of a job's frames in their place.
    fn codes(&self, job: &mut EncodeJob) -> Result<(), FitError> {
        let stages = job.stages.index();
        job.codes.clear();
        job.codes.resize(job.frames * stages, ABSENT);
        for (i, codes) in job.codes.chunks_exact_mut(stages).enumerate() {
            let depth = job.depths.get(i).and_then(|&d| StageCount::new(d).ok()).unwrap_or(job.stages);
            let frame = job.first_frame as usize + i;
            let found =
                self.ladder.codes(frame, depth).ok_or(FitError::Missing { frame, frames: self.ladder.frames() })?;
            codes[..found.len()].copy_from_slice(found);
        }
        Ok(())
    }

    fn kbps(&self, profile: &Arc<Profile>, most: StageCount, grading: Option<Grading>) -> Result<f64, FitError> {
        Ok(self.rate_of(&self.encode(profile, most, grading)?))
    }

    /// kbit/s of a coded recording.
    fn rate_of(&self, bytes: &[u8]) -> f64 {
        let seconds = self.pcm.len() as f64 / f64::from(CODEC_RATE.hz());
        bytes.len() as f64 * 8.0 / seconds.max(0.02) / 1000.0
    }

    /// The most stages, the same for every frame, that stay within the rate; one if none do.
    ///
    /// # Errors
    /// [`FitError`].
    pub fn even(&self, profile: &Arc<Profile>) -> Result<StageCount, FitError> {
        let most = profile.stages;
        let mut stages =
            StageCount::new(guess_stages(self.kbps).clamp(1.0, f64::from(most.value())) as u8).unwrap_or(most);
        let fits = self.kbps(profile, stages, None)? <= self.kbps;
        loop {
            let next = if fits { stages.value() + 1 } else { stages.value().saturating_sub(1) };
            let Some(next) = StageCount::new(next).ok().filter(|&n| n <= most) else { return Ok(stages) };
            match (fits, self.kbps(profile, next, None)? <= self.kbps) {
                (true, true) | (false, false) => stages = next,
                (true, false) => return Ok(stages),
                (false, true) => return Ok(next),
            }
        }
    }

    /// Stages by level that use the rate up; the lowest trial if even that is over.
    ///
    /// # Errors
    /// [`FitError`].
    pub fn graded(&self, profile: &Arc<Profile>) -> Result<Fitted, FitError> {
        let mut loudness = Loudness::default();
        self.pcm.chunks(profile.frame_samples).for_each(|f| loudness.push(level_db(f)));
        let start = Grading::new(guess_stages(self.kbps) as f32, loudness.mean_db());
        let limit = 2.0 * f64::from(profile.stages.value());
        // The highest trial that fits and the lowest that does not, each with its rate, which grows almost linearly with the base.
        let (mut under, mut over) = (None::<(f64, Fitted)>, None::<(f64, Fitted)>);
        let mut base = guess_stages(self.kbps).min(f64::from(profile.stages.value()));
        for _ in 0..TRIALS {
            let grading = Grading { base: base as f32, ..start };
            let bytes = self.encode(profile, profile.stages, Some(grading))?;
            let (got, fitted) = (self.rate_of(&bytes), Fitted { grading, bytes });
            if got <= self.kbps {
                under = under.filter(|u| u.1.grading.base > grading.base).or(Some((got, fitted)));
                if got >= CLOSE * self.kbps || base >= limit {
                    break;
                }
            } else if over.as_ref().is_none_or(|o| o.1.grading.base > grading.base) {
                over = Some((got, fitted));
            }
            let aim = 0.993 * self.kbps;
            base = match (&under, &over) {
                (Some((low, u)), Some((high, o))) => {
                    let (u, o) = (f64::from(u.grading.base), f64::from(o.grading.base));
                    u + (aim - low) / (high - low).max(1e-6) * (o - u)
                }
                _ => base + (aim - got) / TYPICAL_KBPS * 1.2,
            }
            .clamp(-limit, limit);
        }
        // The first trial is one or the other.
        Ok(under.or(over).map_or_else(|| Fitted { grading: start, bytes: Vec::new() }, |(_, fitted)| fitted))
    }
}
