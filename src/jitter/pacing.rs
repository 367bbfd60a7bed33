//! Holds what a publisher sends to real time, and live sound to a bound of lateness.
//!
//! A recording is sent as fast as its transport takes it: it is passed on in real time, and its sender waits. Live sound comes
//! in real time by itself; when it comes all at once, its way was blocked and it is late. Of such a backlog the newest is kept,
//! as long as the bound allows, and passed on 10 % faster than real time until nothing waits; the rest is dropped and counted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far a publisher may run ahead of real time: less than the shortest sensible listener queue.
pub const BURST: Duration = Duration::from_millis(500);

/// How much faster than real time a backlog of live sound is passed on.
const CATCH_UP: f64 = 1.1;

/// How long input that keeps coming may put off what could be passed on.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a publisher's sound is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pace {
    /// To be seen from how it comes: live, until more comes at once than time has passed.
    #[default]
    Unknown,
    /// As it happens: what is late is worth nothing.
    Live,
    /// All of it is wanted, however long that takes.
    Recording,
}

/// Media time against the clock. Silence in between is not saved up: who stops for a minute may not then send a minute.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// How far media may run ahead of real time.
    ahead: Duration,
    /// When the media passed on so far will have been played.
    played: Option<Instant>,
}

impl Schedule {
    /// Media may be passed on `ahead` of the time it is played at; what is longer than that, when the one before it has been.
    pub fn new(ahead: Duration) -> Self {
        Self { ahead, played: None }
    }

    /// When media that came at `arrived` and takes so long may be passed on.
    pub fn due(&self, takes: Duration, arrived: Instant) -> Instant {
        self.due_of(takes, takes, arrived)
    }

    /// As [`Schedule::due`], where only `own` of it is media, and silence comes before.
    fn due_of(&self, takes: Duration, own: Duration, arrived: Instant) -> Instant {
        let end = self.end(takes, own, arrived);
        end.checked_sub(self.ahead.max(own)).map_or(arrived, |due| due.max(arrived))
    }

    /// Notes that it was passed on.
    pub fn pass(&mut self, takes: Duration, arrived: Instant) {
        self.pass_of(takes, takes, arrived);
    }

    fn pass_of(&mut self, takes: Duration, own: Duration, arrived: Instant) {
        self.played = Some(self.end(takes, own, arrived));
    }

    /// Silence has passed when what follows it arrives.
    fn end(&self, takes: Duration, own: Duration, arrived: Instant) -> Instant {
        self.played.map_or(arrived + own, |p| (p + takes).max(arrived + own))
    }
}

/// What was passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed<T> {
    /// The bundle.
    pub item: T,
    /// When its last sample was recorded, as far as arrival times tell: not later than this.
    pub recorded: Instant,
}

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    media: Duration,
    /// Of it, what is not silence before the bundle.
    own: Duration,
    arrived: Instant,
    recorded: Instant,
}

/// The bundles of one publisher on their way to its listeners. Time is an argument; memory is bounded by the lag of live sound,
/// and by [`Pacing::is_full`] for recordings.
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
/// use undertone::jitter::{Pace, Pacing};
///
/// let (now, media) = (Instant::now(), Duration::from_secs(1));
/// let mut pacing = Pacing::new(Pace::Recording, Duration::from_millis(500));
/// pacing.push("first", media, now);
/// pacing.push("second", media, now);
/// assert_eq!(pacing.pop(now).map(|p| p.item), Some("first"));
/// // A recording is passed on in real time, however fast it comes.
/// assert!(pacing.pop(now).is_none() && pacing.wake() > Some(now));
/// assert!(pacing.pop(now + 2 * media).is_some());
/// ```
#[derive(Debug)]
pub struct Pacing<T> {
    pace: Pace,
    max_lag: Duration,
    waiting: VecDeque<Waiting<T>>,
    /// Media that waits.
    queued: Duration,
    schedule: Schedule,
    /// When the media that came so far would have ended, had it come in real time.
    steady: Option<Instant>,
    dropped: u64,
}

impl<T> Pacing<T> {
    /// A publisher whose sound may wait for at most `max_lag` if it is live.
    pub fn new(pace: Pace, max_lag: Duration) -> Self {
        Self {
            pace,
            max_lag,
            waiting: VecDeque::new(),
            queued: Duration::ZERO,
            schedule: Schedule::new(BURST),
            steady: None,
            dropped: 0,
        }
    }

    /// Never ahead of real time: where early packets would make all others seem late.
    #[must_use]
    pub fn never_ahead(self) -> Self {
        Self { schedule: Schedule::new(Duration::ZERO), ..self }
    }

    /// Takes a bundle of so much media that arrived at `now`. Live sound that is too late because of it is dropped.
    pub fn push(&mut self, item: T, media: Duration, now: Instant) {
        self.push_after_silence(item, media, media, now);
    }

    /// As [`Pacing::push`], where only `own` of the media is in the bundle, and silence comes before.
    pub fn push_after_silence(&mut self, item: T, media: Duration, own: Duration, now: Instant) {
        let ahead = self.ahead(media, now);
        self.waiting.push_back(Waiting { item, media, own, arrived: now, recorded: now });
        self.queued += media;
        if self.pace == Pace::Live || (self.pace == Pace::Unknown && ahead.is_zero()) {
            self.date();
        }
        if self.queued <= self.max_lag || self.pace == Pace::Recording {
            return;
        }
        if self.pace == Pace::Unknown && ahead > Duration::ZERO {
            // More than time has passed since the first: nobody records into the future.
            if ahead >= BURST {
                self.pace = Pace::Recording;
            }
            return;
        }
        while self.queued > self.max_lag && self.waiting.len() > 1 {
            let Some(late) = self.waiting.pop_front() else { break };
            self.queued -= late.media;
            self.dropped += 1;
        }
    }

    /// What came before something cannot have been recorded later than that less its length.
    fn date(&mut self) {
        for i in (1..self.waiting.len()).rev() {
            let latest = self.waiting[i].recorded.checked_sub(self.waiting[i].media);
            let before = &mut self.waiting[i - 1];
            match latest {
                Some(latest) if latest < before.recorded => before.recorded = latest,
                _ => break,
            }
        }
    }

    /// How far the media that came is ahead of the clock. While nothing waits it is not: a clock that is a little fast does not
    /// add up.
    fn ahead(&mut self, media: Duration, now: Instant) -> Duration {
        // The first bundle was recorded before it came.
        let latest = if self.waiting.is_empty() { now } else { now + BURST };
        let steady = self.steady.map_or(now, |s| s + media).min(latest);
        self.steady = Some(steady);
        steady.saturating_duration_since(now)
    }

    /// The next bundle to be passed on at `now`; None: wait until [`Pacing::wake`], or for the next bundle.
    pub fn pop(&mut self, now: Instant) -> Option<Passed<T>> {
        if self.wake()? > now {
            return None;
        }
        self.flush()
    }

    /// The next bundle whatever the time: a shutdown does not wait.
    pub fn flush(&mut self) -> Option<Passed<T>> {
        let due = self.wake()?;
        let next = self.waiting.pop_front()?;
        self.queued -= next.media;
        self.schedule.pass_of(self.takes(next.media), self.takes(next.own), next.arrived);
        // A recording is as old as it was before it came; it is late only from here on.
        let recorded = if self.is_live() { next.recorded } else { due };
        Some(Passed { item: next.item, recorded })
    }

    /// When [`Pacing::pop`] will have something if nothing comes before; None: nothing waits.
    pub fn wake(&self) -> Option<Instant> {
        let next = self.waiting.front()?;
        Some(self.schedule.due_of(self.takes(next.media), self.takes(next.own), next.arrived))
    }

    /// Whether what may be passed on has waited for so long that it must not wait for more input.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.wake().is_some_and(|wake| now.saturating_duration_since(wake) >= PATIENCE)
    }

    /// Whether nothing more should be taken in: a recording's sender waits.
    pub fn is_full(&self) -> bool {
        match self.pace {
            Pace::Live => false,
            Pace::Unknown => self.queued > self.max_lag + BURST,
            Pace::Recording => !self.waiting.is_empty(),
        }
    }

    /// Bundles that were dropped because they were too late.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether what comes is worth less when it is late.
    pub fn is_live(&self) -> bool {
        self.pace != Pace::Recording
    }

    /// Time of the clock that media takes.
    fn takes(&self, media: Duration) -> Duration {
        if self.is_live() { media.div_f64(CATCH_UP) } else { media }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const LAG: Duration = Duration::from_millis(400);
    const BUNDLE: Duration = Duration::from_millis(100);

    /// What became of bundles of 100 ms: number, age in ms when passed on, and when that was, in ms.
    struct Run {
        passed: Vec<(u64, u64, u64)>,
        dropped: u64,
    }

    /// Runs a publisher whose bundle n is recorded at `recorded(n)` and comes at `comes(n)`, in ms; a recording's sender waits.
    fn run(pace: Pace, bundles: u64, recorded: impl Fn(u64) -> u64, comes: impl Fn(u64) -> u64) -> Run {
        let (start, mut pacing) = (Instant::now(), Pacing::new(pace, LAG));
        let (mut passed, mut next, mut now) = (Vec::new(), 0, 0);
        while next < bundles || pacing.wake().is_some() {
            while next < bundles && comes(next) <= now && !pacing.is_full() {
                pacing.push(next, BUNDLE, start + MS(now));
                next += 1;
            }
            while let Some(Passed { item, recorded: when }) = pacing.pop(start + MS(now)) {
                assert!(
                    pace == Pace::Recording || when + MS(5) >= start + MS(recorded(item)),
                    "bundle {item} is older"
                );
                passed.push((item, now - recorded(item), now));
            }
            now += 5;
        }
        Run { passed, dropped: pacing.dropped() }
    }

    /// Live sound whose way is blocked from `from` to `to`, again every `every` ms.
    fn blocked(every: u64, from: u64, to: u64) -> impl Fn(u64) -> u64 {
        move |n| {
            let (recorded, phase) = (100 * n, (100 * n) % every);
            if (from..to).contains(&phase) { recorded - phase + to } else { recorded }
        }
    }

    #[test]
    fn a_recording_is_passed_on_whole_and_in_real_time() {
        for pace in [Pace::Unknown, Pace::Recording] {
            let Run { passed, dropped } = run(pace, 600, |_| 0, |_| 0);
            assert_eq!((passed.len(), dropped), (600, 0), "{pace:?}");
            for &(n, _, at) in &passed[100..] {
                let steady = n * 100 - 400;
                assert!(at >= steady.saturating_sub(100) && at <= steady + 105, "{pace:?}: bundle {n} at {at}");
            }
        }
    }

    #[test]
    fn a_stall_of_three_seconds_makes_nobody_late() {
        for pace in [Pace::Unknown, Pace::Live] {
            let Run { passed, dropped } = run(pace, 600, |n| 100 * n, blocked(60_000, 5_000, 8_000));
            assert!((24..=27).contains(&dropped), "{pace:?}: {dropped}");
            assert!(passed.iter().all(|&(_, age, _)| age <= 500), "{pace:?}");
            assert!(passed.iter().filter(|&&(n, ..)| n > 85).all(|&(_, age, _)| age <= 5), "{pace:?}: and at once");
        }
    }

    #[test]
    fn pauses_do_not_add_up() {
        // The whole daemon stops for 1.5 s, six times in a minute, and an hour of that.
        let Run { passed, dropped } = run(Pace::Unknown, 36_000, |n| 100 * n, blocked(10_000, 3_000, 4_500));
        assert!(passed.iter().all(|&(_, age, _)| age <= 500));
        assert_eq!(passed.len() as u64 + dropped, 36_000);
        assert!((10 * 360..=12 * 360).contains(&dropped), "{dropped}");
    }

    #[test]
    fn a_source_that_pauses_loses_nothing() {
        // Nothing is recorded for five seconds of every ten.
        let at = |n: u64| n / 50 * 10_000 + 100 * (n % 50);
        let Run { passed, dropped } = run(Pace::Unknown, 1_000, at, at);
        assert_eq!((passed.len(), dropped), (1_000, 0));
        assert!(passed.iter().all(|&(_, age, _)| age <= 5));
    }

    #[test]
    fn a_clock_that_is_fast_neither_drops_nor_adds_up() {
        // One in a thousand: 3.6 s in an hour.
        let at = |n: u64| 100 * n - n / 10;
        let Run { passed, dropped } = run(Pace::Unknown, 36_000, at, at);
        assert_eq!(dropped, 0);
        assert!(passed.iter().all(|&(_, age, _)| age <= 5));
        // And a stall after all that is still a stall.
        let stalled = |n: u64| if (35_000..35_030).contains(&n) { at(35_030) } else { at(n) };
        assert!(run(Pace::Unknown, 36_000, at, stalled).dropped >= 24);
    }

    #[test]
    fn what_comes_too_fast_is_caught_up_with_by_a_tenth() {
        // A second and a half at once, in pieces: what came first was passed on before the rest was there.
        let comes = |n: u64| if n < 15 { 1_500 + 60 * (n / 5) } else { 100 * n + 100 };
        let Run { passed, .. } = run(Pace::Live, 200, |n| 100 * n, comes);
        let late = |n: u64| passed.iter().find(|p| p.0 == n).map(|p| p.1);
        assert!(passed.iter().filter(|p| p.0 >= 15).all(|p| p.1 <= 600), "{passed:?}");
        assert!(late(199).is_some_and(|age| age <= 110), "{passed:?}");
    }

    #[test]
    fn bundles_of_a_second_do_not_wait_for_nothing() {
        let (start, mut pacing) = (Instant::now(), Pacing::new(Pace::Live, LAG));
        for n in 0..100 {
            let now = start + Duration::from_secs(n);
            pacing.push(n, Duration::from_secs(1), now);
            assert_eq!(pacing.pop(now), Some(Passed { item: n, recorded: now }));
        }
        assert_eq!(pacing.dropped(), 0);
    }
}
