//! A network that loses bundles, for `undertone decode --loss`.

use anyhow::Result;

use crate::bitstream::{Bundle, Redundancy, RedundancyWriter, read_redundancy};
use crate::referee::{LossModel, LossTrace};

/// A network that loses bundles.
pub(super) struct Lossy {
    trace: LossTrace,
    redundancy: Option<RedundancyWriter>,
    /// Bundles that did not arrive.
    pub(super) lost: u64,
    /// Bundles and frames that were sent.
    pub(super) bundles: u64,
    pub(super) frames: u64,
    pub(super) redundant_bytes: u64,
    /// Frames of the current stream that were sent.
    pub(super) sent: u64,
}

impl Lossy {
    pub(super) fn new(model: LossModel, seed: u64, redundancy: Option<Redundancy>) -> Result<Self> {
        let trace = model.losses(seed)?;
        let redundancy = redundancy.map(RedundancyWriter::new);
        Ok(Self { trace, redundancy, lost: 0, bundles: 0, frames: 0, redundant_bytes: 0, sent: 0 })
    }

    /// Frames that were sent before the first of those that arrive now: what a file says of its frame numbers is not believed.
    pub(super) fn frames_before(&self, arrived: &[Bundle]) -> u64 {
        self.sent.saturating_sub(arrived.iter().map(|b| u64::from(b.frames)).sum())
    }
    /// What arrives of a bundle: nothing, or it and before it the copies it carries.
    pub(super) fn send(&mut self, bundle: Bundle) -> Result<Vec<Bundle>> {
        self.bundles += 1;
        self.frames += u64::from(bundle.frames);
        self.sent += u64::from(bundle.frames);
        let mut copies = Vec::new();
        if let Some(redundancy) = &mut self.redundancy {
            redundancy.write(&bundle, &mut copies);
            self.redundant_bytes += copies.len() as u64;
        }
        if self.trace.next().unwrap_or(false) {
            self.lost += 1;
            return Ok(Vec::new());
        }
        let copies = if copies.is_empty() { None } else { read_redundancy(bundle.first_frame, &copies)? };
        Ok(copies.into_iter().chain([bundle]).collect())
    }

    /// Kilobits a second that the copies add.
    pub(super) fn redundant_kbps(&self) -> f64 {
        self.redundant_bytes as f64 * 8.0 / (self.frames as f64 * 0.02) / 1000.0
    }
}
