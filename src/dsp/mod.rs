//! Signals at the edges of the codec: raw sample formats and resampling.

mod pcm;
mod resample;

pub use pcm::{PcmReader, PcmWriter};
pub use resample::Resampler;
