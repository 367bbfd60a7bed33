//! Models for commands.

use std::path::PathBuf;

use crate::infer::{self, InferError, LoadedModel};

/// Which model a command works with.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ModelFolder {
    /// Model folder [default: the shipped model]
    #[arg(long = "model", value_name = "DIR")]
    pub(super) path: Option<PathBuf>,
}

impl ModelFolder {
    /// Loads the model, and says what is unusual about it.
    pub(super) fn load(&self) -> Result<LoadedModel, InferError> {
        let model = infer::load_model(self.path.as_deref())?;
        if let Some(remark) = model.remark() {
            errln!("undertone: {remark}");
        }
        Ok(model)
    }
}
