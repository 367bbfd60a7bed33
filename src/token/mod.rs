//! The token model: what code comes next, computed in integers so that every machine agrees to the bit.
//!
//! A transformer over frames (multi-head attention, ALiBi positions: Press et al. 2021) and a depth network over stages
//! (the order of the RQ-Transformer: Lee et al. 2022). Weights are int8, activations int16, sums int32; LayerNorm uses an
//! integer square root, GELU and the exponential are tables that come with the weights. The normative description is
//! section 6 of docs/bitstream.md; `models/undertone_recipe/tokens/integer.py` is the same in Python.

mod context;
mod error;
pub mod fake;
mod generate;
mod golden;
mod linear;
mod math;
mod simd;
mod source;
mod weights;

pub use context::{Context, Mark};
pub use error::TokenError;
pub use generate::Generator;
pub use math::{Frequencies, TOTAL, TOTAL_BITS};
pub use weights::{TokenModel, TokenShape};

/// Logits are in this many steps of a factor of two.
pub const LOGIT_STEPS: i32 = 1024;
