//! How much of a gap is filled when bundles are played as they come.
//!
//! A frame number costs its sender nothing. If every gap that it claims were filled, sound would grow later with each of them,
//! and a hostile sender could make a listener decode seconds of nothing a packet. What is filled is therefore bounded by the
//! clock: what has been given out may never end much later than now.

use std::time::{Duration, Instant};

use super::Moment;

/// What is given out ends at most so much later than now because of gaps: what a server lets a publisher run ahead.
const AHEAD: Duration = Duration::from_millis(500);

/// As much for sound that keeps its time.
const AHEAD_KEEPING: Duration = Duration::from_secs(1);

/// Longest fill where sound is heard as it comes: the last sound goes on and fades, and then what is new is worth more.
const LONGEST: Duration = Duration::from_millis(200);

/// The gaps of one stream. Time is an argument.
#[derive(Debug, Clone)]
pub struct Gaps<T = Instant> {
    frame: Duration,
    ahead: Duration,
    longest: Duration,
    /// When what was given out will have been played.
    ends: Option<T>,
}

impl<T: Moment> Gaps<T> {
    /// For ears: `frame` is the length of a frame. A gap is filled for at most 200 ms.
    pub fn live(frame: Duration) -> Self {
        Self { frame, ahead: AHEAD, longest: LONGEST, ends: None }
    }

    /// For files, which keep the time that has passed.
    pub fn keeping_time(frame: Duration) -> Self {
        Self { frame, ahead: AHEAD_KEEPING, longest: Duration::MAX, ends: None }
    }

    /// How many of the `missing` frames in front of a bundle of `frames` frames that came at `now` are to be filled.
    pub fn fill(&mut self, missing: u64, frames: u8, now: T) -> u64 {
        let ends = self.ends.unwrap_or(now);
        let room = (now + self.ahead).since(ends).min(self.longest);
        let filled = missing.min((room.as_micros() / self.frame.as_micros().max(1)) as u64);
        let length = self.frame.saturating_mul(u32::try_from(filled).unwrap_or(u32::MAX));
        // Where nothing came for long, a listener's ears have had silence, but a file has not.
        let from = if self.longest == Duration::MAX { ends } else { ends.max(now) };
        self.ends = Some((from + length).max(now) + self.frame * u32::from(frames));
        filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Duration = Duration::from_millis(20);

    /// Frames given out, filled ones included, for bundles of five frames every 100 ms with a gap before each.
    fn played(mut gaps: Gaps, gap: u64, bundles: u32) -> u64 {
        let start = Instant::now();
        (0..bundles).map(|n| 5 + gaps.fill(gap, 5, start + Duration::from_millis(100) * n)).sum()
    }

    #[test]
    fn a_sender_whose_numbers_jump_makes_nobody_late() {
        for (gap, most) in [(1, 600 * 5 + 25), (240, 600 * 5 + 25), (u64::MAX / 2, 600 * 5 + 25)] {
            let frames = played(Gaps::live(FRAME), gap, 600);
            assert!(frames <= most, "a gap of {gap}: {frames} frames in a minute");
            assert!(played(Gaps::keeping_time(FRAME), gap, 600) <= 600 * 5 + 50);
        }
    }

    #[test]
    fn a_lost_bundle_is_filled_wherever_it_comes() {
        let (start, mut gaps) = (Instant::now(), Gaps::live(FRAME));
        let mut at = start;
        for n in 0..1_000u32 {
            let lost = u64::from(n % 10 == 9);
            at += Duration::from_millis(100) * (1 + lost as u32);
            assert_eq!(gaps.fill(5 * lost, 5, at), 5 * lost, "bundle {n}");
        }
    }

    #[test]
    fn after_a_stall_ears_get_what_is_new_and_files_keep_their_time() {
        let (start, stalled) = (Instant::now(), Duration::from_secs(3));
        for (mut gaps, filled) in [(Gaps::live(FRAME), 10), (Gaps::keeping_time(FRAME), 130)] {
            gaps.fill(0, 5, start);
            // 2.6 of 3 seconds were dropped on the way.
            assert_eq!(gaps.fill(130, 5, start + stalled), filled);
        }
    }
}
