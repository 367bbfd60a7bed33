//! Scores of a decoded recording against its original.

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

use super::stoi::estoi;
use crate::dsp::Resampler;
use crate::units::{CODEC_RATE, SampleRate};

/// Largest lag that is looked for, in samples at 24 kHz: 200 ms.
pub const MAX_LAG: usize = 4_800;

/// Scores of one recording; NaN where a metric has no answer (silence, too short).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// PESQ wideband, ITU-T P.862.2, MOS-LQO 1.0 to 4.64.
    pub pesq: f64,
    /// ESTOI, -1 to 1.
    pub estoi: f64,
    /// Log-spectral distance in dB, 0 to 12 kHz; lower is better.
    pub lsd_db: f64,
}

/// Scores `decoded`, already aligned, against `original`; both at 24 kHz.
pub fn score(original: &[f32], decoded: &[f32]) -> Scores {
    let (x, y) = (to_16k(original), to_16k(decoded));
    let n = x.len().min(y.len());
    let quantise = |v: &[f32]| v.iter().map(|s| (s * 32_767.0).clamp(-32_768.0, 32_767.0) as i16).collect::<Vec<_>>();
    Scores {
        pesq: pesq::pesq_wb(&quantise(&x[..n]), &quantise(&y[..n])).map_or(f64::NAN, f64::from),
        estoi: estoi(&x, &y).unwrap_or(f64::NAN),
        lsd_db: log_spectral_distance(original, decoded),
    }
}

fn to_16k(pcm: &[f32]) -> Vec<f32> {
    let Ok(rate) = SampleRate::new(16_000) else { return Vec::new() };
    let (mut resampler, mut out) = (Resampler::new(CODEC_RATE, rate), Vec::new());
    resampler.push(pcm, &mut out);
    resampler.finish(&mut out);
    out
}

/// `decoded` shifted so that it correlates best with `original`, at the original's length, and the lag in samples
/// by which it came late (negative: early), at most [`MAX_LAG`] either way.
pub fn align(original: &[f32], decoded: &[f32]) -> (Vec<f32>, isize) {
    let n = (original.len() + decoded.len()).max(2 * MAX_LAG + 1).next_power_of_two();
    let mut planner = FftPlanner::<f32>::new();
    let (forward, inverse) = (planner.plan_fft_forward(n), planner.plan_fft_inverse(n));
    let spectrum = |x: &[f32]| {
        let mut v: Vec<Complex<f32>> = x.iter().map(|&s| Complex::new(s, 0.0)).collect();
        v.resize(n, Complex::default());
        forward.process(&mut v);
        v
    };
    let mut cross: Vec<_> = spectrum(decoded).iter().zip(&spectrum(original)).map(|(d, o)| d * o.conj()).collect();
    inverse.process(&mut cross);
    let span = MAX_LAG as isize;
    let lag = (-span..span)
        .max_by(|&a, &b| {
            let at = |l: isize| cross[l.rem_euclid(n as isize) as usize].re;
            at(a).total_cmp(&at(b)).then(b.abs().cmp(&a.abs()))
        })
        .unwrap_or(0);
    (shift(decoded, lag, original.len()), lag)
}

/// `pcm` moved `lag` samples earlier, cut or filled with silence to `length`.
pub fn shift(pcm: &[f32], lag: isize, length: usize) -> Vec<f32> {
    let at = |n: usize| n.checked_add_signed(lag).and_then(|i| pcm.get(i)).copied().unwrap_or(0.0);
    (0..length).map(at).collect()
}

/// Root mean square over bins of the difference of log power spectra, mean over frames, in dB.
///
/// Frames of 1024 samples every 256, Hann window (Gray and Markel, IEEE TASSP 24(5), 1976). Power is floored 60 dB
/// below the loudest bin of the original, and frames in which all of the original lies below the floor do not count.
/// NaN where nothing counts.
pub fn log_spectral_distance(original: &[f32], decoded: &[f32]) -> f64 {
    let n = original.len().min(decoded.len());
    let (x, y) = (power(&original[..n]), power(&decoded[..n]));
    let floor = x.iter().flatten().copied().fold(0.0f32, f32::max) * 1e-6;
    let log = |p: f32| 10.0 * f64::from(p.max(floor)).log10();
    let distances: Vec<f64> = x
        .iter()
        .zip(&y)
        .filter(|(a, _)| a.iter().any(|&p| p > floor))
        .map(|(a, b)| {
            let sum: f64 = a.iter().zip(b).map(|(&p, &q)| (log(p) - log(q)).powi(2)).sum();
            (sum / a.len() as f64).sqrt()
        })
        .collect();
    if distances.is_empty() { f64::NAN } else { distances.iter().sum::<f64>() / distances.len() as f64 }
}

fn power(pcm: &[f32]) -> Vec<Vec<f32>> {
    const WINDOW: usize = 1024;
    const HOP: usize = 256;
    let fft = FftPlanner::<f32>::new().plan_fft_forward(WINDOW);
    let hann: Vec<f32> =
        (0..WINDOW).map(|n| 0.5 - 0.5 * (std::f32::consts::TAU * n as f32 / WINDOW as f32).cos()).collect();
    pcm.windows(WINDOW)
        .step_by(HOP)
        .map(|frame| {
            let mut v: Vec<_> = frame.iter().zip(&hann).map(|(s, w)| Complex::new(s * w, 0.0)).collect();
            fft.process(&mut v);
            v[..WINDOW / 2].iter().map(|c| c.norm_sqr()).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tones(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.031).sin() * 0.2 + ((i * i) as f32 * 1e-6).sin() * 0.2).collect()
    }

    #[test]
    fn a_known_lag_is_found_and_undone() {
        let x = tones(24_000);
        for lag in [0isize, 156, -240, 1_440] {
            let late = shift(&x, -lag, 26_000);
            let (aligned, found) = align(&x, &late);
            assert_eq!(found, lag);
            let from = lag.unsigned_abs();
            assert_eq!(aligned[from..22_000], x[from..22_000]);
        }
    }

    #[test]
    fn a_gain_of_6_db_is_a_distance_of_6_db() {
        // Only the loud bins: the floor hides the rest, so noise that fills every bin is used.
        let mut state = 5u32;
        let noise: Vec<f32> = (0..24_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 16_777_216.0 - 0.5
            })
            .collect();
        let half: Vec<f32> = noise.iter().map(|v| v * 0.5).collect();
        let got = log_spectral_distance(&noise, &half);
        assert!((got - 6.02).abs() < 0.05, "{got}");
        assert_eq!(log_spectral_distance(&noise, &noise), 0.0);
        assert!(log_spectral_distance(&[0.0; 5_000], &[0.0; 5_000]).is_nan());
    }
}
