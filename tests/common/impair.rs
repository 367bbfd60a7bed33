//! A bad network, the same for the same seed: what happens to each packet.
#![allow(dead_code, unreachable_pub)]

use std::time::Duration;

use undertone::referee::{LossModel, LossTrace};

/// What the network does.
#[derive(Debug, Clone)]
pub struct Impairment {
    pub loss: LossModel,
    /// Share of packets that come twice.
    pub duplicates: f64,
    /// Share of packets that are held so long that others overtake them, and how long.
    pub reordered: (f64, Duration),
    /// Delay of every packet, drawn evenly from zero to this.
    pub jitter: Duration,
    /// Nothing passes from the first for the second.
    pub outage: Option<(Duration, Duration)>,
    pub seed: u64,
}

impl Default for Impairment {
    fn default() -> Self {
        Self {
            loss: LossModel::Uniform { loss: 0.0 },
            duplicates: 0.0,
            reordered: (0.0, Duration::ZERO),
            jitter: Duration::ZERO,
            outage: None,
            seed: 1,
        }
    }
}

/// The network at work.
pub struct Network {
    how: Impairment,
    losses: LossTrace,
    random: u64,
}

impl Network {
    pub fn new(how: Impairment) -> Self {
        let losses = how.loss.losses(how.seed).unwrap();
        Self { losses, random: how.seed ^ 0x5851_F42D_4C95_7F2D, how }
    }

    /// Even in 0..1.
    fn unit(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }

    /// How long a packet sent at `at` is on its way; nothing if it is lost, twice if it is duplicated.
    pub fn send(&mut self, at: Duration) -> Vec<Duration> {
        let out = self.how.outage.is_some_and(|(from, long)| at >= from && at < from + long);
        if self.losses.next() == Some(true) || out {
            return Vec::new();
        }
        let copies = if self.unit() < self.how.duplicates { 2 } else { 1 };
        let held = if self.unit() < self.how.reordered.0 { self.how.reordered.1 } else { Duration::ZERO };
        (0..copies).map(|_| held + self.how.jitter.mul_f64(self.unit())).collect()
    }
}
