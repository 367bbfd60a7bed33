//! Residual vector quantisation: a latent becomes one index a stage, and any prefix of stages decodes.

mod codebook;
mod search;
mod simd;

pub use codebook::{Codebooks, RvqError};
pub use search::{BeamWidth, Searcher};
pub use simd::SimdLevel;
