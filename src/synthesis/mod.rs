//! Analysis by synthesis: latents that are better than the encoder's, found by listening to what the decoder makes of them.
//!
//! For files, where time may be taken, and live with as many steps as there is time for. The stream is the same, and every decoder
//! reads it. The method and what it gives are in docs/synthesis.md.

mod analyser;
mod effort;
mod loudness;
mod onset;
mod refiner;
mod spectral;
mod stft;

pub use analyser::{Analyser, analyse_all};
pub use effort::Effort;
pub use refiner::{Progress, Refiner, Shape, Track};
