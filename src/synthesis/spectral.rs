//! How far a decoded signal is from its original, and which way each sample should go.
//!
//! The three spectral distances that the model was trained with (models/undertone_recipe/losses.py): log-mel magnitudes at four window
//! lengths (multi-resolution, Yamamoto 2020), log magnitudes of single bins at the three longest, which see harmonics and frames that
//! repeat, and complex spectra at two, which hold the waveform where it is carried.

use realfft::RealFftPlanner;
use realfft::num_complex::Complex;

use super::stft::Stft;
use crate::units::CODEC_RATE;

/// Window, hop, mel bands, whether single bins and complex spectra are compared as well.
const SCALES: [(usize, usize, usize, bool, bool); 4] = [
    (2048, 512, 80, true, false),
    (1024, 256, 80, true, true),
    (512, 128, 40, true, true),
    (256, 64, 20, false, false),
];

/// Longest window.
pub(super) const LONGEST: usize = SCALES[0].0;

/// Weights of the distances. Training used 3, 5 and 3; here the waveform may count more, because nothing has to be predicted.
const MEL_WEIGHT: f32 = 4.0;
const LINEAR_WEIGHT: f32 = 4.0;
const COMPLEX_WEIGHT: f32 = 8.0;

/// Above this the phase is not carried, and above that the shape is not.
const PHASE_HZ: f32 = 1200.0;
const LINEAR_HZ: f32 = 7800.0;

/// Magnitude, beside the mean, below which single bins are all alike.
const LINEAR_FLOOR: f32 = 0.03;

/// Magnitude below which a mel band is silent.
const SILENT: f32 = 1e-4;

/// Triangle over some bins.
struct Band {
    first: usize,
    weights: Vec<f32>,
}

struct Scale {
    stft: Stft,
    mel: Vec<Band>,
    /// Weight of each bin in the complex distance; empty if there is none.
    bins: Vec<f32>,
    /// Weight of each bin's log magnitude; empty if single bins are not compared.
    linear: Vec<f32>,
    // Of one window.
    magnitude: Vec<f32>,
    slope: Vec<Complex<f32>>,
    by_magnitude: Vec<f32>,
}

/// What a scale remembers of the original.
struct ScaleTarget {
    /// Log10 magnitudes `[windows * bands]`.
    mel: Vec<f32>,
    /// Spectra `[windows * bins]` and the weight of each error.
    spectra: Vec<(Complex<f32>, f32)>,
    /// Log10 magnitudes `[windows * bins]` above a floor, and the weight of each error.
    linear: Vec<(f32, f32)>,
    floor: f32,
    /// Softens the complex error's kink at zero.
    softness: f32,
}

/// The original that decoded signals are compared with.
pub(super) struct Target {
    samples: usize,
    scales: Vec<ScaleTarget>,
}

/// The distance. One per thread: it holds work space.
pub(super) struct SpectralDistance {
    scales: Vec<Scale>,
}

impl SpectralDistance {
    pub(super) fn new() -> Self {
        let mut planner = RealFftPlanner::new();
        let scales = SCALES.map(|(size, hop, bands, linear, complex)| {
            let stft = Stft::new(&mut planner, size, hop);
            let bins = stft.bins();
            let hz = |bin: usize| bin as f32 * CODEC_RATE.hz() as f32 / size as f32;
            Scale {
                mel: mel_bands(size, bands),
                bins: if complex {
                    (0..bins).map(|b| 1.0 / (1.0 + (hz(b) / PHASE_HZ).powi(4)) + 0.02).collect()
                } else {
                    Vec::new()
                },
                linear: if linear {
                    let weight = |hz: f32| 0.4 + 0.6 / (1.0 + (hz / 4000.0).powi(2));
                    (0..bins).map(|b| if hz(b) < LINEAR_HZ { weight(hz(b)) } else { 0.0 }).collect()
                } else {
                    Vec::new()
                },
                magnitude: vec![0.0; bins],
                slope: vec![Complex::default(); bins],
                by_magnitude: vec![0.0; bins],
                stft,
            }
        });
        Self { scales: scales.into() }
    }

    /// Remembers an original.
    pub(super) fn target(&mut self, original: &[f32]) -> Target {
        let scales = self.scales.iter_mut().map(|s| s.target(original)).collect();
        Target { samples: original.len(), scales }
    }

    /// The distance of `decoded` from the target, both of the same length; its gradient by the decoded samples is put into `gradient`.
    pub(super) fn measure(&mut self, decoded: &[f32], target: &Target, gradient: &mut [f32]) -> f32 {
        assert_eq!((decoded.len(), gradient.len()), (target.samples, target.samples), "lengths of a comparison");
        gradient.fill(0.0);
        self.scales.iter_mut().zip(&target.scales).map(|(s, t)| s.measure(decoded, t, gradient)).sum()
    }
}

impl Scale {
    fn magnitudes(&mut self, signal: &[f32], window: usize) -> &[Complex<f32>] {
        let spectrum = self.stft.analyse(signal, window);
        for (m, s) in self.magnitude.iter_mut().zip(spectrum) {
            *m = (s.norm_sqr() + 1e-8).sqrt();
        }
        spectrum
    }

    fn target(&mut self, original: &[f32]) -> ScaleTarget {
        let windows = self.stft.windows(original.len());
        let mut target =
            ScaleTarget { mel: Vec::new(), spectra: Vec::new(), linear: Vec::new(), floor: 0.0, softness: 0.0 };
        let mut sum = 0.0f64;
        for window in 0..windows {
            let spectrum = self.magnitudes(original, window).to_vec();
            sum += self.magnitude.iter().map(|&m| f64::from(m)).sum::<f64>();
            target.mel.extend(self.mel.iter().map(|b| b.of(&self.magnitude).max(SILENT).log10()));
            if !self.bins.is_empty() {
                target.spectra.extend(spectrum.iter().zip(&self.magnitude).map(|(&s, &m)| (s, m)));
            }
            if !self.linear.is_empty() {
                target.linear.extend(self.magnitude.iter().map(|&m| (m, 0.0)));
            }
        }
        let mean = ((sum / (windows * self.stft.bins()).max(1) as f64) as f32).max(1e-3);
        target.softness = 1e-8 * mean * mean;
        target.floor = LINEAR_FLOOR * mean;
        for window in target.linear.chunks_exact_mut(self.stft.bins()) {
            // Quiet windows count less: what differs there is noise.
            let loud = window.iter().map(|(m, _)| m).sum::<f32>() / window.len() as f32 / mean;
            for ((m, weight), w) in window.iter_mut().zip(&self.linear) {
                (*m, *weight) = ((*m + target.floor).log10(), w * loud.min(1.0).sqrt());
            }
        }
        // A strong component hides an error beside it.
        for spectra in target.spectra.chunks_exact_mut(self.stft.bins()) {
            for ((_, m), w) in spectra.iter_mut().zip(&self.bins) {
                *m = w / ((*m + 0.3 * mean) * mean).sqrt();
            }
        }
        target
    }

    /// Adds the distance of the magnitudes of a window by single bins, and its slope by each.
    fn measure_bins(&mut self, window: usize, target: &ScaleTarget, share: f32) -> f64 {
        if self.linear.is_empty() {
            return 0.0;
        }
        let mut total = 0.0;
        let wanted = &target.linear[window * self.magnitude.len()..];
        for ((by, m), (wanted, weight)) in self.by_magnitude.iter_mut().zip(&self.magnitude).zip(wanted) {
            let value = m + target.floor;
            let error = value.log10() - wanted;
            total += f64::from(share * weight * error.abs());
            *by += share * weight * error.signum() / (value * std::f32::consts::LN_10);
        }
        total
    }

    fn measure(&mut self, decoded: &[f32], target: &ScaleTarget, gradient: &mut [f32]) -> f32 {
        let (windows, bins) = (self.stft.windows(decoded.len()), self.stft.bins());
        let mel_share = MEL_WEIGHT / (windows * self.mel.len()).max(1) as f32;
        let complex_share = COMPLEX_WEIGHT / (windows * bins).max(1) as f32;
        let linear_share = LINEAR_WEIGHT / (windows * bins).max(1) as f32;
        let mut total = 0.0f64;
        for window in 0..windows {
            let spectrum = self.magnitudes(decoded, window).to_vec();
            self.by_magnitude.fill(0.0);
            let wanted = &target.mel[window * self.mel.len()..];
            for (band, &wanted) in self.mel.iter().zip(wanted) {
                let value = band.of(&self.magnitude);
                let error = value.max(SILENT).log10() - wanted;
                total += f64::from(mel_share * error.abs());
                if value > SILENT {
                    let slope = mel_share * error.signum() / (value * std::f32::consts::LN_10);
                    let bins = &mut self.by_magnitude[band.first..][..band.weights.len()];
                    bins.iter_mut().zip(&band.weights).for_each(|(b, w)| *b += slope * w);
                }
            }
            total += self.measure_bins(window, target, linear_share);
            let each = self.slope.iter_mut().zip(&spectrum).zip(self.by_magnitude.iter().zip(&self.magnitude));
            each.for_each(|((slope, s), (by, m))| *slope = s * (by / m));
            if !target.spectra.is_empty() {
                let wanted = &target.spectra[window * bins..][..bins];
                for ((slope, s), (wanted, weight)) in self.slope.iter_mut().zip(&spectrum).zip(wanted) {
                    let difference = s - wanted;
                    let error = (difference.norm_sqr() + target.softness).sqrt();
                    total += f64::from(complex_share * weight * error);
                    *slope += difference * (complex_share * weight / error);
                }
            }
            self.stft.pull_back(&self.slope, window, gradient);
        }
        total as f32
    }
}

impl Band {
    fn of(&self, magnitude: &[f32]) -> f32 {
        self.weights.iter().zip(&magnitude[self.first..]).map(|(w, m)| w * m).sum()
    }
}

/// Triangles evenly spaced on the mel scale (O'Shaughnessy 1987), each with unit sum.
fn mel_bands(size: usize, bands: usize) -> Vec<Band> {
    let nyquist = f64::from(CODEC_RATE.hz()) / 2.0;
    let top = 2595.0 * (1.0 + nyquist / 700.0).log10();
    let edge = |i: usize| 700.0 * (10f64.powf(top * i as f64 / (bands + 1) as f64 / 2595.0) - 1.0);
    let hz = |bin: usize| bin as f64 * 2.0 * nyquist / size as f64;
    let band = |b: usize| {
        let (low, mid, high) = (edge(b), edge(b + 1), edge(b + 2));
        let height = |bin: usize| ((hz(bin) - low) / (mid - low)).min((high - hz(bin)) / (high - mid)).max(0.0);
        let heights: Vec<f64> = (0..=size / 2).map(height).collect();
        let sum = heights.iter().sum::<f64>().max(1e-6);
        let first = heights.iter().position(|&h| h > 0.0).unwrap_or(0);
        let end = heights.iter().rposition(|&h| h > 0.0).map_or(first, |l| l + 1);
        Band { first, weights: heights[first..end].iter().map(|h| (h / sum) as f32).collect() }
    };
    (0..bands).map(band).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(samples: usize, seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; samples];
        crate::model::decoder_noise(seed, &mut out);
        out.iter_mut().enumerate().for_each(|(i, x)| *x = 0.1 * *x + 0.2 * (i as f32 * 0.05).sin());
        out
    }

    #[test]
    fn a_signal_is_at_no_distance_from_itself_and_noise_is_further_than_less_noise() {
        let (x, n) = (noise(9_600, 1), noise(9_600, 2));
        let mut distance = SpectralDistance::new();
        let target = distance.target(&x);
        let mut gradient = vec![0.0; x.len()];
        let mut at = |share: f32| {
            let y: Vec<f32> = x.iter().zip(&n).map(|(x, n)| x + share * n).collect();
            distance.measure(&y, &target, &mut gradient)
        };
        let (same, near, far) = (at(0.0), at(0.01), at(0.1));
        assert!(same < 1e-2 && near > 5.0 * same && far > 3.0 * near, "{same} {near} {far}");
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_distance() {
        let (x, y, way) = (noise(6_000, 3), noise(6_000, 4), noise(6_000, 5));
        let mut distance = SpectralDistance::new();
        let target = distance.target(&x);
        let (mut gradient, mut unused) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        distance.measure(&y, &target, &mut gradient);
        let mut at = |step: f32| {
            let y: Vec<f32> = y.iter().zip(&way).map(|(y, w)| y + step * w).collect();
            f64::from(distance.measure(&y, &target, &mut unused))
        };
        let measured = (at(1e-3) - at(-1e-3)) / 2e-3;
        let said: f64 = gradient.iter().zip(&way).map(|(&g, &w)| f64::from(g * w)).sum();
        assert!((measured - said).abs() < 0.02 * said.abs().max(0.1), "{measured} {said}");
    }

    #[test]
    fn harmonics_that_moved_are_further_than_mel_bands_say() {
        let voice = |hz: f32| -> Vec<f32> {
            let t = |n: usize| n as f32 / CODEC_RATE.hz() as f32;
            (0..24_000)
                .map(|n| (1..30).map(|k| (std::f32::consts::TAU * hz * k as f32 * t(n)).cos() / 60.0).sum())
                .collect()
        };
        let mut distance = SpectralDistance::new();
        let target = distance.target(&voice(150.0));
        let mut gradient = vec![0.0; 24_000];
        let whole = distance.measure(&voice(172.0), &target, &mut gradient);
        distance.scales.iter_mut().for_each(|s| s.linear.clear());
        let without = distance.measure(&voice(172.0), &target, &mut gradient);
        assert!(whole - without > 0.15 * LINEAR_WEIGHT, "{whole} {without}");
    }

    #[test]
    fn a_signal_shorter_than_every_window_says_nothing() {
        let mut distance = SpectralDistance::new();
        let target = distance.target(&[0.1; 100]);
        let mut gradient = vec![1.0; 100];
        assert_eq!(distance.measure(&[0.2; 100], &target, &mut gradient), 0.0);
        assert!(gradient.iter().all(|&g| g == 0.0));
    }
}
