//! Residual vector quantisation: a latent becomes one index a stage, and any prefix of stages decodes.

mod codebook;
mod health;
mod search;
mod simd;

pub use codebook::{Codebooks, RvqError};
pub use health::{StageHealth, collapsed_stage, neighbours, principal_map, stage_health, standing_apart};
pub use search::{BeamWidth, Ladder, Searcher, Wanted};
pub use simd::SimdLevel;
pub(crate) use simd::for_every_level;
