//! Range-coded bundles. What the payload means is the entropy coder's business.

use super::Bundle;
use crate::units::StageCount;

/// A bundle whose payload is still coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodedBundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames in the bundle, 1 to 50.
    pub frames: u8,
    /// Stages of every frame; the most that a frame may have if it is graded.
    pub stages: StageCount,
    /// The payload tells the stages of each frame, as the stream's header says.
    pub graded: bool,
    /// It builds on no bundle before it.
    pub restart: bool,
    /// The payload is packed after all, because coding would have made it longer.
    pub packed: bool,
    /// At most as long as a packed payload.
    pub payload: Vec<u8>,
}

/// Flags of a coded bundle's record.
pub(super) const RESTART: u8 = 1;
pub(super) const PACKED: u8 = 2;

impl CodedBundle {
    /// Whether a payload of `length` bytes is possible.
    pub(super) fn allows(&self, length: usize) -> bool {
        match (self.graded, self.packed) {
            (true, true) => (1..=Bundle::graded_len(self.frames, self.stages)).contains(&length),
            (true, false) => length < Bundle::graded_len(self.frames, self.stages),
            (false, true) => length == Bundle::payload_len(self.frames, self.stages),
            (false, false) => length < Bundle::payload_len(self.frames, self.stages),
        }
    }

    pub(super) fn length_fits(&self) -> bool {
        self.allows(self.payload.len())
    }
}
