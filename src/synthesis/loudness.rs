//! How much louder or softer a decoded signal is heard than its original, band by band, and which way each sample should go.
//!
//! A differentiable simplification of the perceptual model of ITU-T P.862 (PESQ), the one that the model was trained with
//! (models/undertone_recipe/losses.py): Bark bands up to 8 kHz, the threshold in quiet (Terhardt 1979), Zwicker's power law, a dead zone a
//! quarter of the smaller loudness wide, and a second term for what was added. Nothing is aligned or levelled.

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use super::stft::Stft;
use crate::units::CODEC_RATE;

const SIZE: usize = 768;
const HOP: usize = 384;
const BANDS: usize = 49;
/// Level at which speech is heard, dB SPL.
const LISTENING_DB: f64 = 79.0;
/// Makes 1 kHz at 40 dB SPL about one sone, as in P.862.
const SONES: f32 = 0.1866;
const POWER_LAW: f32 = 0.23;
/// Share of the smaller loudness by which the other may differ unheard.
const DEAD_ZONE: f32 = 0.25;
/// Power above which what was added counts, and the most it counts.
const ADDED: (f32, f32) = (3.0, 12.0);
/// Most disturbance of one window.
const MOST: f32 = 45.0;
/// Windows within which the sixth power is averaged (about 0.3 s).
const SPAN: usize = 20;
/// Shares of P.862 of the two disturbances, and the weight in training.
const SYMMETRIC: f32 = 6.0 * 0.1;
const ADDITIVE: f32 = 6.0 * 0.0309;

/// Least power that counts as sound.
const LEAST_POWER: f32 = 1e-7;

/// The original that decoded signals are compared with.
pub(super) struct Target {
    /// Scales power to what the listener hears.
    gain: f32,
    /// By window and band: power and loudness.
    bands: Vec<[(f32, f32); BANDS]>,
    /// Softens the disturbance of loud windows.
    energy: Vec<f32>,
}

/// The distance. One per thread: it holds work space.
pub(super) struct LoudnessDistance {
    stft: Stft,
    /// First bin and share of each bin that lies in the band.
    bands: Vec<(usize, Vec<f32>)>,
    quiet: [f32; BANDS],
    width: f32,
    power_scale: f32,
    slope: Vec<Complex<f32>>,
}

/// Mean power of the loudest third of 16 ms pieces, so that pauses do not set the level.
pub(super) fn active_power(signal: &[f32]) -> f32 {
    let mut pieces: Vec<f32> =
        signal.chunks_exact(HOP).map(|p| p.iter().map(|x| x * x).sum::<f32>() / HOP as f32).collect();
    pieces.sort_by(|a, b| b.total_cmp(a));
    let loudest = &pieces[..pieces.len().div_ceil(3)];
    (loudest.iter().sum::<f32>() / loudest.len().max(1) as f32).max(LEAST_POWER)
}

impl LoudnessDistance {
    pub(super) fn new() -> Self {
        let stft = Stft::new(&mut RealFftPlanner::new(), SIZE, HOP);
        let bark = |hz: f64| 6.0 * (hz / 600.0).asinh();
        let hz = |bin: usize| bin as f64 * f64::from(CODEC_RATE.hz()) / SIZE as f64;
        let (low, top) = (bark(60.0), bark(8000.0));
        let edge = |i: usize| low + (top - low) * i as f64 / BANDS as f64;
        let bins = stft.bins();
        // A bin is as wide as half the way to its neighbours on either side, and a band takes the share that lies inside it.
        let span = |bin: usize| {
            let (before, after) = (bin.saturating_sub(1), (bin + 1).min(bins - 1));
            let width = (bark(hz(after)) - bark(hz(before))) / (after - before) as f64;
            (bark(hz(bin)) - width / 2.0, bark(hz(bin)) + width / 2.0)
        };
        let share = |band: usize, bin: usize| {
            let (from, to) = span(bin);
            ((to.min(edge(band + 1)) - from.max(edge(band))).max(0.0) / (to - from)) as f32
        };
        let bands = (0..BANDS)
            .map(|band| {
                let all: Vec<f32> = (0..bins).map(|bin| share(band, bin)).collect();
                let first = all.iter().position(|&s| s > 0.0).unwrap_or(0);
                let end = all.iter().rposition(|&s| s > 0.0).map_or(first, |l| l + 1);
                (first, all[first..end].to_vec())
            })
            .collect();
        let quiet = std::array::from_fn(|band| {
            let khz = 600.0 * ((edge(band) + edge(band + 1)) / 12.0).sinh() / 1000.0;
            let db = 3.64 * khz.powf(-0.8) - 6.5 * (-0.6 * (khz - 3.3f64).powi(2)).exp() + 1e-3 * khz.powi(4);
            10f64.powf(db / 10.0) as f32
        });
        // Of the Hann window: the sum of its squares is 3/8 of its length.
        let power_scale = 2.0 / (SIZE as f32 * SIZE as f32 * 0.375);
        let slope = vec![Complex::default(); bins];
        Self { bands, quiet, width: (edge(1) - edge(0)) as f32, power_scale, slope, stft }
    }

    /// Remembers an original whose active parts have the power `active` (see [`active_power`]).
    pub(super) fn target(&mut self, original: &[f32], active: f32) -> Target {
        let gain = (10f64.powf(LISTENING_DB / 10.0) / f64::from(active.max(LEAST_POWER))) as f32;
        let windows = self.stft.windows(original.len());
        let mut target = Target { gain, bands: Vec::with_capacity(windows), energy: Vec::with_capacity(windows) };
        for window in 0..windows {
            let spectrum = self.stft.analyse(original, window);
            let power = powers(&self.bands, spectrum, self.power_scale * gain);
            let heard = std::array::from_fn(|b| (power[b], loudness(power[b], self.quiet[b]).0));
            target.bands.push(heard);
            target.energy.push(((power.iter().sum::<f32>() + 1e5) / 1e7).powf(0.04));
        }
        target
    }

    /// The distance of `decoded` from the target; its gradient by the decoded samples is added to `gradient`.
    pub(super) fn measure(&mut self, decoded: &[f32], target: &Target, gradient: &mut [f32]) -> f32 {
        let windows = self.stft.windows(decoded.len()).min(target.bands.len());
        let mut heard: Vec<Heard> = Vec::with_capacity(windows);
        let mut spectra = Vec::with_capacity(windows);
        for window in 0..windows {
            let spectrum = self.stft.analyse(decoded, window);
            let power = powers(&self.bands, spectrum, self.power_scale * target.gain);
            spectra.push(spectrum.to_vec());
            heard.push(Heard::new(&power, &target.bands[window], target.energy[window], &self.quiet, self.width));
        }
        let (symmetric, by_symmetric) = over_time(heard.iter().map(|h| h.symmetric.min(MOST)).collect());
        let (additive, by_additive) = over_time(heard.iter().map(|h| h.additive.min(MOST)).collect());
        for (window, (h, spectrum)) in heard.iter().zip(&spectra).enumerate() {
            let symmetric = if h.symmetric < MOST { SYMMETRIC * by_symmetric[window] } else { 0.0 };
            let additive = if h.additive < MOST { ADDITIVE * by_additive[window] } else { 0.0 };
            self.slope.fill(Complex::default());
            for (band, (first, shares)) in self.bands.iter().enumerate() {
                let by_power = symmetric * h.by_power[band].0 + additive * h.by_power[band].1;
                let by_power = 2.0 * by_power * self.power_scale * target.gain;
                let bins = self.slope[*first..].iter_mut().zip(&spectrum[*first..]).zip(shares);
                bins.for_each(|((slope, s), share)| *slope += s * (by_power * share));
            }
            self.stft.pull_back(&self.slope, window, gradient);
        }
        SYMMETRIC * symmetric + ADDITIVE * additive
    }
}

/// Disturbances of one window, and how they change with each band's power.
struct Heard {
    symmetric: f32,
    additive: f32,
    by_power: [(f32, f32); BANDS],
}

impl Heard {
    fn new(
        power: &[f32; BANDS],
        original: &[(f32, f32); BANDS],
        energy: f32,
        quiet: &[f32; BANDS],
        width: f32,
    ) -> Self {
        let (mut squares, mut additive) = (0.0, 0.0);
        // By band: the difference, its slope by power, and the additive term's slope by power.
        let mut parts = [(0.0f32, 0.0f32, 0.0f32); BANDS];
        for (band, part) in parts.iter_mut().enumerate() {
            let (before, wanted) = original[band];
            let (heard, slope) = loudness(power[band], quiet[band]);
            let error = (heard - wanted).abs() - DEAD_ZONE * heard.min(wanted);
            if error <= 0.0 {
                continue;
            }
            let softer = heard < wanted;
            let (sign, steepness) = if softer { (-1.0, 1.0 + DEAD_ZONE) } else { (1.0, 1.0) };
            let ratio = ((power[band] + 50.0) / (before + 50.0)).powf(1.2);
            let (added, by_added) = match ratio {
                r if r < ADDED.0 => (0.0, 0.0),
                r if r < ADDED.1 => (r, 1.2 * r / (power[band] + 50.0)),
                _ => (ADDED.1, 0.0),
            };
            squares += error * error * width;
            additive += error * added * width;
            let by_power = steepness * slope;
            *part = (error * sign * by_power, sign * by_power * added, error * by_added);
        }
        let root = (squares + 1e-6).sqrt();
        let scale = (BANDS as f32 * width).sqrt() / energy;
        let by_power =
            parts.map(|(squared, along, grown)| (scale * width * squared / root, width * (along + grown) / energy));
        Self { symmetric: root * scale, additive: additive / energy, by_power }
    }
}

/// Power of each band.
fn powers(bands: &[(usize, Vec<f32>)], spectrum: &[Complex<f32>], scale: f32) -> [f32; BANDS] {
    std::array::from_fn(|b| {
        let (first, shares) = &bands[b];
        shares.iter().zip(&spectrum[*first..]).map(|(share, s)| share * s.norm_sqr()).sum::<f32>() * scale
    })
}

/// Loudness in sones of a band's power, and its slope (Zwicker's law above the threshold in quiet).
fn loudness(power: f32, quiet: f32) -> (f32, f32) {
    let scale = SONES * (quiet / 0.5).powf(POWER_LAW);
    let base = 0.5 + 0.5 * power / quiet;
    let raised = base.powf(POWER_LAW);
    (scale * (raised - 1.0), scale * POWER_LAW * raised / base * 0.5 / quiet)
}

/// Disturbances of windows -> their sum as P.862 makes it (the sixth power within 0.3 s, the square over them), and its slope by each.
fn over_time(mut windows: Vec<f32>) -> (f32, Vec<f32>) {
    let mut slope = vec![0.0; windows.len()];
    if windows.is_empty() {
        return (0.0, slope);
    }
    windows.iter_mut().for_each(|w| *w += 1e-3);
    let span = SPAN.min(windows.len());
    let hop = (span / 2).max(1);
    let within: Vec<f32> = windows
        .windows(span)
        .step_by(hop)
        .map(|piece| {
            let loudest = piece.iter().fold(0.0f32, |a, &b| a.max(b));
            loudest * (piece.iter().map(|d| (d / loudest).powi(6)).sum::<f32>() / span as f32).powf(1.0 / 6.0)
        })
        .collect();
    let total = (within.iter().map(|w| w * w).sum::<f32>() / within.len() as f32).sqrt();
    for (i, w) in within.iter().enumerate() {
        let by_piece = w / (within.len() as f32 * total);
        let piece = i * hop..i * hop + span;
        for (s, d) in slope[piece.clone()].iter_mut().zip(&windows[piece]) {
            *s += by_piece * (d / w).powi(5) / span as f32;
        }
    }
    (total, slope)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(samples: usize, seed: u64, noise: f32) -> Vec<f32> {
        let mut out = vec![0.0; samples];
        crate::model::decoder_noise(seed, &mut out);
        let tone = |i: usize| 0.2 * (i as f32 * 0.05).sin() + 0.1 * (i as f32 * 0.31).sin();
        out.iter_mut().enumerate().for_each(|(i, x)| *x = noise * *x + tone(i));
        out
    }

    #[test]
    fn a_tone_of_40_db_is_about_one_sone() {
        let mut d = LoudnessDistance::new();
        // The listening level is 79 dB for active parts, so a tone 39 dB below their level has 40 dB.
        let tone: Vec<f32> = (0..SIZE)
            .map(|i| (2.0 * std::f32::consts::PI * 1000.0 * i as f32 / 24_000.0).sin() * 2f32.sqrt())
            .collect();
        let target = d.target(&tone, 10f32.powf(3.9));
        let sones = target.bands[0].iter().map(|b| b.1.max(0.0)).sum::<f32>() * d.width;
        assert!((0.5..2.0).contains(&sones), "{sones}");
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_distance() {
        for noise in [0.004, 0.05] {
            let (x, way) = (sound(20_000, 1, 0.01), sound(20_000, 3, 0.1));
            let y: Vec<f32> = x.iter().zip(&sound(20_000, 2, noise)).map(|(x, y)| 0.3 * x + 0.7 * y).collect();
            let mut d = LoudnessDistance::new();
            let target = d.target(&x, active_power(&x));
            let (mut gradient, mut unused) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            d.measure(&y, &target, &mut gradient);
            let mut at = |step: f32| {
                let y: Vec<f32> = y.iter().zip(&way).map(|(y, w)| y + step * w).collect();
                f64::from(d.measure(&y, &target, &mut unused))
            };
            let measured = (at(1e-3) - at(-1e-3)) / 2e-3;
            let said: f64 = gradient.iter().zip(&way).map(|(&g, &w)| f64::from(g * w)).sum();
            assert!((measured - said).abs() < 0.03 * said.abs().max(0.05), "{measured} {said}");
        }
    }

    #[test]
    fn the_same_sound_is_not_disturbed_and_more_noise_disturbs_more() {
        let x = sound(20_000, 1, 0.001);
        let mut d = LoudnessDistance::new();
        let target = d.target(&x, active_power(&x));
        let mut gradient = vec![0.0; x.len()];
        let mut at = |noise: f32| d.measure(&sound(20_000, 2, noise), &target, &mut gradient);
        let (near, far) = (at(0.003), at(0.03));
        let same = d.measure(&x, &target, &mut gradient);
        assert!(same < 0.02 * near && far > 1.5 * near, "{same} {near} {far}");
    }

    #[test]
    fn silence_and_short_sounds_have_finite_gradients() {
        for samples in [0, 100, 800, 5_000] {
            let mut d = LoudnessDistance::new();
            let silence = vec![0.0; samples];
            let target = d.target(&silence, active_power(&silence));
            let mut gradient = vec![0.0; samples];
            let distance = d.measure(&sound(samples, 1, 0.1), &target, &mut gradient);
            assert!(distance.is_finite() && gradient.iter().all(|g| g.is_finite()), "{samples}");
        }
    }
}
