//! The token model: what code comes next, computed in integers so that every machine agrees to the bit.
//!
//! A transformer over frames (multi-head attention, ALiBi positions: Press et al. 2021) and a depth network over stages
//! (the order of the RQ-Transformer: Lee et al. 2022). Weights are int8, activations int16, sums int32; LayerNorm uses an
//! integer square root, GELU and the exponential are tables that come with the weights. The normative description is
//! section 6 of docs/bitstream.md; `models/undertone_recipe/tokens/integer.py` is the same in Python.

mod context;
pub mod fake;
mod generate;
mod math;
mod simd;
mod source;
mod weights;

pub use context::{Context, Mark};
pub use generate::Generator;
pub use math::{Frequencies, TOTAL, TOTAL_BITS};
pub use weights::{TokenModel, TokenShape};

/// Logits are in this many steps of a factor of two.
pub const LOGIT_STEPS: i32 = 1024;

/// Why a token model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The file is not a token model.
    #[error("token model: {0}")]
    File(String),
    /// A tensor of another type, shape or range than the sizes ask for.
    #[error("token model: tensor \"{name}\": {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// It belongs to the codes of another codec model.
    #[error("token model {token} was made for codec model {made_for}, not for {codec}")]
    Codec {
        /// Id of the token model, in hexadecimal.
        token: String,
        /// Codec model it names.
        made_for: String,
        /// Codec model in use.
        codec: String,
    },
    /// The golden example does not come out.
    #[error("token model: golden example: code {index} has range {got:?}, expected {expected:?}")]
    Golden {
        /// Index of the code.
        index: usize,
        /// Cumulative frequency and frequency here.
        got: (u32, u32),
        /// As in the file.
        expected: (u32, u32),
    },
}
