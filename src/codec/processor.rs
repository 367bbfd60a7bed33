//! Runs jobs: networks and codebook search together, on the thread that owns them.

use std::sync::Arc;

use super::{CodecError, DecodeJob, Decoder, EncodeJob, Encoder, Work};
use crate::bitstream::{ABSENT, Bundle};
use crate::dsp::usable;
use crate::model::{DecodeRow, DecoderNet, EncodeRow, EncoderNet, NetworkError};
use crate::profile::Profile;
use crate::rvq::{Codebooks, Ladder, RvqError, Searcher, Wanted};

/// Why a job could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// A network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The codebooks do not fit the codes.
    #[error(transparent)]
    Rvq(#[from] RvqError),
    /// The stream does not fit the model.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// The networks and codebooks of one thread.
pub struct Processor {
    profile: Arc<Profile>,
    encoder: Box<dyn EncoderNet>,
    decoder: Box<dyn DecoderNet>,
    codebooks: Arc<Codebooks>,
    searcher: Searcher,
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Processor {
    /// Puts the parts of a model together; they must have come from the same manifest.
    pub fn new(
        profile: Arc<Profile>,
        encoder: Box<dyn EncoderNet>,
        decoder: Box<dyn DecoderNet>,
        codebooks: Arc<Codebooks>,
        searcher: Searcher,
    ) -> Self {
        Self { profile, encoder, decoder, codebooks, searcher }
    }

    /// Numbers of the model.
    pub fn profile(&self) -> Arc<Profile> {
        Arc::clone(&self.profile)
    }

    /// The codebooks in use.
    pub fn codebooks(&self) -> &Codebooks {
        &self.codebooks
    }

    /// Latents `[T * latent_dim]` of samples `[T * frame_samples]`, without codes; `state` goes on from call to call.
    ///
    /// # Errors
    /// [`ProcessError::Network`].
    pub fn analyse(&mut self, pcm: &[f32], state: &mut [f32], latents: &mut [f32]) -> Result<(), ProcessError> {
        let frames = pcm.len() / self.profile.frame_samples;
        Ok(self.encoder.encode(&mut [EncodeRow { pcm, state, latents }], frames)?)
    }

    /// Codes of latents `[T * latent_dim]` at every number of stages.
    ///
    /// # Errors
    /// [`ProcessError::Rvq`].
    pub fn ladder(&mut self, latents: &[f32]) -> Result<Ladder, ProcessError> {
        Ok(self.searcher.ladder(latents)?)
    }

    /// The next bundle of a stream; None if samples are missing.
    ///
    /// # Errors
    /// [`ProcessError`]; the stream cannot go on then.
    pub fn encode(&mut self, encoder: &mut Encoder) -> Result<Option<Bundle>, ProcessError> {
        encoder.advance(|job| self.run_encode(std::slice::from_mut(job)))
    }

    /// Decodes what waits in a stream and appends the samples to `pcm`.
    ///
    /// # Errors
    /// [`ProcessError`]; the stream cannot go on then.
    pub fn decode(&mut self, decoder: &mut Decoder, pcm: &mut Vec<f32>) -> Result<(), ProcessError> {
        while let Some(mut job) = decoder.next_job() {
            self.run_decode(std::slice::from_mut(&mut job))?;
            decoder.accept(job);
        }
        decoder.pcm(pcm);
        Ok(())
    }

    /// Encodes jobs; those with the same number of frames share one network call. Each stays in its place.
    ///
    /// # Errors
    /// [`ProcessError`]; the jobs are then unusable.
    pub fn run_encode(&mut self, jobs: &mut [EncodeJob]) -> Result<(), ProcessError> {
        let dim = self.profile.latent_dim;
        for job in jobs.iter_mut() {
            job.latents.resize(job.frames * dim, 0.0);
        }
        match jobs {
            [job] if job.work == Work::Codes => {}
            [job] => {
                let frames = job.frames;
                self.encoder.encode(&mut [encode_row(job)], frames)?;
            }
            _ => {
                // References are sorted, not the jobs: whoever asked finds its job where it put it.
                let mut wanted: Vec<_> = jobs.iter_mut().filter(|j| j.work != Work::Codes).collect();
                wanted.sort_by_key(|j| j.frames);
                for group in wanted.chunk_by_mut(|a, b| a.frames == b.frames) {
                    let frames = group[0].frames;
                    let mut rows: Vec<_> = group.iter_mut().map(|job| encode_row(job)).collect();
                    self.encoder.encode(&mut rows, frames)?;
                }
            }
        }
        let coded = |job: &&mut EncodeJob| job.work != Work::Latents;
        for job in jobs.iter_mut().filter(coded) {
            job.codes.resize(job.frames * job.stages.index(), 0);
        }
        let wanted = jobs.iter_mut().filter(coded).flat_map(|job| {
            let EncodeJob { latents, codes, depths, stages, .. } = job;
            let frames = latents.chunks_exact(dim).zip(codes.chunks_exact_mut(stages.index()));
            frames.enumerate().map(|(frame, (latent, codes))| {
                let depth = depths.get(frame).map_or(codes.len(), |&d| usize::from(d).clamp(1, codes.len()));
                let (codes, absent) = codes.split_at_mut(depth);
                absent.fill(ABSENT);
                Wanted { latent, codes }
            })
        });
        self.searcher.encode(wanted)?;
        Ok(())
    }

    /// Decodes jobs; those with the same number of frames share one network call. Each stays in its place.
    ///
    /// # Errors
    /// [`ProcessError`]; the jobs are then unusable.
    pub fn run_decode(&mut self, jobs: &mut [DecodeJob]) -> Result<(), ProcessError> {
        let dim = self.profile.latent_dim;
        for job in jobs.iter_mut() {
            job.latents.resize(job.frames * dim, 0.0);
            job.pcm.resize(job.frames * self.profile.frame_samples, 0.0);
            for (codes, latent) in job.codes.chunks_exact(job.stages.index()).zip(job.latents.chunks_exact_mut(dim)) {
                let depth = codes.iter().position(|&c| c == ABSENT).unwrap_or(codes.len());
                self.codebooks.decode_into(&codes[..depth], latent)?;
            }
        }
        if let [job] = jobs {
            let frames = job.frames;
            self.decoder.decode(&mut [decode_row(job)], frames)?;
        } else {
            let mut sorted: Vec<_> = jobs.iter_mut().collect();
            sorted.sort_by_key(|j| j.frames);
            for group in sorted.chunk_by_mut(|a, b| a.frames == b.frames) {
                let frames = group[0].frames;
                let mut rows: Vec<_> = group.iter_mut().map(|job| decode_row(job)).collect();
                self.decoder.decode(&mut rows, frames)?;
            }
        }
        // A network that went wrong must not reach a loudspeaker.
        for job in jobs {
            for x in &mut job.pcm {
                *x = usable(*x);
            }
        }
        Ok(())
    }
}

fn encode_row(job: &mut EncodeJob) -> EncodeRow<'_> {
    EncodeRow { pcm: &job.pcm, state: &mut job.state, latents: &mut job.latents }
}

fn decode_row(job: &mut DecodeJob) -> DecodeRow<'_> {
    DecodeRow { latents: &job.latents, noise: &job.noise, state: &mut job.state, pcm: &mut job.pcm }
}
