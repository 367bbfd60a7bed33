//! Stages by frame: loud frames get more of them.
//!
//! An error is heard by its loudness, which grows with about the 0.23th power of the sound's power (Zwicker, as in ITU-T
//! P.862), and a stage lowers it by about half a decibel at 6 kbit/s. Errors are therefore evenly loud when a frame gets a
//! fixed number of stages more for each decibel. Measured on speech, the same bits spent this way are worth 0.1 to 0.2 PESQ-WB
//! (models/EXPERIMENTS.md).

use super::Bucket;
use crate::profile::Profile;
use crate::units::{MAX_STAGES, StageCount};

/// Frames quieter than this say nothing about how loud a recording is, dBFS.
const ACTIVE_DB: f32 = -60.0;

/// Stages a decibel is worth, for each stage that frames have on average, and its limits.
const SLOPE: f32 = 0.027;
const SLOPES: (f32, f32) = (0.05, 0.5);

/// How far the wanted number of stages must be from that of the frame before to change it: changes cost bits.
const INERTIA: f32 = 0.75;

/// Level of a frame in dB, where a square wave of full scale has 0.
pub fn level_db(frame: &[f32]) -> f32 {
    let power = frame.iter().map(|v| v * v).sum::<f32>() / frame.len().max(1) as f32;
    10.0 * (power + 1e-9).log10()
}

/// How many stages a frame of some level gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grading {
    /// Stages of a frame at the pivot.
    pub base: f32,
    /// Stages a decibel.
    pub slope: f32,
    /// Level in dB.
    pub pivot_db: f32,
}

impl Grading {
    /// A grading whose frames have about `mean` stages, for sound of the level `pivot_db` on average.
    pub fn new(mean: f32, pivot_db: f32) -> Self {
        let mean = mean.clamp(1.0, f32::from(MAX_STAGES));
        Self { base: mean, slope: (SLOPE * mean).clamp(SLOPES.0, SLOPES.1), pivot_db }
    }

    /// Stages, 1 to `most`, of a frame, not rounded.
    fn wanted(&self, level_db: f32, most: StageCount) -> f32 {
        (self.base + self.slope * (level_db - self.pivot_db)).clamp(1.0, f32::from(most.value()))
    }

    /// Stages, 1 to `most`, of a frame that follows one of `last` stages.
    pub fn depth(&self, level_db: f32, last: Option<u8>, most: StageCount) -> u8 {
        let wanted = self.wanted(level_db, most);
        match last {
            Some(last) if last <= most.value() && (wanted - f32::from(last)).abs() < INERTIA => last,
            _ => wanted.round() as u8,
        }
    }
}

/// Mean level in dB of the frames that are not silence.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loudness {
    sum_db: f64,
    frames: u32,
}

impl Loudness {
    /// Frames that are remembered: the mean follows a stream with this time constant, 30 s.
    const MEMORY: u32 = 1500;

    /// Notes a frame.
    pub fn push(&mut self, level_db: f32) {
        if level_db < ACTIVE_DB {
            return;
        }
        if self.frames == Self::MEMORY {
            self.sum_db -= self.sum_db / f64::from(self.frames);
        } else {
            self.frames += 1;
        }
        self.sum_db += f64::from(level_db);
    }

    /// The mean; -30 dB before the first frame.
    pub fn mean_db(&self) -> f32 {
        if self.frames == 0 { -30.0 } else { (self.sum_db / f64::from(self.frames)) as f32 }
    }
}

/// What frames get less than the mean because quiet ones get few, as a share of the mean: what of it is to be added to all, so that the
/// mean is one.
#[derive(Debug, Clone, Copy)]
struct Shortfall {
    sum: f64,
    frames: f64,
}

impl Shortfall {
    /// Of speech, and how many frames of a stream that counts as.
    const TYPICAL: f64 = 0.15;
    const BELIEF: f64 = 150.0;
    /// Frames that are remembered: 5 s.
    const MEMORY: f64 = 250.0;

    fn new() -> Self {
        Self { sum: Self::TYPICAL * Self::BELIEF, frames: Self::BELIEF }
    }

    /// Notes a frame that would get `depth` stages of `mean`.
    fn push(&mut self, depth: f64, mean: f64) {
        let keep = (Self::MEMORY / (self.frames + 1.0)).min(1.0);
        self.sum = keep * (self.sum + (mean - depth) / mean.max(1.0));
        self.frames = keep * (self.frames + 1.0);
    }

    fn share(&self) -> f64 {
        self.sum / self.frames
    }
}

/// Keeps the rate of a graded stream at what it may be: bits that were not spent are, over the next 20 s.
#[derive(Debug, Clone, Copy)]
pub struct BitReservoir {
    bits_per_frame: f32,
    credit: f32,
}

impl BitReservoir {
    const HORIZON_FRAMES: f32 = 1000.0;
    const BITS_PER_STAGE: f32 = 7.5;
    /// Credit is remembered for at most this many frames' worth of bits.
    const MOST_FRAMES: f32 = 3000.0;

    /// `kbps` is the rate to keep.
    pub fn new(kbps: f32) -> Self {
        Self { bits_per_frame: kbps * 1000.0 / Profile::FRAMES_PER_SECOND as f32, credit: 0.0 }
    }

    /// Notes what frames really took.
    pub fn spent(&mut self, frames: u32, bits: u64) {
        let most = Self::MOST_FRAMES * self.bits_per_frame;
        self.credit = (self.credit + frames as f32 * self.bits_per_frame - bits as f32).clamp(-most, most);
    }

    /// Stages to add to a grading's base.
    pub fn correction(&self) -> f32 {
        self.credit / (Self::HORIZON_FRAMES * Self::BITS_PER_STAGE)
    }
}

/// Stages of whole bundles by their level, for live streams: packed payloads then stay plain, and about two thirds of what grading
/// every frame gives is kept.
#[derive(Debug, Clone, Copy)]
pub struct BundleGrading {
    mean: StageCount,
    most: StageCount,
    loudness: Loudness,
    reservoir: BitReservoir,
    /// Holds to a rate what is really sent; None: every stage counts as it is packed.
    bucket: Option<Bucket>,
    shortfall: Shortfall,
    last: Option<u8>,
}

impl BundleGrading {
    /// Bundles of `mean` stages on average over half a minute, and at most `most`.
    pub fn new(mean: StageCount, most: StageCount) -> Self {
        let reservoir = BitReservoir::new(mean.kbps() as f32);
        let (loudness, shortfall) = (Loudness::default(), Shortfall::new());
        Self { mean, most, loudness, reservoir, bucket: None, shortfall, last: None }
    }

    /// Bundles of as many stages as the bucket has room for, at most `most`; tell it what they took with [`BundleGrading::spent`].
    pub fn within(bucket: Bucket, most: StageCount) -> Self {
        Self { bucket: Some(bucket), ..Self::new(most, most) }
    }

    /// At most so many stages from here on.
    pub fn limit(&mut self, most: StageCount) {
        self.most = most;
    }

    /// Notes what a bundle of so many codes really took.
    pub fn spent(&mut self, frames: u8, codes: u32, bits: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.spent(frames, codes, bits);
        }
    }

    /// What is left of the rate.
    pub fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    /// Most stages of a bundle.
    pub fn most(&self) -> StageCount {
        self.most
    }

    /// Appends the stages of each frame of the bundle that holds `pcm`, within what the bucket has room for.
    pub fn depths(&mut self, pcm: &[f32], frame_samples: usize, out: &mut Vec<u8>) {
        let frames = u8::try_from(pcm.len() / frame_samples).unwrap_or(u8::MAX);
        let levels: Vec<f32> = pcm.chunks_exact(frame_samples).map(level_db).collect();
        levels.iter().for_each(|&level| self.loudness.push(level));
        let (mean, correction, most) = match &self.bucket {
            Some(b) => (b.mean_stages(frames), b.correction(), b.most_stages(frames)),
            None => (f64::from(self.mean.value()), f64::from(self.reservoir.correction()), u8::MAX),
        };
        let mut grading = Grading::new(mean as f32, self.loudness.mean_db());
        grading.base = (mean * (1.0 + self.shortfall.share()) + correction) as f32;
        for &level in levels.iter().filter(|&&l| l >= ACTIVE_DB) {
            let plain = Grading { base: mean as f32, ..grading };
            self.shortfall.push(f64::from(plain.wanted(level, self.most)), mean);
        }
        let before = out.len();
        // Lowered by at least half a stage each time, down to where all frames have one.
        for _ in 0..4 * MAX_STAGES {
            out.truncate(before);
            let mut last = self.last;
            for &level in &levels {
                let depth = grading.depth(level, last, self.most);
                out.push(depth);
                last = Some(depth);
            }
            let codes: u32 = out[before..].iter().copied().map(u32::from).sum();
            let room = u32::from(most) * u32::from(frames);
            if codes <= room.max(u32::from(frames)) {
                break;
            }
            grading.base -= ((codes - room) as f32 / f32::from(frames.max(1))).max(0.5);
        }
        self.last = out.last().copied();
    }

    /// Stages of the bundle that holds `pcm`, some frames of `frame_samples`.
    pub fn next(&mut self, pcm: &[f32], frame_samples: usize) -> StageCount {
        pcm.chunks_exact(frame_samples).for_each(|f| self.loudness.push(level_db(f)));
        if let Some(bucket) = &self.bucket {
            let frames = u8::try_from(pcm.len() / frame_samples).unwrap_or(u8::MAX);
            let mut grading = Grading::new(bucket.mean_stages(frames) as f32, self.loudness.mean_db());
            grading.base = (bucket.mean_stages(frames) + bucket.correction()) as f32;
            let depth = grading.depth(level_db(pcm), self.last, self.most).min(bucket.most_stages(frames));
            self.last = Some(depth);
            return StageCount::new(depth).unwrap_or(self.most);
        }
        let mut grading = Grading::new(f32::from(self.mean.value()), self.loudness.mean_db());
        grading.base += self.reservoir.correction();
        let depth = grading.depth(level_db(pcm), self.last, self.most);
        self.last = Some(depth);
        let frames = (pcm.len() / frame_samples) as u32;
        self.reservoir.spent(frames, u64::from(frames) * u64::from(depth) * u64::from(Profile::BITS_PER_CODE));
        StageCount::new(depth).unwrap_or(self.mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn louder_frames_get_more_stages_within_the_limits_and_small_changes_are_left() {
        let g = Grading::new(8.0, -30.0);
        let most = StageCount::new(12).unwrap();
        let depths: Vec<u8> = (-90..=0).map(|db| g.depth(db as f32, None, most)).collect();
        assert!(depths.is_sorted() && depths[0] == 1 && depths[90] == 12 && depths[60] == 8);
        assert_eq!(g.depth(-28.0, Some(8), most), 8);
        assert_eq!(g.depth(-20.0, Some(8), most), 10);
        assert_eq!(g.depth(-30.0, Some(24), most), 8);
        assert!((level_db(&[1.0, -1.0]) - 0.0).abs() < 1e-3 && (level_db(&[0.0; 4]) + 90.0).abs() < 1e-3);
    }

    #[test]
    fn loudness_leaves_silence_out_and_follows() {
        let mut l = Loudness::default();
        for _ in 0..5 {
            l.push(-80.0);
            l.push(-20.0);
        }
        assert_eq!(l.mean_db(), -20.0);
        (0..6000).for_each(|_| l.push(-40.0));
        assert!((l.mean_db() + 40.0).abs() < 0.5, "{}", l.mean_db());
    }

    #[test]
    fn loud_bundles_get_more_stages_and_the_mean_is_kept() {
        let (mean, most) = (StageCount::new(6).unwrap(), StageCount::new(12).unwrap());
        let mut grading = BundleGrading::new(mean, most);
        let (mut loud, mut quiet) = (0u32, 0u32);
        let bundles = 2_000u32;
        for i in 0..bundles {
            // Two thirds of the time a murmur, a third speech 30 dB above it.
            let level = if i % 3 == 0 { 0.2 } else { 0.006 };
            let stages = u32::from(grading.next(&[level; 5 * 480], 480).value());
            assert!((1..=12).contains(&stages));
            if i >= bundles / 2 {
                *(if i % 3 == 0 { &mut loud } else { &mut quiet }) += stages;
            }
        }
        let average = f64::from(loud + quiet) / f64::from(bundles / 2);
        assert!((average - 6.0).abs() < 0.3, "{average}");
        assert!(f64::from(loud) / 334.0 > f64::from(quiet) / 666.0 + 2.0, "{loud} {quiet}");
    }

    #[test]
    fn loud_frames_of_a_bundle_get_more_within_what_the_bucket_has() {
        let most = StageCount::MAX;
        let mut grading = BundleGrading::within(Bucket::new(6.0, 2, 7.5), most);
        let frame = |level: f32| vec![level; 480];
        let (mut total, mut spread) = (0u32, 0);
        for n in 0..200 {
            let pcm: Vec<f32> = [0.3, 0.3, 0.01, 0.001, 0.1].iter().flat_map(|&l| frame(l)).collect();
            let mut depths = Vec::new();
            grading.depths(&pcm, 480, &mut depths);
            assert_eq!(depths.len(), 5);
            let codes: u32 = depths.iter().copied().map(u32::from).sum();
            grading.spent(5, codes, 16 + 8 * u64::from(codes));
            if n >= 100 {
                total += codes;
                spread += i32::from(depths[0]) - i32::from(depths[3]);
            }
        }
        assert!(spread > 300, "{spread}");
        let kbps = f64::from(16 * 100 + 8 * total) / 10_000.0;
        assert!((kbps - 6.0).abs() < 0.2, "{kbps}");
    }

    /// Bits of each 100 ms of a speaker who pauses: words of 0.8 s that swell and fade, 0.3 s of breath between them, and after every
    /// fifth word a second that is described and not sent. A stage of loud sound costs more.
    fn spoken(kbps: f64, bundles: u64) -> Vec<u64> {
        let mut grading = BundleGrading::within(Bucket::new(kbps, 2, 7.5), StageCount::MAX);
        let bits = (0..bundles).map(|n| {
            let (at, word) = (n % 11, n / 11 % 6);
            if word == 5 {
                let bits = if at % 4 == 0 { 64 } else { 0 };
                grading.spent(5, 0, bits);
                return bits;
            }
            let level = if at < 8 { 0.3 * (0.1 + (at as f32 * 0.39).sin()) } else { 0.003 };
            let mut depths = Vec::new();
            grading.depths(&vec![level; 5 * 480], 480, &mut depths);
            let codes: u32 = depths.iter().copied().map(u32::from).sum();
            let bits = 16 + (f64::from(codes) * if at < 8 { 7.8 } else { 6.0 }) as u64;
            grading.spent(5, codes, bits);
            bits
        });
        bits.collect()
    }

    #[test]
    fn what_was_asked_for_is_spent_and_no_more() {
        // At more, words have all stages there are.
        for kbps in [2.0, 3.0, 4.5, 6.0] {
            let bits = spoken(kbps, 36_000);
            let rate = |bits: &[u64]| bits.iter().sum::<u64>() as f64 / (100.0 * bits.len() as f64);
            let hour = rate(&bits);
            assert!(hour > 0.98 * kbps && hour < 1.001 * kbps, "{kbps}: {hour} in an hour");
            // No stretch is above the rate by more than the bucket holds, and what a bundle owes.
            let most = |seconds: usize| kbps * (1.0 + 3.2 / seconds as f64);
            for seconds in [1, 4, 10, 60] {
                let worst = bits.windows(10 * seconds).map(rate).fold(0.0, f64::max);
                assert!(worst <= most(seconds), "{kbps}: {worst} in {seconds} s");
            }
            // A sentence by itself spends most of it, and owes at most a tenth of a second.
            for seconds in [3, 4, 5] {
                let sentence = rate(&bits[..10 * seconds]);
                assert!(
                    sentence > 0.92 * kbps && sentence < kbps * (1.0 + 0.12 / seconds as f64),
                    "{kbps}: {sentence} in {seconds} s"
                );
            }
        }
    }

    #[test]
    fn the_rate_settles_where_it_should() {
        // A source whose stages cost twice what the reservoir believes.
        let mut reservoir = BitReservoir::new(3.0);
        let (mut bits, frames) = (0.0, 60_000u32);
        for frame in 0..frames {
            let stages = (8.0 + reservoir.correction()).clamp(1.0, 24.0);
            let cost = f64::from(stages) * 15.0;
            reservoir.spent(1, cost as u64);
            if frame >= frames / 2 {
                bits += cost;
            }
        }
        let kbps = bits / f64::from(frames / 2) * 50.0 / 1000.0;
        assert!((kbps - 3.0).abs() < 0.05, "{kbps}");
    }
}
