//! Work for the networks; a job owns its buffers and its stream's state, and comes back to the stream that emitted it.

use crate::units::StageCount;

/// What is to be made of the samples of an [`EncodeJob`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Latents, and codes of them.
    All,
    /// Latents only: somebody moves them before they are searched for.
    Latents,
    /// Codes of latents that are there already.
    Codes,
}

/// Some frames of one stream to encode. Filled by [`crate::codec::Processor::run_encode`].
#[derive(Debug, Clone, PartialEq)]
pub struct EncodeJob {
    /// Frames in this job (T).
    pub frames: usize,
    /// Stages to search.
    pub stages: StageCount,
    /// Stages of each frame, at most `stages`; empty if all have that many.
    pub depths: Vec<u8>,
    /// Number of the first frame.
    pub first_frame: u64,
    /// Samples `[T * frame_samples]`.
    pub pcm: Vec<f32>,
    /// Encoder state, replaced by the state after the job.
    pub state: Vec<f32>,
    /// What is wanted.
    pub work: Work,
    /// Latents `[T * latent_dim]`: a result unless only codes are wanted.
    pub latents: Vec<f32>,
    /// Result: indices `[T * stages]`, [`crate::bitstream::ABSENT`] for stages that a frame does not have.
    pub codes: Vec<u16>,
}

/// Some frames of one stream to decode. Filled by [`crate::codec::Processor::run_decode`].
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeJob {
    /// Frames in this job (T).
    pub frames: usize,
    /// Stages that the codes have.
    pub stages: StageCount,
    /// Number of the first frame.
    pub first_frame: u64,
    /// Indices `[T * stages]`, [`crate::bitstream::ABSENT`] for stages that a frame does not have.
    pub codes: Vec<u16>,
    /// Quantised latents `[T * latent_dim]`.
    pub latents: Vec<f32>,
    /// Noise of these frames `[T * noise_dim]`.
    pub noise: Vec<f32>,
    /// Decoder state, replaced by the state after the job.
    pub state: Vec<f32>,
    /// Result: samples `[T * frame_samples]`.
    pub pcm: Vec<f32>,
}
