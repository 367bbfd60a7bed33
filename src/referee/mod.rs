//! Measuring and showing what the codec does.
//!
//! The comparison against Opus needs cargo's feature `referee` (docs/architecture.md says why it is not on by default).

#[cfg(feature = "referee")]
mod metrics;
mod spectrogram;
mod stats;
mod stoi;

#[cfg(feature = "referee")]
pub use metrics::{MAX_LAG, Scores, align, log_spectral_distance, score, shift};
pub use spectrogram::write_spectrograms;
pub use stats::{Interval, bootstrap, mean, rate_at};
pub use stoi::estoi;
