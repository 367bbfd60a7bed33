//! What waits for one listener: bounded, and for live sound no longer than its worth lasts.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What becomes of a listener that does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It wants everything: when its queue is full it is closed.
    All,
    /// It skips ahead to the newest when its queue is full, and is closed if it then fills up again without having been empty.
    Newest,
    /// As `Newest`; and live sound that waited too long is skipped even before. For what plays in real time and so would be late
    /// for ever.
    Prompt,
}

/// What is known of a bundle beside what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Its length in frames.
    pub frames: u64,
    /// Its length.
    pub media: Duration,
    /// When its last sample was recorded.
    pub recorded: Instant,
    /// Whether it is worth less when it is late.
    pub live: bool,
}

/// The queue of one listener. Time is an argument.
#[derive(Debug)]
pub struct Backlog<T> {
    keep: Keep,
    room: usize,
    max_lag: Duration,
    items: VecDeque<(T, Stamp)>,
    /// Media that waits.
    queued: Duration,
    /// Frames that were skipped and not yet reported.
    skipped: u64,
    /// It skipped and has not been empty since.
    behind: bool,
}

impl<T> Backlog<T> {
    /// A queue of at most `room` bundles; after a skip media of about `max_lag` is left in it.
    pub fn new(keep: Keep, room: usize, max_lag: Duration) -> Self {
        let (items, queued) = (VecDeque::new(), Duration::ZERO);
        Self { keep, room: room.max(1), max_lag, items, queued, skipped: 0, behind: false }
    }

    /// Adds a bundle; false if the listener is to be closed instead.
    #[must_use]
    pub fn push(&mut self, item: T, stamp: Stamp) -> bool {
        if self.items.len() >= self.room {
            if self.keep == Keep::All || self.behind {
                return false;
            }
            self.behind = true;
            self.skip_while(|queue, _| queue.queued > queue.max_lag || queue.items.len() >= queue.room);
        }
        self.queued += stamp.media;
        self.items.push_back((item, stamp));
        true
    }

    /// The next bundle at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<(T, Stamp)> {
        if self.keep == Keep::Prompt {
            self.skip_while(|queue, stamp| {
                let age = now.saturating_duration_since(stamp.recorded);
                stamp.live && age > queue.max_lag && queue.queued > queue.max_lag
            });
        }
        let next = self.take();
        self.behind &= !self.items.is_empty();
        next
    }

    /// Frames that were skipped since this was last asked.
    pub fn take_skipped(&mut self) -> u64 {
        std::mem::take(&mut self.skipped)
    }

    fn take(&mut self) -> Option<(T, Stamp)> {
        let (item, stamp) = self.items.pop_front()?;
        self.queued -= stamp.media;
        Some((item, stamp))
    }

    fn skip_while(&mut self, late: impl Fn(&Self, &Stamp) -> bool) {
        while self.items.front().is_some_and(|(_, stamp)| late(self, stamp)) {
            if let Some((_, stamp)) = self.take() {
                self.skipped += stamp.frames;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn stamp(recorded: Instant, live: bool) -> Stamp {
        Stamp { frames: 5, media: MS(100), recorded, live }
    }

    fn numbers(queue: &mut Backlog<u64>, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(now)).map(|(n, _)| n).collect()
    }

    #[test]
    fn a_full_queue_skips_to_the_newest_and_says_so_and_twice_is_too_slow() {
        let now = Instant::now();
        let mut queue = Backlog::new(Keep::Newest, 20, MS(400));
        assert!((0..21).all(|n| queue.push(n, stamp(now, true))));
        assert_eq!(queue.take_skipped(), 16 * 5);
        assert_eq!(queue.take_skipped(), 0);
        // Whoever empties it may fall behind again.
        assert_eq!(numbers(&mut queue, now), [16, 17, 18, 19, 20]);
        assert!((0..21).all(|n| queue.push(n, stamp(now, true))));
        assert_eq!(queue.pop(now).map(|(n, _)| n), Some(16));
        // Whoever takes nothing does not.
        let taken = (0..40).take_while(|&n| queue.push(n, stamp(now, true))).count();
        assert_eq!(taken, 16);
    }

    #[test]
    fn whoever_wants_everything_is_closed_and_loses_nothing_before() {
        let now = Instant::now();
        let mut queue = Backlog::new(Keep::All, 3, MS(400));
        assert_eq!(
            (0..5).map(|n| queue.push(n, stamp(now, true))).collect::<Vec<_>>(),
            [true, true, true, false, false]
        );
        assert_eq!(numbers(&mut queue, now + MS(60_000)), [0, 1, 2]);
        assert_eq!(queue.take_skipped(), 0);
    }

    #[test]
    fn what_plays_in_real_time_is_never_late_by_more_than_the_bound() {
        let start = Instant::now();
        let at = |n: u64| start + MS(100 * n);
        for (keep, live, first) in [(Keep::Prompt, true, 26), (Keep::Prompt, false, 0), (Keep::Newest, true, 0)] {
            let mut queue = Backlog::new(keep, 64, MS(400));
            assert!((0..31).all(|n| queue.push(n, stamp(at(n), live))));
            // It took nothing for three seconds.
            assert_eq!(queue.pop(at(30)).map(|(n, _)| n), Some(first), "{keep:?}");
            assert_eq!(queue.take_skipped(), 5 * first);
        }
    }
}
