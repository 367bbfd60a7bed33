//! Holds what a live stream sends to a rate, every byte of its messages counted.
//!
//! A leaky bucket (Turner 1986) whose credit grows by the rate and falls by what was really sent. It starts empty, so that no
//! beginning of a stream, however short, is above its rate; what quiet sound leaves is saved for loud sound of the next seconds.

/// Frames whose bits may be saved up: 3 s. No longer stretch is above the rate by more than this.
const SAVED_FRAMES: f64 = 150.0;

/// Frames whose bits may be owed: what a bundle takes is known only when it is coded.
const OWED_FRAMES: f64 = 5.0;

/// Frames over which saved bits are spent: 0.6 s, or a short stream ends before it has spent what its first silence left.
const HORIZON_FRAMES: f64 = 30.0;

/// Weight of the newest bundle in what a stage takes on average.
const NEWEST: f64 = 0.1;

/// The credit of one stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Bits that a frame may take.
    frame_bits: f64,
    /// Bits that were left, negative if owed.
    credit: f64,
    /// Bits that a stage of a frame takes, on average.
    stage_bits: f64,
    /// Bits that a message takes beside its codes.
    head_bits: f64,
}

impl Bucket {
    /// A rate of `kbps` at 50 frames a second, for messages that take `head_bytes` beside their codes. `stage_bits` is what a stage of
    /// a frame takes as far as is known before the first: 10 packed, about 7.5 coded.
    pub fn new(kbps: f64, head_bytes: usize, stage_bits: f64) -> Self {
        Self { frame_bits: kbps * 1000.0 / 50.0, credit: 0.0, stage_bits, head_bits: head_bytes as f64 * 8.0 }
    }

    /// Notes a message of so many bits that held `frames` frames with `codes` codes together.
    pub fn spent(&mut self, frames: u8, codes: u32, bits: u64) {
        let (frames, bits) = (f64::from(frames), bits as f64);
        let most = SAVED_FRAMES * self.frame_bits;
        self.credit = (self.credit + frames * self.frame_bits - bits).clamp(-most, most);
        let codes = f64::from(codes);
        if codes > 0.0 {
            self.stage_bits += NEWEST * (((bits - self.head_bits) / codes).clamp(0.5, 10.0) - self.stage_bits);
        }
    }

    /// Stages that bundles of so many frames may have for ever.
    pub fn mean_stages(&self, frames: u8) -> f64 {
        let frames = f64::from(frames.max(1));
        (self.frame_bits - self.head_bits / frames).max(0.0) / self.stage_bits
    }

    /// Stages to add to that so that what is saved is spent, and what is owed saved.
    pub fn correction(&self) -> f64 {
        self.credit / (HORIZON_FRAMES * self.stage_bits)
    }

    /// Most stages that the next bundle of so many frames may have, 1 or more.
    pub fn most_stages(&self, frames: u8) -> u8 {
        let frames = f64::from(frames.max(1));
        let bits = self.credit + (frames + OWED_FRAMES.min(frames)) * self.frame_bits - self.head_bits;
        (bits / (frames * self.stage_bits)).clamp(1.0, 255.0) as u8
    }

    /// Seconds of the rate that are saved; negative: owed.
    pub fn saved_s(&self) -> f64 {
        self.credit / (self.frame_bits * 50.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of every bundle of five frames, for a source whose level and whose cost of a stage change from bundle to bundle.
    fn run(kbps: f64, bundles: usize, wish: impl Fn(usize) -> f64, cost: impl Fn(usize) -> f64) -> (Vec<u64>, Bucket) {
        let mut bucket = Bucket::new(kbps, 16, 7.5);
        let bits = (0..bundles).map(|n| {
            let stages = (bucket.mean_stages(5) + bucket.correction() + wish(n)).round().clamp(1.0, 24.0) as u8;
            let stages = stages.min(bucket.most_stages(5));
            let bits = 128 + (cost(n) * f64::from(stages) * 5.0) as u64;
            bucket.spent(5, 5 * u32::from(stages), bits);
            bits
        });
        (bits.collect(), bucket)
    }

    fn kbps(bits: &[u64]) -> f64 {
        bits.iter().sum::<u64>() as f64 / (bits.len() as f64 * 100.0)
    }

    #[test]
    fn no_beginning_and_no_ten_seconds_are_above_the_rate() {
        for rate in [2.0, 3.0, 6.0, 8.0] {
            // Speech: a loud second, a quiet half; a loud stage costs more.
            let loud = |n: usize| n % 15 < 10;
            let (bits, _) = run(rate, 6_000, |n| if loud(n) { 3.0 } else { -6.0 }, |n| if loud(n) { 8.2 } else { 5.5 });
            for seconds in [4, 10, 60, 600] {
                assert!(
                    kbps(&bits[..10 * seconds]) <= rate * 1.03,
                    "{rate}: the first {seconds} s {}",
                    kbps(&bits[..10 * seconds])
                );
            }
            assert!(bits.windows(100).all(|w| kbps(w) <= rate * 1.32), "what was saved is at most three seconds");
            assert!(kbps(&bits) > rate * 0.95, "{rate}: {}", kbps(&bits));
        }
    }

    #[test]
    fn what_stages_cost_is_learned() {
        for cost in [3.0, 7.5, 10.0] {
            let (bits, bucket) = run(6.0, 2_000, |_| 0.0, |_| cost);
            assert!((kbps(&bits[1_000..]) / 6.0 - 1.0).abs() < 0.03 || cost < 4.0, "{cost}: {}", kbps(&bits[1_000..]));
            assert!(bucket.saved_s() <= 3.0 && bucket.saved_s() > -0.2, "{bucket:?}");
        }
    }

    #[test]
    fn a_rate_below_the_headers_leaves_one_stage() {
        let bucket = Bucket::new(0.5, 16, 7.5);
        assert_eq!((bucket.mean_stages(5), bucket.most_stages(5)), (0.0, 1));
    }
}
