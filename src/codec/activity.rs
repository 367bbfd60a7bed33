//! Voice activity: is there anything but the background?
//!
//! Levels in five bands (split by the allpass half-band filters of WebRTC's detector, whose idea of bands this follows) are compared
//! with the background's, which is learned where nothing else is, and from the lowest levels of the last two seconds. Whoever is not
//! sure is active: what is taken for background by mistake is lost, the reverse costs bits.

use super::level_db;

/// Bands: 0 to 0.75 kHz, to 1.5, 3, 6 and 12 kHz.
const BANDS: usize = 5;

/// Coefficients of the two allpass sections of a half-band filter (WebRTC, vad_filterbank.c).
const ALLPASS: [f32; 2] = [0.64, 0.17];

/// Bands quieter than this are silent whatever is in them, dB: below it lies the dither of 16 bits.
const SILENT_DB: f32 = -78.0;

/// A background is no louder than this in all, dB: what is, may be wanted.
const LOUDEST_DB: f32 = -38.0;

/// A band so much above the background is active, and all bands together, dB. Levels of noise in 20 ms vary by about 1 dB.
const BAND_DB: f32 = 4.5;
const TOTAL_DB: f32 = 9.0;

/// Frames after the last active one that are active too: ends of words are quiet, and the decoder learns the background there.
pub const HANGOVER_FRAMES: u32 = 15;

/// Weight of a frame in the background's levels.
const LEARN: f32 = 0.08;

/// Frames of a block and blocks of which the lowest level is sought: two seconds.
const BLOCK: usize = 20;
const BLOCKS: usize = 5;

/// Weight of a frame in the smoothed level whose lowest value counts.
const SMOOTH: f32 = 0.25;

/// The decision, frame by frame, as a state machine.
#[derive(Debug, Clone)]
pub struct Activity {
    bank: Bank,
    /// The background's level in each band.
    background: [f32; BANDS],
    smoothed: Option<[f32; BANDS]>,
    /// Lowest smoothed levels of the blocks before, and of this one.
    lowest: [[f32; BANDS]; BLOCKS],
    frames: usize,
    hangover: u32,
}

impl Default for Activity {
    fn default() -> Self {
        Self {
            bank: Bank::default(),
            background: [SILENT_DB; BANDS],
            smoothed: None,
            lowest: [[f32::MAX; BANDS]; BLOCKS],
            frames: 0,
            hangover: HANGOVER_FRAMES,
        }
    }
}

impl Activity {
    /// Whether the next frame is to be heard as it is.
    pub fn push(&mut self, frame: &[f32]) -> bool {
        let levels = self.bank.levels(frame);
        let excess = std::array::from_fn::<_, BANDS, _>(|b| levels[b] - self.background[b]);
        let total: f32 = excess.iter().map(|e| e.max(0.0)).sum();
        let above = excess.iter().any(|&e| e > BAND_DB) || total > TOTAL_DB || level_db(frame) > LOUDEST_DB;
        self.learn(&levels, above);
        self.hangover = if above { HANGOVER_FRAMES } else { self.hangover.saturating_sub(1) };
        above || self.hangover > 0
    }

    fn learn(&mut self, levels: &[f32; BANDS], above: bool) {
        let smoothed = self.smoothed.get_or_insert(*levels);
        for (s, level) in smoothed.iter_mut().zip(levels) {
            *s += SMOOTH * (level - *s);
        }
        for (low, s) in self.lowest[0].iter_mut().zip(smoothed.iter()) {
            *low = low.min(*s);
        }
        self.frames += 1;
        for (background, &level) in self.background.iter_mut().zip(levels) {
            if !above || level < *background {
                *background += LEARN * (level - *background);
            }
        }
        if self.frames.is_multiple_of(BLOCK) {
            // Not before two seconds were heard: until then everything is new.
            for (b, background) in self.background.iter_mut().enumerate() {
                let highest = self.lowest.iter().map(|l| l[b]).fold(f32::MIN, f32::max);
                let least = self.lowest.iter().map(|l| l[b]).fold(f32::MAX, f32::min);
                if highest < f32::MAX && least > *background {
                    *background = least;
                }
            }
            self.lowest.rotate_right(1);
            self.lowest[0] = [f32::MAX; BANDS];
        }
        self.background.iter_mut().for_each(|b| *b = b.max(SILENT_DB));
    }
}

/// Splits samples into bands; the filters' memory goes on from frame to frame.
#[derive(Debug, Clone, Default)]
struct Bank {
    splits: [Split; BANDS - 1],
}

impl Bank {
    /// Level of a frame in each band in dB, lowest band first.
    fn levels(&mut self, frame: &[f32]) -> [f32; BANDS] {
        let mut levels = [SILENT_DB; BANDS];
        let mut low = frame.to_vec();
        for (split, level) in self.splits.iter_mut().zip(levels[1..].iter_mut().rev()) {
            let (lower, upper) = split.halves(&low);
            *level = level_db(&upper).max(SILENT_DB);
            low = lower;
        }
        levels[0] = level_db(&low).max(SILENT_DB);
        levels
    }
}

/// Memory of the two allpass sections.
#[derive(Debug, Clone, Copy, Default)]
struct Split([f32; 2]);

impl Split {
    /// The lower and the upper half of the spectrum, each at half the rate.
    fn halves(&mut self, samples: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut allpass = |section: usize, x: f32| {
            let state = &mut self.0[section];
            let y = *state + ALLPASS[section] * x;
            *state = x - ALLPASS[section] * y;
            y
        };
        samples
            .chunks_exact(2)
            .map(|pair| {
                let (a, b) = (allpass(0, pair[0]), allpass(1, pair[1]));
                (0.5 * (a + b), 0.5 * (a - b))
            })
            .unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// White noise with this RMS.
    struct Noise(u64);

    impl Noise {
        fn frame(&mut self, rms: f32) -> Vec<f32> {
            (0..480)
                .map(|_| {
                    self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    ((self.0 >> 40) as f32 / 8_388_608.0 - 1.0) * 3f32.sqrt() * rms
                })
                .collect()
        }
    }

    fn tone(hz: f32, amplitude: f32) -> Vec<f32> {
        (0..480).map(|i| amplitude * (2.0 * std::f32::consts::PI * hz * i as f32 / 24_000.0).sin()).collect()
    }

    fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
        a.iter().zip(b).map(|(a, b)| a + b).collect()
    }

    #[test]
    fn a_steady_background_becomes_silence_and_stays_it() {
        for rms in [0.0, 0.0001, 0.001, 0.006] {
            let (mut activity, mut noise) = (Activity::default(), Noise(1));
            let active: Vec<bool> = (0..1_000).map(|_| activity.push(&noise.frame(rms))).collect();
            assert!(active[..10].iter().all(|&a| a), "{rms}: nothing is known yet");
            let later = active[250..].iter().filter(|&&a| a).count();
            assert!(later <= 40, "{rms}: {later} of 750 frames");
        }
    }

    #[test]
    fn what_is_said_is_active_from_its_first_frame_and_a_while_after() {
        for (hz, amplitude) in [(200.0, 0.01), (1_000.0, 0.01), (5_000.0, 0.008)] {
            let (mut activity, mut noise) = (Activity::default(), Noise(2));
            (0..300).for_each(|_| {
                activity.push(&noise.frame(0.001));
            });
            assert!(activity.push(&plus(&noise.frame(0.001), &tone(hz, amplitude))), "{hz}");
            let after = (0..100).take_while(|_| activity.push(&noise.frame(0.001))).count();
            assert!((10..=40).contains(&after), "{hz}: {after} frames");
        }
    }

    #[test]
    fn loud_or_changing_sound_is_never_background() {
        let (mut activity, mut noise) = (Activity::default(), Noise(3));
        assert!((0..1_000).all(|_| activity.push(&noise.frame(0.1))), "too loud");
        let mut activity = Activity::default();
        let quiet =
            (0..1_000).filter(|n| !activity.push(&noise.frame(if n / 10 % 2 == 0 { 0.002 } else { 0.006 }))).count();
        assert_eq!(quiet, 0, "it comes and goes");
    }

    #[test]
    fn a_background_that_grows_is_learned_within_seconds() {
        let (mut activity, mut noise) = (Activity::default(), Noise(4));
        (0..300).for_each(|_| {
            activity.push(&noise.frame(0.0005));
        });
        let active = (0..1_000).map(|_| activity.push(&noise.frame(0.004))).collect::<Vec<_>>();
        assert!(active[..50].iter().all(|&a| a));
        assert!(active[300..].iter().filter(|&&a| a).count() < 60);
    }

    #[test]
    fn bands_are_where_they_should_be() {
        for (hz, band) in [(300.0, 0), (1_100.0, 1), (2_200.0, 2), (4_500.0, 3), (9_000.0, 4)] {
            let mut bank = Bank::default();
            bank.levels(&tone(hz, 0.1));
            let levels = bank.levels(&tone(hz, 0.1));
            let loudest = (0..BANDS).max_by(|&a, &b| levels[a].total_cmp(&levels[b]));
            assert_eq!(loudest, Some(band), "{hz} Hz: {levels:?}");
        }
    }
}
