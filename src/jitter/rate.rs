//! Rate control: from a receiver's reports to what its sender sends.

use std::time::{Duration, Instant};

use crate::units::StageCount;

/// What a receiver has seen since the session began. Everything but `jitter` and `queued` only grows, so a report that is lost
/// costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Packets that should have come.
    pub expected: u64,
    /// Packets that came, duplicates not counted.
    pub received: u64,
    /// Packets that came after their frames had been given up.
    pub late: u64,
    /// Packets that others overtook.
    pub reordered: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Frames that were played from copies.
    pub rebuilt_frames: u64,
    /// Frames that were given up.
    pub concealed_frames: u64,
    /// Interarrival jitter.
    pub jitter: Duration,
    /// How much longer than the fastest packets are on their way.
    pub queued: Duration,
}

impl Report {
    /// Packets that did not come.
    pub fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.received)
    }
}

/// Loss above which the rate falls, and below which it rises.
const HIGH_LOSS: f64 = 0.08;
const LOW_LOSS: f64 = 0.03;

/// Queues above which the rate falls, and below which it rises.
const LONG_QUEUE: Duration = Duration::from_millis(200);
const SHORT_QUEUE: Duration = Duration::from_millis(100);

/// What a fall leaves of the rate.
const FALL: f64 = 0.7;

/// Stages that a rise adds: a stage in two seconds.
const RISE: f64 = 0.5;

/// Reports that follow each other faster are only counted.
const PACE: Duration = Duration::from_millis(500);

/// Silence of a receiver that counts as loss.
const SILENCE: Duration = Duration::from_secs(3);

/// Share of the stages that is sent whatever happens: losses that a lower rate does not cure must not take everything.
const FLOOR: u8 = 4;

/// Loss above which the frames of one bundle, and of two, are repeated.
const COPY_LOSS: [f64; 2] = [0.01, 0.08];

/// What one receiver is sent: the rate falls by a factor with loss or delay, and rises in steps.
#[derive(Debug, Clone)]
pub struct RateControl {
    wanted: StageCount,
    allowed: f64,
    last: Report,
    /// Smoothed share of packets lost.
    loss: f64,
    at: Instant,
}

impl RateControl {
    /// A receiver that wants at most `wanted` stages and gets them until it reports losses.
    pub fn new(wanted: StageCount, now: Instant) -> Self {
        Self { wanted, allowed: f64::from(wanted.value()), last: Report::default(), loss: 0.0, at: now }
    }

    fn floor(&self) -> f64 {
        f64::from(self.wanted.value().div_ceil(FLOOR))
    }

    /// The receiver wants another number of stages.
    pub fn want(&mut self, wanted: StageCount) {
        let share = self.allowed / f64::from(self.wanted.value());
        self.wanted = wanted;
        self.allowed = (share * f64::from(wanted.value())).max(self.floor());
    }

    /// Takes a report. One that is older than the last is ignored.
    pub fn report(&mut self, report: &Report, now: Instant) {
        if report.expected < self.last.expected || now.saturating_duration_since(self.at) < PACE {
            return;
        }
        self.at = now;
        let expected = report.expected - self.last.expected;
        let received = report.received.saturating_sub(self.last.received).min(expected);
        self.last = *report;
        if expected == 0 {
            return;
        }
        let loss = 1.0 - received as f64 / expected as f64;
        self.loss += (loss - self.loss) * 0.5;
        if self.loss > HIGH_LOSS || report.queued > LONG_QUEUE {
            self.fall();
        } else if self.loss < LOW_LOSS && report.queued < SHORT_QUEUE {
            self.allowed = (self.allowed + RISE).min(f64::from(self.wanted.value()));
        }
    }

    /// Notes that time passes: who reports nothing for seconds hears nothing either.
    pub fn tick(&mut self, now: Instant) {
        if now.saturating_duration_since(self.at) >= SILENCE {
            self.at = now;
            self.loss += (1.0 - self.loss) * 0.5;
            self.fall();
        }
    }

    fn fall(&mut self) {
        self.allowed = (self.allowed * FALL).max(self.floor());
    }

    /// Stages to send.
    pub fn stages(&self) -> StageCount {
        StageCount::new(self.allowed as u8).map_or(self.wanted, |s| s.min(self.wanted))
    }

    /// Whether the receiver said that it received something.
    pub fn is_heard(&self) -> bool {
        self.last.received > 0
    }

    /// Share of what is wanted that is sent, 0 to 1.
    pub fn share(&self) -> f64 {
        self.allowed / f64::from(self.wanted.value())
    }

    /// Bundles whose frames are to be repeated in every packet, 0 to 2.
    pub fn copies(&self) -> u8 {
        COPY_LOSS.iter().filter(|&&l| self.loss > l).count() as u8
    }

    /// Smoothed share of packets lost, 0 to 1.
    pub fn loss(&self) -> f64 {
        self.loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten packets a second for `seconds`, of which `lost` in a hundred are lost.
    fn run(rate: &mut RateControl, now: &mut Instant, report: &mut Report, seconds: u32, lost: u64) {
        for _ in 0..seconds {
            *now += Duration::from_secs(1);
            report.expected += 100;
            report.received += 100 - lost;
            rate.report(report, *now);
            rate.tick(*now);
        }
    }

    #[test]
    fn the_rate_falls_fast_with_loss_and_comes_back_slowly() {
        let (mut now, mut report) = (Instant::now(), Report::default());
        let mut rate = RateControl::new(StageCount::new(12).unwrap(), now);
        run(&mut rate, &mut now, &mut report, 5, 0);
        assert_eq!((rate.stages().value(), rate.copies()), (12, 0));
        run(&mut rate, &mut now, &mut report, 3, 30);
        assert!(rate.stages().value() <= 4, "{}", rate.stages());
        assert_eq!(rate.copies(), 2);
        run(&mut rate, &mut now, &mut report, 60, 30);
        assert_eq!(rate.stages().value(), 3, "a quarter is always sent");
        run(&mut rate, &mut now, &mut report, 8, 0);
        assert!((4..8).contains(&rate.stages().value()), "{}", rate.stages());
        run(&mut rate, &mut now, &mut report, 20, 0);
        assert_eq!((rate.stages().value(), rate.copies()), (12, 0));
    }

    #[test]
    fn queues_and_silence_lower_the_rate_and_old_reports_change_nothing() {
        let (mut now, mut report) = (Instant::now(), Report::default());
        let mut rate = RateControl::new(StageCount::new(8).unwrap(), now);
        report.queued = Duration::from_millis(300);
        run(&mut rate, &mut now, &mut report, 1, 0);
        assert_eq!(rate.stages().value(), 5);
        let before = rate.clone();
        rate.report(&Report::default(), now + Duration::from_secs(1));
        assert_eq!(rate.stages(), before.stages());
        rate.tick(now + Duration::from_secs(4));
        assert_eq!(rate.stages().value(), 3);
        rate.want(StageCount::new(2).unwrap());
        assert_eq!(rate.stages().value(), 1);
    }

    #[test]
    fn what_a_receiver_claims_never_breaks_anything() {
        let now = Instant::now();
        let mut rate = RateControl::new(StageCount::new(1).unwrap(), now);
        for (n, (expected, received)) in [(u64::MAX, 0), (u64::MAX, u64::MAX), (0, u64::MAX)].into_iter().enumerate() {
            let report = Report { expected, received, ..Report::default() };
            rate.report(&report, now + Duration::from_secs(n as u64 + 1));
            assert_eq!(rate.stages().value(), 1);
            assert!((0.0..=1.0).contains(&rate.loss()));
        }
    }
}
