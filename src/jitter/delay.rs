//! How long a receiver should wait: from how late packets were lately.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::profile::Profile;

/// Packets that are remembered: 50 s of bundles of 100 ms.
const WINDOW: usize = 500;

/// Of these, the share that should come in time.
const SHARE: f64 = 0.98;

/// The newest packets, which may raise the delay at once when the network changes; a single late one does not.
const RECENT: usize = 20;

/// Of these, the share that should come in time.
const RECENT_SHARE: f64 = 0.9;

/// What is waited beyond that.
const MARGIN_US: i64 = 10_000;

/// The delay shrinks by this share of the time that passes: 20 ms a second cannot be heard.
const SHRINK: f64 = 0.02;

/// How a buffer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlayoutOptions {
    /// Length of a frame.
    pub frame: Duration,
    /// Shortest delay beyond the fastest packet.
    pub least: Duration,
    /// Delay before anything is measured.
    pub start: Duration,
    /// Longest delay.
    pub most: Duration,
    /// Give what is in order at once, and wait only for what is missing: for a relay, whose listeners wait themselves.
    pub eager: bool,
}

impl Default for PlayoutOptions {
    fn default() -> Self {
        Self {
            frame: Profile::FRAME_TIME,
            least: Duration::from_millis(20),
            start: Duration::from_millis(80),
            most: Duration::from_secs(1),
            eager: false,
        }
    }
}

/// Delay over the fastest packet of the window. Transit times are microseconds on a clock with any zero.
#[derive(Debug)]
pub(super) struct Delay {
    least: Duration,
    most: Duration,
    current: Duration,
    at: Option<Instant>,
    transits: VecDeque<i64>,
    scratch: Vec<i64>,
    /// Interarrival jitter of RFC 3550, section 6.4.1, in microseconds.
    jitter: f64,
}

impl Delay {
    pub(super) fn new(options: &PlayoutOptions) -> Self {
        Self {
            least: options.least,
            most: options.most,
            current: options.start,
            at: None,
            transits: VecDeque::new(),
            scratch: Vec::new(),
            jitter: 0.0,
        }
    }

    /// Forgets what was fast: the clocks or the way have changed. The delay stays.
    pub(super) fn rebase(&mut self) {
        self.transits.clear();
    }

    /// Transit time of the fastest packet.
    pub(super) fn base(&self) -> i64 {
        self.transits.iter().copied().min().unwrap_or(0)
    }

    pub(super) fn current(&self) -> Duration {
        self.current
    }

    pub(super) fn jitter(&self) -> Duration {
        Duration::from_micros(self.jitter as u64)
    }

    /// How late half of the newest packets were: queues on the way.
    pub(super) fn queued(&mut self) -> Duration {
        let late = self.quantile(RECENT, 0.5) - self.base();
        Duration::from_micros(late.max(0) as u64)
    }

    /// How late a packet is.
    pub(super) fn lateness(&self, transit: i64) -> Duration {
        if self.transits.is_empty() {
            return Duration::ZERO;
        }
        Duration::from_micros(transit.saturating_sub(self.base()).max(0) as u64)
    }

    /// Takes a packet's transit time. One later than the longest delay was held by an outage; no waiting would help, so it
    /// does not count.
    pub(super) fn arrived(&mut self, transit: i64, now: Instant) {
        if self.lateness(transit) > self.most {
            return;
        }
        if let Some(last) = self.transits.back() {
            self.jitter += ((transit - last).abs() as f64 - self.jitter) / 16.0;
        }
        if self.transits.len() == WINDOW {
            self.transits.pop_front();
        }
        self.transits.push_back(transit);
        let late = self.quantile(WINDOW, SHARE).max(self.quantile(RECENT, RECENT_SHARE)) - self.base() + MARGIN_US;
        let target = Duration::from_micros(late.max(0) as u64).clamp(self.least, self.most);
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        // Before there is enough to measure, the first guess holds.
        let slowest = if self.transits.len() < RECENT { Duration::ZERO } else { passed.mul_f64(SHRINK) };
        self.current = target.max(self.current.saturating_sub(slowest)).min(self.most);
    }

    /// Quantile of the newest `n` transit times.
    fn quantile(&mut self, n: usize, share: f64) -> i64 {
        let n = n.min(self.transits.len());
        if n == 0 {
            return 0;
        }
        self.scratch.clear();
        self.scratch.extend(self.transits.iter().rev().take(n));
        let at = ((n as f64 * share).ceil() as usize).clamp(1, n) - 1;
        *self.scratch.select_nth_unstable(at).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(delay: &mut Delay, transits: impl Iterator<Item = i64>, now: &mut Instant) {
        for t in transits {
            *now += Duration::from_millis(100);
            delay.arrived(t, *now);
        }
    }

    #[test]
    fn the_delay_grows_at_once_with_the_jitter_and_shrinks_slowly() {
        let (mut now, mut delay) = (Instant::now(), Delay::new(&PlayoutOptions::default()));
        feed(&mut delay, (0..200).map(|n| n % 3 * 1_000), &mut now);
        assert_eq!(delay.current(), PlayoutOptions::default().least);
        feed(&mut delay, [90_000, 0, 0].into_iter(), &mut now);
        assert_eq!(delay.current(), PlayoutOptions::default().least, "one late packet is no jitter");
        feed(&mut delay, (0..6).map(|n| n % 2 * 90_000), &mut now);
        assert_eq!(delay.current(), Duration::from_millis(100));
        // A second later it is at most 20 ms shorter, and in the end as short as before.
        feed(&mut delay, (0..10).map(|_| 0), &mut now);
        let slow = delay.current();
        assert!(slow >= Duration::from_millis(80), "{slow:?}");
        feed(&mut delay, (0..600).map(|_| 0), &mut now);
        assert_eq!(delay.current(), PlayoutOptions::default().least);
    }

    #[test]
    fn an_outage_is_not_jitter_and_a_longer_way_becomes_normal() {
        let (mut now, mut delay) = (Instant::now(), Delay::new(&PlayoutOptions::default()));
        feed(&mut delay, (0..100).map(|_| 0), &mut now);
        feed(&mut delay, (0..10).map(|n| 2_000_000 + n), &mut now);
        assert_eq!(delay.current(), PlayoutOptions::default().least);
        feed(&mut delay, (0..1_200).map(|_| 300_000), &mut now);
        assert_eq!((delay.base(), delay.queued()), (300_000, Duration::ZERO));
        assert_eq!(delay.current(), PlayoutOptions::default().least);
    }
}
