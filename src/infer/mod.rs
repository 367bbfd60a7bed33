//! Networks by ONNX Runtime; the only module that names ort.

mod frame;
mod graph;
mod library;
mod load;
mod net;
mod row;

pub use library::library_path;
pub use load::{LoadedModel, Networks, find_model, load_model, load_processor_factory};

use std::path::PathBuf;

use crate::model::ManifestError;
use crate::rvq::RvqError;

/// Why a model could not be made ready.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// The ONNX Runtime library is nowhere.
    #[error(
        "ONNX Runtime was not found; looked for {looked}. Run `make setup`, or set ORT_DYLIB_PATH to libonnxruntime.so \
         (version 1.23 or newer)"
    )]
    NoLibrary {
        /// The places, in words.
        looked: String,
    },
    /// The library is there but cannot be used.
    #[error(
        "ONNX Runtime at {path}: {reason}. Version 1.23 or newer is needed; run `make setup`, or set ORT_DYLIB_PATH"
    )]
    Library {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// No model folder.
    #[error("no model found; looked for {looked}. Name a folder with --model or UNDERTONE_MODEL")]
    NoModel {
        /// The places, in words.
        looked: String,
    },
    /// A file of the model could not be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The model is not what its manifest says.
    #[error("model {path}: {reason}")]
    Model {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl InferError {
    fn manifest(path: &std::path::Path, e: &ManifestError) -> Self {
        Self::Model { path: path.to_owned(), reason: e.to_string() }
    }

    fn rvq(path: &std::path::Path, e: &RvqError) -> Self {
        Self::Model { path: path.to_owned(), reason: e.to_string() }
    }
}
