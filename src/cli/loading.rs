//! Models for commands.

use std::path::Path;

use crate::infer::{self, InferError, LoadedModel};

/// Loads a model, and says what is unusual about it.
pub(super) fn load_model(named: Option<&Path>) -> Result<LoadedModel, InferError> {
    let model = infer::load_model(named)?;
    if let Some(remark) = model.remark() {
        errln!("undertone: {remark}");
    }
    Ok(model)
}
