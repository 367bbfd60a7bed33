//! When a recording writes, pauses and gives up: decided without a disk and without a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::{Fsync, Record};

/// Bundles of a stream that may wait for the disk.
pub(super) const QUEUE: usize = 256;

/// How long a recording pauses after a failure.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// A bundle found no room and is lost to the recording.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow {
    /// Whether it is the first since a write was done.
    pub(super) is_first: bool,
}

/// What is to be written now.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Turn<T> {
    pub(super) waiting: VecDeque<T>,
    /// Whether it ends a pause.
    pub(super) is_retry: bool,
}

/// What waits to be written. When the disk hangs, it is what is saved.
#[derive(Debug)]
pub(super) struct WriteQueue<T> {
    waiting: VecDeque<T>,
    fsync: Fsync,
    pause: Duration,
    /// After a failure nothing is written until then.
    paused_until: Option<Instant>,
    /// Whether bundles are being dropped.
    overflows: bool,
}

impl<T> WriteQueue<T> {
    /// Pauses end when the next rotation is due if that is sooner than [`PAUSE`].
    pub(super) fn new(record: &Record) -> Self {
        let pause = record.rotate_after.min(PAUSE);
        Self { waiting: VecDeque::new(), fsync: record.fsync, pause, paused_until: None, overflows: false }
    }

    /// When to write although nothing comes: a pause ends, or what was written, the oldest of it at `dirty`, is to be forced
    /// to the disk.
    pub(super) fn due(&self, dirty: Option<Instant>) -> Option<Instant> {
        match (self.paused_until, self.fsync) {
            (Some(until), _) => (!self.waiting.is_empty()).then_some(until),
            (None, Fsync::Every(time)) => dirty.map(|dirty| dirty + time),
            (None, Fsync::Never | Fsync::Bundle) => None,
        }
    }

    /// # Errors
    /// [`Overflow`] if there is no room.
    pub(super) fn push(&mut self, bundle: T) -> Result<(), Overflow> {
        if self.waiting.len() < QUEUE {
            self.waiting.push_back(bundle);
            return Ok(());
        }
        Err(Overflow { is_first: !std::mem::replace(&mut self.overflows, true) })
    }

    /// What to write, if it is time to; `anyway` even if nothing waits.
    pub(super) fn start(&mut self, anyway: bool, now: Instant) -> Option<Turn<T>> {
        if (self.waiting.is_empty() && !anyway) || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        Some(Turn { is_retry: self.paused_until.take().is_some(), waiting: self.take() })
    }

    /// A write left this, which is still the oldest. Gives how much of all finds no room any more.
    pub(super) fn back(&mut self, mut left: VecDeque<T>, done: bool) -> usize {
        self.overflows &= !done;
        left.append(&mut self.waiting);
        let lost = left.len().saturating_sub(QUEUE);
        left.truncate(QUEUE);
        self.waiting = left;
        lost
    }

    /// Writes nothing for a while after a failure; gives for how long.
    pub(super) fn pause(&mut self, now: Instant) -> Duration {
        self.paused_until = Some(now + self.pause);
        self.pause
    }

    /// All that waits.
    pub(super) fn take(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn queue(keys: &str) -> (WriteQueue<u32>, Instant) {
        let text = format!("[record]\nfolder = \"recordings\"\n{keys}");
        (WriteQueue::new(&Config::parse(&text).unwrap().record.unwrap()), Instant::now())
    }

    #[test]
    fn a_disk_that_fails_for_hours_is_tried_every_ten_seconds_and_costs_what_finds_no_room() {
        let (mut queue, start) = queue("");
        let (mut now, mut tries, mut lost, mut warnings) = (start, 0, 0, 0);
        // A bundle every 100 ms for three hours.
        for number in 0..108_000 {
            now += Duration::from_millis(100);
            if let Err(overflow) = queue.push(number) {
                (lost, warnings) = (lost + 1, warnings + u32::from(overflow.is_first));
            }
            if let Some(turn) = queue.start(false, now) {
                assert_eq!((turn.is_retry, turn.waiting.front()), (tries > 0, Some(&0)));
                tries += 1;
                assert_eq!((queue.back(turn.waiting, false), queue.pause(now)), (0, PAUSE));
                assert_eq!(queue.due(None), Some(now + PAUSE));
            }
        }
        assert_eq!((tries, lost, warnings), (10_800 / 10, 108_000 - QUEUE, 1));
        // It works again: what waited is written first, and the next trouble is told of.
        let turn = queue.start(false, now + PAUSE).unwrap();
        assert_eq!((turn.waiting.len(), queue.back(VecDeque::new(), true)), (QUEUE, 0));
        (0..QUEUE as u32).for_each(|n| queue.push(n).unwrap());
        assert_eq!(queue.push(0), Err(Overflow { is_first: true }));
    }

    #[test]
    fn what_a_failed_write_leaves_stays_the_oldest_and_the_newest_goes() {
        let (mut queue, now) = queue("");
        (0..200).for_each(|n| queue.push(n).unwrap());
        let turn = queue.start(false, now).unwrap();
        (200..400).for_each(|n| queue.push(n).unwrap());
        assert_eq!(queue.back(turn.waiting, false), 400 - QUEUE);
        assert_eq!(queue.take(), (0..QUEUE as u32).collect::<Vec<_>>());
    }

    #[test]
    fn a_pause_lasts_no_longer_than_a_file_and_is_over_at_once_when_nothing_waits() {
        let (mut queue, now) = queue("rotate_minutes = 0.05");
        assert_eq!((queue.pause(now), queue.due(Some(now))), (Duration::from_secs(3), None));
        queue.push(1).unwrap();
        assert_eq!(queue.due(Some(now)), Some(now + Duration::from_secs(3)));
        assert_eq!(queue.start(true, now + Duration::from_secs(2)), None);
        assert!(queue.start(false, now + Duration::from_secs(3)).unwrap().is_retry);
    }

    #[test]
    fn what_is_written_is_forced_to_the_disk_when_it_is_due() {
        for (key, due) in [("5.0", Some(5)), ("\"never\"", None), ("\"bundle\"", None)] {
            let (mut queue, now) = queue(&format!("fsync = {key}"));
            assert_eq!(queue.due(Some(now)), due.map(|s| now + Duration::from_secs(s)));
            assert_eq!((queue.due(None), queue.start(false, now)), (None, None));
            assert_eq!(queue.start(true, now), Some(Turn { waiting: VecDeque::new(), is_retry: false }));
        }
    }
}
