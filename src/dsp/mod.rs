//! Signals at the edges of the codec: raw sample formats, resampling, clocks that differ.

mod drift;
mod pcm;
mod resample;

pub use drift::{DriftController, MAX_CORRECTION};
pub use pcm::{PcmReader, PcmWriter};
pub use resample::{Resampler, VariableResampler};
