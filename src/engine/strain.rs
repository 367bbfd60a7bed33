//! Whether the engine keeps up, and what gives way when it does not: new streams first, then stages.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::counters::EngineCounters;

/// Parts into which the stages of a stream are divided.
pub(super) const PARTS: u8 = 8;

/// Fewest parts that are left to a stream.
const LEAST: u8 = 3;

/// How long is looked back.
const WINDOW: Duration = Duration::from_millis(500);

/// Fewer jobs in a window say nothing about the engine: a machine that hiccups is not one that is full.
const ENOUGH: u64 = 100;

/// Share of jobs that took more than half of their time, above which nobody new is admitted. How busy the threads are says little:
/// more streams make larger batches, and a stream in a larger batch costs less.
const FULL: f64 = 0.1;

/// Above this share streams lose stages.
const TOO_MUCH: f64 = 0.5;

/// Below this share they get them back.
const EASY: f64 = 0.05;

/// Share of late jobs above which nobody is admitted and streams lose stages.
const LATE: f64 = 0.02;

/// What the last window said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    /// Share of the time that the threads were busy.
    pub(super) busy: f64,
    /// Whether nobody new should come.
    pub(super) full: bool,
    /// Some jobs take long: whatever can wait should.
    pub(super) strained: bool,
    /// Parts of [`PARTS`] that streams keep of their stages.
    pub(super) parts: u8,
}

struct State {
    since: Option<Instant>,
    before: EngineCounters,
    verdict: Verdict,
}

/// Looks at the counters now and then.
pub(super) struct Strain(Mutex<State>);

impl Default for Strain {
    fn default() -> Self {
        let verdict = Verdict { busy: 0.0, full: false, strained: false, parts: PARTS };
        Self(Mutex::new(State { since: None, before: EngineCounters::default(), verdict }))
    }
}

impl Strain {
    /// The verdict now; a new one at most every half second. While something else `gives_way` streams lose no stages.
    pub(super) fn look(
        &self,
        now: Instant,
        threads: usize,
        gives_way: bool,
        counters: impl FnOnce() -> EngineCounters,
    ) -> Verdict {
        let mut s = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(since) = s.since else {
            (s.since, s.before) = (Some(now), counters());
            return s.verdict;
        };
        let passed = now.saturating_duration_since(since);
        if passed < WINDOW {
            return s.verdict;
        }
        let counters = counters();
        let jobs = counters.jobs - s.before.jobs;
        let busy_s = (counters.busy_ns - s.before.busy_ns) as f64 * 1e-9;
        let busy = busy_s / (passed.as_secs_f64() * threads.max(1) as f64);
        let share = |now: u64, before: u64| (now - before) as f64 / jobs.max(1) as f64;
        let (late, tight) = (share(counters.late, s.before.late), share(counters.tight, s.before.tight));
        let judged = jobs >= ENOUGH;
        let parts = match s.verdict.parts {
            parts if judged && (tight > TOO_MUCH || late > LATE) && gives_way => parts,
            parts if judged && (tight > TOO_MUCH || late > LATE) => parts.saturating_sub(1).max(LEAST),
            parts if !judged || tight < EASY => (parts + 1).min(PARTS),
            parts => parts,
        };
        let full = judged && (tight > FULL || late > LATE || parts < PARTS);
        let strained = full || (judged && tight > EASY);
        s.verdict = Verdict { busy, full, strained, parts };
        (s.since, s.before) = (Some(now), counters);
        s.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(jobs: u64, late: u64, tight: u64) -> EngineCounters {
        EngineCounters { jobs, late, tight, ..EngineCounters::default() }
    }

    #[test]
    fn an_engine_that_is_late_admits_nobody_and_sheds_stages_until_it_keeps_up() {
        let (strain, start) = (Strain::default(), Instant::now());
        let look = |n: u32, c| strain.look(start + WINDOW * n, 2, false, || c);
        assert_eq!(look(0, counters(0, 0, 0)), Verdict { busy: 0.0, full: false, strained: false, parts: 8 });
        // A few take more than half of their time, then a fifth: full, but nobody loses stages.
        assert!(!look(1, counters(100, 0, 3)).full);
        let near = look(2, counters(200, 0, 23));
        assert!(near.full && near.parts == 8, "{near:?}");
        // Late while something else can give way: that does.
        let verdict = strain.look(start + WINDOW * 3, 2, true, || counters(300, 50, 23));
        assert!(verdict.strained && verdict.full && verdict.parts == 8, "{verdict:?}");
        // Late: one part a window, never below three.
        for n in 0..8u32 {
            let verdict = look(4 + n, counters(400 + 100 * u64::from(n), 50 * u64::from(n + 2), 23));
            assert!(verdict.full);
            assert_eq!(verdict.parts, (7 - n.min(4) as u8).max(3));
        }
        // At ease: they come back, and then there is room again.
        for n in 0..5u32 {
            let verdict = look(12 + n, counters(1_200 + 100 * u64::from(n), 450, 23));
            assert_eq!((verdict.parts, verdict.full), (4 + n as u8, n < 4));
        }
        // Most are tight without being late: that is too much as well.
        let verdict = look(17, counters(1_700, 450, 103));
        assert_eq!((verdict.parts, verdict.full), (7, true));
    }

    #[test]
    fn a_hiccup_of_a_quiet_engine_and_threads_that_are_busy_in_time_are_no_reason() {
        let (strain, start) = (Strain::default(), Instant::now());
        strain.look(start, 1, false, EngineCounters::default);
        let verdict = strain.look(start + WINDOW, 1, false, || counters(20, 20, 20));
        assert!(!verdict.full && verdict.parts == PARTS);
        let busy = EngineCounters { busy_ns: 500_000_000, ..counters(1_020, 20, 40) };
        let verdict = strain.look(start + WINDOW * 2, 1, false, || busy);
        assert!(!verdict.full && verdict.parts == PARTS && verdict.busy > 0.99, "{verdict:?}");
    }
}
