//! Measuring and showing what the codec does.

mod spectrogram;

pub use spectrogram::write_spectrograms;
