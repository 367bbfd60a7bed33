//! Rows of a batch as the graphs take them.

use crate::model::{DecodeRow, EncodeRow};

/// What a network reads and writes of a stream.
pub(super) trait JobRow {
    /// What is read besides the state, in the order of the ports.
    fn inputs(&self) -> impl Iterator<Item = &[f32]>;
    /// Before the call.
    fn state(&self) -> &[f32];
    /// To be set to what it is after the call.
    fn state_mut(&mut self) -> &mut [f32];
    /// To be filled.
    fn output(&mut self) -> &mut [f32];
}

impl JobRow for EncodeRow<'_> {
    fn inputs(&self) -> impl Iterator<Item = &[f32]> {
        std::iter::once(self.pcm)
    }

    fn state(&self) -> &[f32] {
        self.state
    }

    fn state_mut(&mut self) -> &mut [f32] {
        self.state
    }

    fn output(&mut self) -> &mut [f32] {
        self.latents
    }
}

impl JobRow for DecodeRow<'_> {
    fn inputs(&self) -> impl Iterator<Item = &[f32]> {
        [self.latents, self.noise].into_iter()
    }

    fn state(&self) -> &[f32] {
        self.state
    }

    fn state_mut(&mut self) -> &mut [f32] {
        self.state
    }

    fn output(&mut self) -> &mut [f32] {
        self.pcm
    }
}
