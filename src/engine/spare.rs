//! How much is searched beside live streams: what is left of the machine once all of them are served.

use std::time::{Duration, Instant};

use super::strain::Verdict;

/// Most steps of a search: more are hardly heard.
const MOST: u32 = 20;

/// Share of the time that engine threads leave which searches may take.
const BUDGET: f64 = 0.5;

/// Share of it that another step must leave unused: what a step takes varies.
const RESERVE: f64 = 0.1;

/// How long is looked back.
const WINDOW: Duration = Duration::from_millis(500);

/// Windows in a row with room for another step before it is taken, and windows that nothing is tried after not even one had room.
const CALM: u32 = 2;
const REST: u32 = 10;

/// How many steps are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EffortMode {
    /// As many as there is time for.
    #[default]
    Auto,
    /// So many, unless a bundle would be late.
    Steps(u32),
}

/// Steps of all searches, by what the windows before really took. They fall at once, before streams lose stages, and rise one by one.
/// Time is an argument.
#[derive(Debug)]
pub(super) struct Spare {
    mode: EffortMode,
    steps: u32,
    since: Option<Instant>,
    /// In this window: time of searches, and searches that were cut short.
    busy: Duration,
    late: u32,
    searches: u32,
    calm: u32,
    rest: u32,
}

impl Spare {
    pub(super) fn new() -> Self {
        Self {
            mode: EffortMode::Auto,
            steps: 0,
            since: None,
            busy: Duration::ZERO,
            late: 0,
            searches: 0,
            calm: 0,
            rest: 0,
        }
    }

    pub(super) fn set_mode(&mut self, mode: EffortMode) {
        self.mode = mode;
    }

    /// Steps of the next search.
    pub(super) fn steps(&self) -> u32 {
        match self.mode {
            EffortMode::Auto => self.steps,
            EffortMode::Steps(steps) => steps,
        }
    }

    /// Whether searches take time that streams could have instead of stages.
    pub(super) fn gives_way(&self) -> bool {
        self.mode == EffortMode::Auto && self.steps > 0
    }

    /// Notes a search.
    pub(super) fn took(&mut self, took: Duration, late: bool) {
        self.busy += took;
        self.late += u32::from(late);
        self.searches += 1;
    }

    /// Looks back if a window has passed; `verdict` is what the engine with so many threads says of itself.
    pub(super) fn look(&mut self, now: Instant, threads: usize, verdict: &Verdict) {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since);
        if passed < WINDOW {
            return;
        }
        let share = self.busy.as_secs_f64() / passed.as_secs_f64();
        let cut_short = self.late > self.searches / 20;
        let idle = self.searches == 0;
        (self.since, self.busy, self.late, self.searches) = (Some(now), Duration::ZERO, 0, 0);
        let room = BUDGET * threads as f64 * (1.0 - verdict.busy).clamp(0.0, 1.0);
        if verdict.strained || cut_short || share > room {
            let affordable =
                if share > room { f64::from(self.steps) * room / share } else { f64::from(self.steps) / 2.0 };
            let before = self.steps;
            self.steps = (affordable as u32).min(before.saturating_sub(1));
            (self.calm, self.rest) = (0, if before > 0 && self.steps == 0 { REST } else { self.rest });
            return;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        // While nobody brings sound nothing is learned.
        if idle && self.steps > 0 {
            return;
        }
        let next = share * f64::from(self.steps + 1) / f64::from(self.steps.max(1));
        self.calm = if next <= room * (1.0 - RESERVE) { self.calm + 1 } else { 0 };
        if self.calm >= CALM {
            (self.steps, self.calm) = ((self.steps + 1).min(MOST), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An engine of two threads that are so busy, with streams whose searches take so much of a core a step.
    struct Machine {
        spare: Spare,
        now: Instant,
    }

    impl Machine {
        fn run(&mut self, seconds: u32, busy: f64, step: f64, strained: bool) -> u32 {
            for _ in 0..2 * seconds {
                let verdict = Verdict { busy, strained, full: false, parts: 8 };
                for _ in 0..10 {
                    self.now += WINDOW / 10;
                    let took = (WINDOW / 10).mul_f64(step * f64::from(self.spare.steps()));
                    if self.spare.steps() > 0 {
                        self.spare.took(took, false);
                    }
                    self.spare.look(self.now, 2, &verdict);
                }
            }
            self.spare.steps()
        }
    }

    #[test]
    fn effort_takes_what_streams_leave_and_falls_at_once() {
        let mut machine = Machine { spare: Spare::new(), now: Instant::now() };
        // A stream alone, 3 % of a core a step: all of them.
        assert_eq!(machine.run(60, 0.05, 0.03, false), MOST);
        assert!(machine.spare.gives_way());
        // Ten streams: what two threads leave is 1.6 cores, half of that is 2 steps.
        assert_eq!(machine.run(60, 0.2, 0.3, false), 2);
        // Busier: one.
        assert_eq!(machine.run(60, 0.6, 0.3, false), 1);
        // The engine says that jobs get tight: none, in one window.
        assert_eq!(machine.run(1, 0.6, 0.3, true), 0);
        assert!(!machine.spare.gives_way());
        assert_eq!(machine.run(60, 0.6, 0.3, true), 0);
        // And again when there is room.
        assert_eq!(machine.run(60, 0.2, 0.03, false), MOST);
    }

    #[test]
    fn searches_that_are_cut_short_make_the_next_ones_shorter() {
        let mut machine = Machine { spare: Spare::new(), now: Instant::now() };
        assert_eq!(machine.run(60, 0.0, 0.01, false), MOST);
        machine.spare.took(Duration::ZERO, true);
        machine.now += WINDOW;
        machine.spare.look(machine.now, 2, &Verdict { busy: 0.0, strained: false, full: false, parts: 8 });
        assert_eq!(machine.spare.steps(), MOST / 2);
        machine.spare.set_mode(EffortMode::Steps(7));
        assert_eq!((machine.spare.steps(), machine.spare.gives_way()), (7, false));
    }
}
