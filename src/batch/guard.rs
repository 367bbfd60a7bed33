//! What a worker does about jobs that panic or hang: they must not take it with them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What the thread that does a job and those that wait for it have in common.
#[derive(Debug, Default)]
pub(super) struct Watched {
    steps: AtomicU64,
    cancelled: AtomicBool,
}

impl Watched {
    /// The job has come further.
    pub(super) fn alive(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells the job to end.
    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}

/// Notices that a job does not come further.
#[derive(Debug)]
pub(super) struct Stall {
    patience: Duration,
    last: (u64, Instant),
}

impl Stall {
    pub(super) fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, last: (0, now) }
    }

    /// Whether the count of steps has stood still for longer than the patience.
    pub(super) fn look(&mut self, steps: u64, now: Instant) -> bool {
        if steps != self.last.0 {
            self.last = (steps, now);
        }
        now.saturating_duration_since(self.last.1) > self.patience
    }
}

/// Does something that may panic; Err says what the panic said.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| said(&*panic))
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no words").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_stands_still_is_noticed_and_a_slow_one_is_not() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut stall = Stall::new(10 * second, start);
        assert!((1..60).all(|n| !stall.look(u64::from(n / 9), start + n * second)));
        let last = start + 60 * second;
        assert!(!stall.look(99, last) && !stall.look(99, last + 10 * second));
        assert!(stall.look(99, last + 11 * second));
    }

    #[test]
    fn a_panic_becomes_words() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded(|| -> u8 { panic!("at {}", 7) }), Err("at 7".to_owned()));
        assert_eq!(guarded(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
    }
}
