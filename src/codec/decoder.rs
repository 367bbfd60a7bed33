//! Bundles -> jobs -> samples.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{CodecError, DecodeJob, MAX_FRAMES_PER_BUNDLE, Profile};
use crate::bitstream::Bundle;
use crate::model::decoder_noise;

/// Longest gap between bundles that is filled with silence; after a longer one the stream simply goes on.
pub const MAX_GAP_FRAMES: u64 = 250;

/// Bundles that may wait in a decoder.
const MAX_WAITING: usize = 64;

/// One stream's decoder. It starts at the first bundle it is given, whatever its number.
#[derive(Debug)]
pub struct Decoder {
    profile: Arc<Profile>,
    waiting: VecDeque<Bundle>,
    expected: Option<u64>,
    idle: Option<DecodeJob>,
    out: Vec<f32>,
    missing_frames: u64,
}

impl Decoder {
    /// A decoder in the state before the first sample.
    pub fn new(profile: Arc<Profile>) -> Self {
        let idle = DecodeJob {
            frames: 0,
            stages: profile.stages,
            first_frame: 0,
            codes: Vec::new(),
            latents: Vec::new(),
            noise: Vec::new(),
            state: vec![0.0; profile.decoder_state],
            pcm: Vec::new(),
        };
        Self { profile, waiting: VecDeque::new(), expected: None, idle: Some(idle), out: Vec::new(), missing_frames: 0 }
    }

    /// Queues a bundle. One that lies before what was already given is dropped as a late duplicate.
    ///
    /// Errors: [`CodecError`] for more stages than the model has, a code beyond its codebooks, parts that do not
    /// fit together, or more than 64 bundles waiting.
    pub fn push(&mut self, bundle: Bundle) -> Result<(), CodecError> {
        let error = |reason| CodecError::Bundle { first_frame: bundle.first_frame, reason };
        if bundle.stages > self.profile.stages {
            return Err(CodecError::Stages {
                got: bundle.stages.value(),
                max: self.profile.stages.value(),
                model: self.profile.model_id,
            });
        }
        if !(1..=MAX_FRAMES_PER_BUNDLE).contains(&bundle.frames)
            || bundle.codes.len() != usize::from(bundle.frames) * bundle.stages.index()
        {
            return Err(error("frames, stages and codes do not fit together"));
        }
        if bundle.codes.iter().any(|&c| usize::from(c) >= self.profile.entries) {
            return Err(error("a code is beyond the codebook"));
        }
        let end =
            bundle.first_frame.checked_add(u64::from(bundle.frames)).ok_or_else(|| error("frame number overflows"))?;
        if self.waiting.len() >= MAX_WAITING {
            return Err(error("more than 64 bundles are waiting"));
        }
        if let Some(expected) = self.expected {
            if bundle.first_frame < expected {
                return Ok(());
            }
            self.missing_frames += bundle.first_frame - expected;
        }
        self.expected = Some(end);
        self.waiting.push_back(bundle);
        Ok(())
    }

    /// Frames that no bundle brought.
    pub fn missing_frames(&self) -> u64 {
        self.missing_frames
    }

    /// The next piece of work; None if no bundle waits or a job is out.
    pub fn next_job(&mut self) -> Option<DecodeJob> {
        if self.waiting.is_empty() {
            return None;
        }
        let mut job = self.idle.take()?;
        let bundle = self.waiting.pop_front()?;
        let done = job.first_frame + job.frames as u64;
        if job.frames > 0 && bundle.first_frame > done {
            let gap = bundle.first_frame - done;
            if gap <= MAX_GAP_FRAMES {
                self.out.resize(self.out.len() + gap as usize * self.profile.frame_samples, 0.0);
            }
            // The state belongs to frames that were not followed by these.
            job.state.fill(0.0);
        }
        job.frames = usize::from(bundle.frames);
        job.stages = bundle.stages;
        job.first_frame = bundle.first_frame;
        job.codes.clear();
        job.codes.extend_from_slice(&bundle.codes);
        job.noise.resize(job.frames * self.profile.noise_dim, 0.0);
        if self.profile.noise_dim > 0 {
            for (frame, noise) in (bundle.first_frame..).zip(job.noise.chunks_exact_mut(self.profile.noise_dim)) {
                decoder_noise(frame, noise);
            }
        }
        Some(job)
    }

    /// Takes a finished job back.
    pub fn accept(&mut self, job: DecodeJob) {
        self.out.extend_from_slice(&job.pcm);
        self.idle = Some(job);
    }

    /// Appends what has been decoded to `out`, at the codec's rate.
    ///
    /// A stream's first `overlap_samples` of [`Profile`] precede its first input sample.
    pub fn pcm(&mut self, out: &mut Vec<f32>) {
        out.append(&mut self.out);
    }
}
