//! How many stages each frame of a graded bundle has: adaptive frequencies of the change from frame to frame.

use crate::token::Frequencies;
use crate::units::{MAX_STAGES, StageCount};

/// Changes from the most stages to one and back.
const CHANGES: usize = 2 * MAX_STAGES as usize - 1;

/// Where no change is among them.
const NONE: usize = MAX_STAGES as usize - 1;

/// What an observed change adds to its count, and the sum at which all counts are halved.
const STEP: u32 = 32;
const MOST: u32 = 4096;

/// Counts of changes, apart for frames after a fall, after no change, and after a rise (docs/bitstream.md, section 6).
#[derive(Debug, Clone)]
pub(super) struct Depths {
    counts: [[u32; CHANGES]; 3],
    /// Stages of the frame before, and which counts its own change selects; None at the start.
    last: Option<(u8, usize)>,
    frequencies: Frequencies,
}

impl Depths {
    pub(super) fn new() -> Self {
        let mut depths = Self { counts: [[0; CHANGES]; 3], last: None, frequencies: Frequencies::uniform(1) };
        depths.restart();
        depths
    }

    /// Forgets everything.
    pub(super) fn restart(&mut self) {
        self.last = None;
        for counts in &mut self.counts {
            for (i, count) in counts.iter_mut().enumerate() {
                *count = 1 + (64 >> i.abs_diff(NONE).min(6));
            }
        }
    }

    /// Frequencies of 1 to `stages` stages; symbol 0 stands for one.
    pub(super) fn frequencies(&mut self, stages: StageCount) -> &Frequencies {
        match self.last {
            None => self.frequencies = Frequencies::uniform(stages.index()),
            Some((depth, context)) => {
                let from = MAX_STAGES as usize - usize::from(depth);
                self.frequencies.set_counts(&self.counts[context][from..from + stages.index()]);
            }
        }
        &self.frequencies
    }

    /// Takes the stages of the next frame.
    pub(super) fn push(&mut self, depth: u8) {
        let mut context = 1;
        if let Some((last, before)) = self.last {
            let change = (NONE + usize::from(depth)).saturating_sub(usize::from(last));
            let counts = &mut self.counts[before];
            if let Some(count) = counts.get_mut(change) {
                *count += STEP;
            }
            if counts.iter().sum::<u32>() > MOST {
                counts.iter_mut().for_each(|c| *c = (*c).div_ceil(2));
            }
            context = 1 + usize::from(depth > last) - usize::from(depth < last);
        }
        self.last = Some((depth, context));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_depths_become_cheap_and_every_depth_stays_possible() {
        let stages = StageCount::MAX;
        let mut depths = Depths::new();
        let mut bits = Vec::new();
        for i in 0..400u16 {
            let depth = if i % 40 == 39 { 24 } else { 6 };
            bits.push(depths.frequencies(stages).bits(depth - 1));
            depths.push(depth as u8);
        }
        assert!(bits.iter().all(|b| b.is_finite()));
        let (early, late) = (bits[1..10].iter().sum::<f64>(), bits[385..394].iter().sum::<f64>());
        assert!(late < 0.5 * early, "{early} {late}");
        depths.push(1);
        for few in 1..=24 {
            let stages = StageCount::new(few).unwrap();
            assert_eq!(depths.frequencies(stages).entries(), stages.index());
        }
        depths.restart();
        assert_eq!(depths.frequencies(stages), &Frequencies::uniform(24));
    }
}
