//! Bundles on their way to a subscriber that would rather wait than pay for headers.

use std::time::{Duration, Instant};

use crate::bitstream::{BitstreamError, PackedBundle};

/// Frames that a bundle may come too late and is still waited for.
const SLACK: u8 = 1;

/// Joins bundles to longer ones. Time is an argument.
#[derive(Debug)]
pub struct Joiner {
    frames: u8,
    frame: Duration,
    /// What waits, and until when: a stream that pauses must not keep what was said before.
    held: Option<(PackedBundle, Instant)>,
}

impl Joiner {
    /// For at most so many frames, 1 to 50, of this length.
    pub fn new(frames: u8, frame: Duration) -> Self {
        Self { frames, frame, held: None }
    }

    /// Takes a bundle that came at `now`; appends what is to be sent to `out`, oldest first.
    ///
    /// # Errors
    /// [`BitstreamError`] for a payload that does not fit.
    pub fn push(
        &mut self,
        bundle: PackedBundle,
        now: Instant,
        out: &mut Vec<PackedBundle>,
    ) -> Result<(), BitstreamError> {
        let length = bundle.frames;
        let (whole, until) = match self.held.take() {
            // The last that fits comes at that moment: it may be a little late.
            None => (bundle, now + self.frame * u32::from(self.frames.saturating_sub(length) + SLACK)),
            Some((held, until)) => match held.joined(&bundle)?.filter(|j| j.frames <= self.frames) {
                Some(joined) => (joined, until),
                None => {
                    out.push(held);
                    return self.push(bundle, now, out);
                }
            },
        };
        // Another of this length would be too much.
        if u16::from(whole.frames) + u16::from(length) > u16::from(self.frames) {
            out.push(whole);
        } else {
            self.held = Some((whole, until));
        }
        Ok(())
    }

    /// When [`Joiner::flush`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.held.as_ref().map(|(_, until)| *until)
    }

    /// What waits.
    pub fn flush(&mut self) -> Option<PackedBundle> {
        self.held.take().map(|(bundle, _)| bundle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::Bundle;
    use crate::units::StageCount;

    const FRAME: Duration = Duration::from_millis(20);

    fn bundle(first_frame: u64, frames: u8, stages: u8) -> PackedBundle {
        let codes = vec![7; usize::from(frames) * usize::from(stages)];
        PackedBundle::pack(&Bundle::new(first_frame, frames, StageCount::new(stages).unwrap(), codes).unwrap())
    }

    /// First frames and lengths of what leaves for bundles `(first frame, frames)`.
    fn joined(limit: u8, bundles: &[(u64, u8)]) -> Vec<(u64, u8)> {
        let (now, mut joiner, mut out) = (Instant::now(), Joiner::new(limit, FRAME), Vec::new());
        for (n, &(first, frames)) in bundles.iter().enumerate() {
            joiner.push(bundle(first, frames, 1 + n as u8 % 3), now, &mut out).unwrap();
        }
        out.extend(joiner.flush());
        out.iter().map(|b| (b.first_frame, b.frames)).collect()
    }

    #[test]
    fn as_many_bundles_as_fit_travel_together_and_gaps_stay() {
        assert_eq!(joined(10, &[(0, 5), (5, 5), (10, 5), (15, 5), (20, 5)]), [(0, 10), (10, 10), (20, 5)]);
        assert_eq!(joined(12, &[(0, 5), (5, 5), (10, 5)]), [(0, 10), (10, 5)]);
        assert_eq!(joined(4, &[(0, 5), (5, 5)]), [(0, 5), (5, 5)]);
        assert_eq!(joined(50, &[(0, 5), (10, 5), (15, 20)]), [(0, 5), (10, 25)]);
        assert_eq!(joined(10, &[(0, 5), (5, 20), (25, 1)]), [(0, 5), (5, 20), (25, 1)]);
    }

    #[test]
    fn nothing_waits_longer_than_the_latency() {
        let (now, mut joiner, mut out) = (Instant::now(), Joiner::new(50, FRAME), Vec::new());
        joiner.push(bundle(0, 5, 2), now, &mut out).unwrap();
        joiner.push(bundle(5, 5, 2), now + 5 * FRAME, &mut out).unwrap();
        assert_eq!((joiner.due(), out.len()), (Some(now + 46 * FRAME), 0));
        assert_eq!(joiner.flush().map(|b| b.frames), Some(10));
        assert_eq!((joiner.due(), joiner.flush()), (None, None));
    }
}
