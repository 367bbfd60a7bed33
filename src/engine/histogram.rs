//! Times in buckets around the length of a frame.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the buckets in microseconds: a frame lasts 20 ms, a bundle 100 ms by default.
pub const BUCKETS_US: [u64; 10] = [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000, 100_000];

/// Counts of times; anybody may add at any time.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    /// Adds a time.
    pub fn add(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS_US.iter().position(|&end| us <= end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// For every bucket its end in seconds and the times up to it; then how many in all, and their sum in seconds.
    pub fn read(&self) -> (Vec<(f64, u64)>, u64, f64) {
        let mut up_to = 0;
        let buckets = BUCKETS_US.iter().zip(&self.buckets).map(|(&end, n)| {
            up_to += n.load(Ordering::Relaxed);
            (end as f64 / 1e6, up_to)
        });
        let buckets = buckets.collect();
        // Read after the buckets: what was added meanwhile must not make a bucket larger than the whole.
        let count = self.count.load(Ordering::Relaxed).max(up_to);
        (buckets, count, self.sum_us.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

/// Where the time of jobs goes.
#[derive(Debug, Default)]
pub struct Phases {
    /// A job: from its submission to the start of its batch, waiting for company included.
    pub queue: Histogram,
    /// A batch: networks and codebook search.
    pub compute: Histogram,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_up_and_the_rest_is_in_the_whole() {
        let h = Histogram::default();
        [100, 101, 30_000, 3_000_000].map(Duration::from_micros).iter().for_each(|&t| h.add(t));
        let (buckets, count, sum) = h.read();
        assert_eq!((buckets[0], buckets[1], buckets[9]), ((0.0001, 1), (0.00025, 2), (0.1, 3)));
        assert_eq!(count, 4);
        assert!((sum - 3.030_201).abs() < 1e-9);
    }
}
