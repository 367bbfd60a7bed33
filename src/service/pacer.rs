//! Holds a publisher to real time, so that its listeners' queues need hold only what jitter brings.

use std::time::Duration;

use tokio::time::Instant;

/// How far a publisher may run ahead of real time: less than the shortest sensible listener queue.
const BURST: Duration = Duration::from_millis(500);

/// Media time against the clock. Silence in between is not saved up: who stops for a minute may not then send a minute.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    /// When the media sent so far will have been played.
    played: Option<Instant>,
}

impl Pacer {
    /// Waits until media of this length may be passed on. The sender meanwhile feels the back-pressure of TCP.
    pub(super) async fn wait(&mut self, media: Duration) {
        let now = Instant::now();
        let played = self.played.map_or(now, |p| p.max(now)) + media;
        self.played = Some(played);
        if played > now + BURST {
            tokio::time::sleep_until(played - BURST).await;
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
