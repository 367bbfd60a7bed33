//! The codec core: push samples, take bundles; push bundles, take samples.
//!
//! [`Encoder`] and [`Decoder`] never run a network. They emit a job that carries its stream's state and accept it back
//! when somebody has run it: [`Processor`] on the spot (command line), or an engine thread that batches the jobs of
//! many streams. The same jobs give the same bytes either way.

mod activity;
mod background;
mod bucket;
mod conceal;
mod decoder;
mod encoder;
mod error;
mod grading;
mod job;
mod processor;

pub use crate::profile::Profile;
pub use activity::{Activity, HANGOVER_FRAMES};
pub use background::{Background, DESCRIPTION_FRAMES, MAX_QUIET_FRAMES, Sent, Silencer};
pub use bucket::Bucket;
pub use conceal::{Concealer, Guess, SAMPLED_FRAMES};
pub use decoder::{Decoder, MAX_GAP_FRAMES};
pub use encoder::Encoder;
pub use error::CodecError;
pub use grading::{BitReservoir, BundleGrading, Grading, Loudness, level_db};
pub use job::{DecodeJob, EncodeJob, Work};
pub use processor::{ProcessError, Processor};

use crate::bitstream::Bundle;
use crate::units::StageCount;

/// Encodes a whole recording on the spot.
///
/// `pcm` at the codec's rate.
///
/// # Errors
/// [`ProcessError`].
///
/// # Examples
/// ```
/// use undertone::{codec, fake, units::StageCount};
///
/// let mut processor = fake::processor(16, 7);
/// let bundles = codec::encode_all(&mut processor, &[0.1; 24_000], StageCount::new(6)?, 5)?;
/// assert_eq!(bundles[0].codes.len(), 5 * 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
    while let Some(bundle) = processor.encode(&mut encoder)? {
        bundles.push(bundle);
    }
    Ok(bundles)
}

/// Decodes bundles on the spot; the result starts `delay_samples - frame_samples` samples before the original does.
///
/// # Errors
/// [`ProcessError`].
pub fn decode_all(processor: &mut Processor, bundles: &[Bundle]) -> Result<Vec<f32>, ProcessError> {
    let mut decoder = Decoder::new(processor.profile());
    let mut pcm = Vec::new();
    for bundle in bundles {
        decoder.push(bundle.clone())?;
        processor.decode(&mut decoder, &mut pcm)?;
    }
    Ok(pcm)
}
