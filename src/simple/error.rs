//! One error for all of it.

use std::path::PathBuf;

use crate::bitstream::BitstreamError;
use crate::codec::{CodecError, ProcessError};
use crate::entropy::StreamError;
use crate::portable::PortableError;
use crate::recording::RecordingError;
use crate::units::{ModelId, OutOfRange};

/// Why something could not be loaded, encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The model's folder holds no usable model.
    #[error(transparent)]
    Model(#[from] PortableError),
    /// The networks or the codebook search.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A bundle or an option does not fit the model.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Bytes that are no stream of codes.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A bundle's bytes.
    #[error(transparent)]
    Bitstream(#[from] BitstreamError),
    /// A recording could not be encoded.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// A value outside its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// The stream was made with another model.
    #[error("the stream was made with model {wanted}, but the model here is {have}")]
    OtherModel {
        /// Model of the stream.
        wanted: ModelId,
        /// Model here.
        have: ModelId,
    },
    /// The stream ends before its end record; what came before was decoded.
    #[error("the stream was cut after {frames} frames")]
    Cut {
        /// Frames up to there.
        frames: u64,
    },
    /// A matrix of codes whose size is not frames times stages.
    #[error("{codes} codes are no whole number of frames of {stages} stages")]
    Codes {
        /// Codes given.
        codes: usize,
        /// Stages of a frame.
        stages: u8,
    },
    /// The model's folder has no token model.
    #[error("the model has no token model")]
    NoTokens,
}
