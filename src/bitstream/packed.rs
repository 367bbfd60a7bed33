//! Bundles as relays pass them on.

use super::{BitstreamError, Bundle};
use crate::units::StageCount;

/// A bundle whose indices are still packed, as relays pass it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedBundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames, 1 to 50.
    pub frames: u8,
    /// Stages of each frame.
    pub stages: StageCount,
    /// Packed indices; the length fits frames and stages.
    pub payload: Vec<u8>,
}

impl PackedBundle {
    /// Packs a bundle.
    pub fn pack(bundle: &Bundle) -> Self {
        let mut payload = Vec::with_capacity(Bundle::payload_len(bundle.frames, bundle.stages));
        bundle.pack_into(&mut payload);
        Self { first_frame: bundle.first_frame, frames: bundle.frames, stages: bundle.stages, payload }
    }

    /// Errors: [`BitstreamError`] for a payload that does not fit.
    pub fn unpack(&self) -> Result<Bundle, BitstreamError> {
        Bundle::unpack(self.first_frame, self.frames, self.stages, &self.payload)
    }

    /// The same frames with at most `stages` stages; nothing is decoded.
    ///
    /// Errors: [`BitstreamError`] for a payload that does not fit.
    pub fn limited(&self, stages: StageCount) -> Result<Self, BitstreamError> {
        if stages >= self.stages {
            return Ok(self.clone());
        }
        let mut payload = Vec::with_capacity(Bundle::payload_len(self.frames, stages));
        Bundle::truncate_packed(self.frames, self.stages, stages, &self.payload, &mut payload)?;
        Ok(Self { first_frame: self.first_frame, frames: self.frames, stages, payload })
    }
}
