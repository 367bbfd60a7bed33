//! Holds what is made here to real time.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::jitter::{BURST, Schedule};

/// Waits by the schedule of a publisher.
#[derive(Debug)]
pub(super) struct Pacer(Schedule);

impl Default for Pacer {
    fn default() -> Self {
        Self(Schedule::new(BURST))
    }
}

impl Pacer {
    /// Waits until media of this length may be passed on.
    pub(super) async fn wait(&mut self, media: Duration) {
        let now = Instant::now().into_std();
        let due = self.0.due(media, now);
        self.0.pass(media, now);
        if due > now {
            sleep_until(due.into()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_real_time_rules() {
        let (start, mut pacer) = (Instant::now(), Pacer::default());
        for _ in 0..5 {
            pacer.wait(Duration::from_millis(100)).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..20 {
            pacer.wait(Duration::from_millis(100)).await;
        }
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(60)).await;
        let start = Instant::now();
        for _ in 0..7 {
            pacer.wait(Duration::from_millis(100)).await;
        }
        assert_eq!(start.elapsed(), Duration::from_millis(200));
    }
}
