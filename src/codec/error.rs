//! Why a stream cannot be encoded or decoded.

use crate::units::ModelId;

/// Why a stream cannot be encoded or decoded with this profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Frames of a bundle out of range.
    #[error("frames per bundle {0} out of range, allowed 1 to 50")]
    FramesPerBundle(u8),
    /// More stages than the model has.
    #[error("{got} stages, but model {model} has {max}")]
    Stages {
        /// Stages asked for.
        got: u8,
        /// Stages of the model.
        max: u8,
        /// The model.
        model: ModelId,
    },
    /// A code that the model has no entry for, or a bundle whose parts do not fit together.
    #[error("bundle at frame {first_frame}: {reason}")]
    Bundle {
        /// First frame of the bundle.
        first_frame: u64,
        /// What is wrong.
        reason: &'static str,
    },
}
