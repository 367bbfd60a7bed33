//! The codec core: push samples, take bundles; push bundles, take samples.
//!
//! [`Encoder`] and [`Decoder`] never run a network. They emit a job that carries its stream's state and accept it back
//! when somebody has run it: [`Processor`] on the spot (command line), or an engine thread that batches the jobs of
//! many streams. The same jobs give the same bytes either way.

mod conceal;
mod decoder;
mod encoder;
mod error;
mod grading;
mod job;
pub mod loss;
mod processor;

pub use crate::profile::{MAX_FRAMES_PER_BUNDLE, Profile};
pub use conceal::{Concealer, Guess, SAMPLED_FRAMES};
pub use decoder::{Decoder, MAX_GAP_FRAMES};
pub use encoder::Encoder;
pub use error::CodecError;
pub use grading::{BundleGrading, Grading, Loudness, RateControl, level_db};
pub use job::{DecodeJob, EncodeJob};
pub use loss::{LossModel, LossTrace};
pub use processor::{ProcessError, Processor};

use crate::bitstream::Bundle;
use crate::units::StageCount;

/// Encodes a whole recording on the spot.
///
/// `pcm` at the codec's rate. Errors: [`ProcessError`].
pub fn encode_all(
    processor: &mut Processor,
    pcm: &[f32],
    stages: StageCount,
    frames_per_bundle: u8,
) -> Result<Vec<Bundle>, ProcessError> {
    let mut encoder = Encoder::new(processor.profile(), stages, frames_per_bundle)?;
    encoder.set_job_frames(usize::from(frames_per_bundle));
    encoder.push(pcm);
    encoder.finish();
    let mut bundles = Vec::new();
    while let Some(mut job) = encoder.next_job() {
        processor.run_encode(std::slice::from_mut(&mut job))?;
        encoder.accept(job);
        bundles.extend(std::iter::from_fn(|| encoder.next_bundle()));
    }
    Ok(bundles)
}

/// Decodes bundles on the spot; the result starts `delay_samples - frame_samples` samples before the original does.
///
/// Errors: [`ProcessError`].
pub fn decode_all(processor: &mut Processor, bundles: &[Bundle]) -> Result<Vec<f32>, ProcessError> {
    let mut decoder = Decoder::new(processor.profile());
    let mut pcm = Vec::new();
    for bundle in bundles {
        decoder.push(bundle.clone())?;
        while let Some(mut job) = decoder.next_job() {
            processor.run_decode(std::slice::from_mut(&mut job))?;
            decoder.accept(job);
        }
        decoder.pcm(&mut pcm);
    }
    Ok(pcm)
}
