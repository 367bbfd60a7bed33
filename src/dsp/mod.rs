//! Signals at the edges of the codec: raw sample formats, resampling, clocks that differ.

mod downmix;
mod drift;
mod intake;
mod pcm;
mod resample;

pub use downmix::{Downmix, MAX_PLACED};
pub use drift::{DriftController, MAX_CORRECTION};
pub use intake::{Intake, MAX_SAMPLE, usable_sample};
pub use pcm::{PcmReader, PcmWriter};
pub use resample::{Resampler, VariableResampler};

/// A sample as the codec takes and gives it: 0 for what is not finite, else limited to -1..1.
pub(crate) fn usable(x: f32) -> f32 {
    if x.is_finite() { x.clamp(-1.0, 1.0) } else { 0.0 }
}
