//! The golden example of a token model: proof that this machine computes what the recipe did.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::context::Context;
use super::error::TokenError;
use super::math::Frequencies;
use super::weights::TokenModel;
use crate::rvq::{Codebooks, SimdLevel};
use crate::units::{ModelId, StageCount};

impl TokenModel {
    /// Reads a token model for the codec model `codec` with these codebooks and runs its golden example.
    ///
    /// # Errors
    /// [`TokenError`] for anything that is not a token model for these codes.
    pub fn parse(bytes: &[u8], codec: ModelId, codebooks: &Codebooks) -> Result<Arc<Self>, TokenError> {
        let model = Arc::new(Self::read(bytes, codec, codebooks)?);
        model.verify(SimdLevel::detect())?;
        Ok(model)
    }

    /// First 8 bytes of the SHA-256 of all cumulative frequencies of the golden codes, computed on this machine.
    pub fn fingerprint(self: &Arc<Self>, level: SimdLevel) -> [u8; 8] {
        let mut hash = Sha256::new();
        let stages = StageCount::new(self.golden_stages as u8).unwrap_or(StageCount::MAX);
        let mut context = Context::new(Arc::clone(self), stages, level);
        let mut frequencies = Frequencies::uniform(self.shape.entries);
        for &code in &self.golden.0 {
            context.frequencies(&mut frequencies);
            frequencies.bounds().iter().for_each(|b| hash.update(b.to_le_bytes()));
            context.push(code);
        }
        let digest = hash.finalize();
        std::array::from_fn(|i| digest[i])
    }

    /// Runs the golden example.
    ///
    /// # Errors
    /// [`TokenError::Golden`] if this machine computes anything else than the recipe did.
    pub fn verify(self: &Arc<Self>, level: SimdLevel) -> Result<(), TokenError> {
        let stages = StageCount::new(self.golden_stages as u8).map_err(|e| TokenError::File(e.to_string()))?;
        let mut context = Context::new(Arc::clone(self), stages, level);
        let mut frequencies = Frequencies::uniform(self.shape.entries);
        for (index, (&code, &expected)) in self.golden.0.iter().zip(&self.golden.1).enumerate() {
            context.frequencies(&mut frequencies);
            let got = frequencies.range(code).unwrap_or_default();
            if got != expected {
                return Err(TokenError::Golden { index, got, expected });
            }
            context.push(code);
        }
        Ok(())
    }
}
