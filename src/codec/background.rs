//! The background of a stream: described now and then by its sender, made up by its receivers.
//!
//! A description is the codes of one frame. Comfort noise is made of the codes of the last background frames, in random order, through
//! the decoder like everything else: it has their spectrum and level, and no two frames in a row are the same.

use std::collections::VecDeque;

use crate::bitstream::Bundle;
use crate::units::StageCount;

/// Stages of a description: what fits into 5 bytes.
pub(super) const BACKGROUND_STAGES: u8 = 4;

/// Frames from one description to the next: 400 ms.
pub const DESCRIPTION_FRAMES: u64 = 20;

/// Frames after a description that are background unless something else comes: a second. Later ones are lost.
pub const MAX_QUIET_FRAMES: u64 = 50;

/// Frames before the first description that are background as well: a sender sends at least so many.
const BEFORE: usize = 10;

/// Frames that are drawn from.
const POOL: usize = 16;

/// What a receiver knows of a stream's background.
#[derive(Debug, Clone, Default)]
pub struct Background {
    /// Codes of the last frames that came as they are.
    heard: VecDeque<Vec<u16>>,
    /// Codes of background frames, oldest first.
    pool: VecDeque<Vec<u16>>,
    last: usize,
}

impl Background {
    /// Notes frames that came as they are.
    pub fn heard(&mut self, bundle: &Bundle) {
        for codes in bundle.by_frame() {
            if self.heard.len() == BEFORE {
                self.heard.pop_front();
            }
            self.heard.push_back(codes.to_vec());
        }
    }

    /// Notes a description: the codes of a frame.
    pub fn describe(&mut self, codes: &[u16]) {
        if !self.heard.is_empty() {
            // The first of a silence.
            self.pool.clear();
            self.pool.extend(self.heard.drain(..));
        }
        if self.pool.len() == POOL {
            self.pool.pop_front();
        }
        self.pool.push_back(codes.to_vec());
    }

    /// Codes of so many frames of background, all with the same number of stages, which is given; None before any description.
    pub fn frames(&mut self, first_frame: u64, frames: usize) -> Option<(StageCount, Vec<u16>)> {
        let stages = self.pool.iter().map(Vec::len).min()?;
        let mut codes = Vec::with_capacity(frames * stages);
        for frame in (first_frame..).take(frames) {
            // SplitMix64's finaliser: the same frames for whoever heard the same.
            let mut x = frame.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x ^= x >> 27;
            // Any but the last one.
            let others = self.pool.len().saturating_sub(1).max(1);
            self.last = (self.last + 1 + (x % others as u64) as usize) % self.pool.len();
            codes.extend_from_slice(&self.pool[self.last][..stages]);
        }
        Some((StageCount::new(stages as u8).ok()?, codes))
    }
}

/// What a sender does with its bundles in silence.
#[derive(Debug, Clone, Default)]
pub struct Silencer {
    /// The frame that the next description is due at; None outside of silence.
    due: Option<u64>,
    /// Mean level of the background in dB.
    level: f32,
}

/// What is to be sent of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    Whole,
    /// The codes of one of its frames, which describe the background.
    Description(Vec<u16>),
    /// Nothing.
    Nothing,
}

impl Silencer {
    /// Decides on a bundle that is background or not; `levels` has the level of each of its frames in dB. The last one is described in any
    /// case: without it nobody would know how long the silence before it was.
    pub fn next(&mut self, bundle: &Bundle, is_background: bool, levels: &[f32], is_last: bool) -> Sent {
        if !is_background {
            self.due = None;
            return Sent::Whole;
        }
        let mean = levels.iter().sum::<f32>() / levels.len().max(1) as f32;
        self.level = if self.due.is_some() { self.level + 0.2 * (mean - self.level) } else { mean };
        if self.due.is_some_and(|due| bundle.first_frame < due) && !is_last {
            return Sent::Nothing;
        }
        self.due = Some(bundle.first_frame.saturating_add(DESCRIPTION_FRAMES));
        // The most usual frame, so that chance says nothing about the level.
        let usual = |(_, level): &(&[u16], f32)| ((level - self.level).abs() * 100.0) as i64;
        let frames = bundle.by_frame().zip(levels.iter().copied());
        let codes = frames.min_by_key(usual).map(|(codes, _)| codes).unwrap_or_default();
        Sent::Description(codes[..codes.len().min(usize::from(BACKGROUND_STAGES))].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(first_frame: u64, stages: u8) -> Bundle {
        let codes = (0..5 * u16::from(stages)).map(|c| c + first_frame as u16).collect();
        Bundle::new(first_frame, 5, StageCount::new(stages).unwrap(), codes).unwrap()
    }

    #[test]
    fn noise_is_made_of_the_last_background_frames_and_never_twice_the_same_in_a_row() {
        let mut background = Background::default();
        assert_eq!(background.frames(0, 3), None);
        for n in 0..8 {
            background.heard(&bundle(5 * n, 6));
        }
        assert_eq!(background.frames(0, 3), None);
        background.describe(&[1, 2, 3, 4]);
        let (stages, codes) = background.frames(40, 200).unwrap();
        let frames: Vec<&[u16]> = codes.chunks(stages.index()).collect();
        assert_eq!((stages.value(), frames.len()), (4, 200));
        assert!(frames.windows(2).all(|w| w[0] != w[1]));
        let mut kinds = frames.clone();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), BEFORE + 1, "each of the last frames, and the description");
        // Later descriptions take their place.
        (0..16).for_each(|n| background.describe(&[n; 4]));
        let (_, codes) = background.frames(40, 200).unwrap();
        assert!(codes.chunks(4).all(|f| f[0] == f[3]));
        // And one description alone is repeated.
        let mut alone = Background::default();
        alone.describe(&[9; 4]);
        assert_eq!(alone.frames(7, 2).unwrap().1, [9; 8]);
    }

    #[test]
    fn a_description_is_sent_every_400_ms_and_all_of_what_is_not_background() {
        let mut silencer = Silencer::default();
        let levels = [-60.0, -63.0, -61.0, -61.2, -60.5];
        let mut sent = Vec::new();
        for n in 0..20u64 {
            sent.push(silencer.next(&bundle(5 * n, 6), (3..16).contains(&n), &levels, n == 14));
        }
        let described: Vec<usize> = (0..20).filter(|&n| matches!(sent[n], Sent::Description(_))).collect();
        assert_eq!(described, [3, 7, 11, 14]);
        assert!((0..20).all(|n| (sent[n] == Sent::Whole) != (3..16).contains(&n)));
        // The frame whose level is nearest to the mean, and its first stages.
        assert_eq!(sent[3], Sent::Description(vec![33, 34, 35, 36]));
    }
}
