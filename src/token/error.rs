//! Why a token model cannot be used.

/// Why a token model cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
