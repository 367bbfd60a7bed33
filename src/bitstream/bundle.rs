//! A bundle: consecutive frames that travel together.

use crate::units::StageCount;

/// Consecutive frames of codes, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Number of the first frame since the start of the stream.
    pub first_frame: u64,
    /// Frames in the bundle, 1 to 50.
    pub frames: u8,
    /// Stages of every frame.
    pub stages: StageCount,
    /// Indices below 1024, `[frames][stages]`, row-major.
    pub codes: Vec<u16>,
}
