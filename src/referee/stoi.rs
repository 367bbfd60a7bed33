//! Extended short-time objective intelligibility.
//!
//! Jensen and Taal, "An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise Maskers",
//! IEEE/ACM TASLP 24(11), 2016. Resampling, silence removal and framing follow the Python package pystoi 0.4.1,
//! so that scores compare with published ones; a test holds them within 1e-3 of it.

use std::f64::consts::PI;

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

const FRAME: usize = 256;
const HOP: usize = FRAME / 2;
const FFT: usize = 512;
const BANDS: usize = 15;
const LOWEST_HZ: f64 = 150.0;
const RATE_HZ: f64 = 10_000.0;
/// Frames of a segment: 384 ms.
const SEGMENT: usize = 30;
const DYNAMIC_RANGE_DB: f64 = 40.0;

/// ESTOI of `degraded` against `clean`, both at 16 kHz, -1 to 1; the shorter length counts.
///
/// None if less than 30 frames (0.39 s) remain after silence is removed.
pub fn estoi(clean: &[f32], degraded: &[f32]) -> Option<f64> {
    let n = clean.len().min(degraded.len());
    let (x, y) = (to_10k(&clean[..n]), to_10k(&degraded[..n]));
    let (x, y) = without_silence(&x, &y);
    let (x, y) = (bands(&x), bands(&y));
    if x.len() < SEGMENT {
        return None;
    }
    let segments = x.windows(SEGMENT).zip(y.windows(SEGMENT));
    let sum: f64 = segments
        .map(|(a, b)| {
            let (a, b) = (normalised(a), normalised(b));
            a.iter().flatten().zip(b.iter().flatten()).map(|(p, q)| p * q).sum::<f64>() / SEGMENT as f64
        })
        .sum();
    Some(sum / (x.len() - SEGMENT + 1) as f64)
}

/// 16 kHz to 10 kHz: Kaiser-windowed sinc of 581 taps, as Octave's `resample` does it.
fn to_10k(x: &[f32]) -> Vec<f64> {
    const UP: isize = 5;
    const DOWN: isize = 8;
    const HALF: isize = 290;
    let beta = 0.1102 * (60.0 - 8.7);
    let cutoff = 1.0 / (2.0 * DOWN as f64);
    let mut taps: Vec<f64> = (-HALF..=HALF)
        .map(|t| {
            let u = 2.0 * cutoff * t as f64;
            let sinc = if t == 0 { 1.0 } else { (PI * u).sin() / (PI * u) };
            let edge = t as f64 / HALF as f64;
            sinc * bessel_i0(beta * (1.0 - edge * edge).max(0.0).sqrt())
        })
        .collect();
    let sum: f64 = taps.iter().sum();
    taps.iter_mut().for_each(|t| *t *= UP as f64 / sum);
    let length = (x.len() * UP as usize).div_ceil(DOWN as usize);
    (0..length as isize)
        .map(|n| {
            let at = n * DOWN;
            let first = (at - HALF).max(0).div_euclid(UP) + isize::from((at - HALF).max(0) % UP != 0);
            let last = ((at + HALF) / UP).min(x.len() as isize - 1);
            (first..=last).map(|k| taps[(HALF + at - k * UP) as usize] * f64::from(x[k as usize])).sum()
        })
        .collect()
}

/// Modified Bessel function of the first kind and order 0, by its series.
fn bessel_i0(x: f64) -> f64 {
    let (mut sum, mut term, mut k) = (1.0, 1.0, 1.0);
    while term > sum * 1e-16 {
        term *= (x / (2.0 * k)) * (x / (2.0 * k));
        sum += term;
        k += 1.0;
    }
    sum
}

fn window() -> Vec<f64> {
    (1..=FRAME).map(|n| 0.5 - 0.5 * (2.0 * PI * n as f64 / (FRAME + 1) as f64).cos()).collect()
}

/// Both signals without the frames in which `x` is more than 40 dB below its loudest frame.
fn without_silence(x: &[f64], y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let w = window();
    let starts: Vec<usize> = (0..x.len().saturating_sub(FRAME)).step_by(HOP).collect();
    let level = |&s: &usize| {
        let energy: f64 = x[s..s + FRAME].iter().zip(&w).map(|(v, w)| (v * w).powi(2)).sum();
        20.0 * (energy.sqrt() + f64::EPSILON).log10()
    };
    let levels: Vec<f64> = starts.iter().map(level).collect();
    let loudest = levels.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let kept: Vec<usize> =
        starts.iter().zip(&levels).filter(|&(_, l)| loudest - DYNAMIC_RANGE_DB - l < 0.0).map(|(&s, _)| s).collect();
    let join = |signal: &[f64]| {
        let mut out = vec![0.0; if kept.is_empty() { 0 } else { (kept.len() - 1) * HOP + FRAME }];
        for (i, &s) in kept.iter().enumerate() {
            for (n, w) in w.iter().enumerate() {
                out[i * HOP + n] += signal[s + n] * w;
            }
        }
        out
    };
    (join(x), join(y))
}

/// Magnitudes of the third-octave bands of every frame.
fn bands(x: &[f64]) -> Vec<[f64; BANDS]> {
    let fft = FftPlanner::<f64>::new().plan_fft_forward(FFT);
    let w = window();
    let bin = |hz: f64| (hz * FFT as f64 / RATE_HZ - 1e-9).round().clamp(0.0, (FFT / 2) as f64) as usize;
    let edges: [(usize, usize); BANDS] = std::array::from_fn(|k| {
        let edge = |step: f64| bin(LOWEST_HZ * 2f64.powf((2.0 * k as f64 + step) / 6.0));
        (edge(-1.0), edge(1.0))
    });
    let mut buffer = vec![Complex::default(); FFT];
    (0..x.len().saturating_sub(FRAME))
        .step_by(HOP)
        .map(|s| {
            buffer.fill(Complex::default());
            for (n, w) in w.iter().enumerate() {
                buffer[n].re = x[s + n] * w;
            }
            fft.process(&mut buffer);
            edges.map(|(low, high)| buffer[low..high].iter().map(|v| v.norm_sqr()).sum::<f64>().sqrt())
        })
        .collect()
}

/// A segment with mean 0 and norm 1 in every band over time, then in every frame over bands.
fn normalised(segment: &[[f64; BANDS]]) -> Vec<[f64; BANDS]> {
    let mut out = segment.to_vec();
    for band in 0..BANDS {
        let mean = out.iter().map(|f| f[band]).sum::<f64>() / out.len() as f64;
        out.iter_mut().for_each(|f| f[band] -= mean);
        let norm = out.iter().map(|f| f[band].powi(2)).sum::<f64>().sqrt().max(f64::EPSILON);
        out.iter_mut().for_each(|f| f[band] /= norm);
    }
    for frame in &mut out {
        let mean = frame.iter().sum::<f64>() / BANDS as f64;
        frame.iter_mut().for_each(|v| *v -= mean);
        let norm = frame.iter().map(|v| v * v).sum::<f64>().sqrt().max(f64::EPSILON);
        frame.iter_mut().for_each(|v| *v /= norm);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, n: usize) -> Vec<f64> {
        let step = |s: u64| s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::iter::successors(Some(step(seed)), |&s| Some(step(s)))
            .take(n)
            .map(|s| (s >> 40) as f64 / 8_388_608.0 - 1.0)
            .collect()
    }

    /// Three seconds of syllable-like bursts of harmonics and noise.
    fn clean() -> Vec<f64> {
        let noise = noise(1, 48_000);
        (0..48_000)
            .map(|n| {
                let t = n as f64 / 16_000.0;
                let tones: f64 = [180.0, 360.0, 720.0, 1440.0, 2880.0]
                    .iter()
                    .zip(1..)
                    .map(|(f, k)| (2.0 * PI * f * t).sin() / f64::from(k))
                    .sum();
                0.2 * (2.0 * PI * 3.0 * t).sin().max(0.0) * (tones + 0.5 * noise[n])
            })
            .collect()
    }

    fn score(clean: &[f64], degraded: &[f64]) -> f64 {
        let narrow = |x: &[f64]| x.iter().map(|&v| v as f32).collect::<Vec<_>>();
        estoi(&narrow(clean), &narrow(degraded)).unwrap()
    }

    #[test]
    fn agrees_with_pystoi() {
        // pystoi 0.4.1: stoi(clean, clean + a * noise(2), 16000, extended=True).
        let (clean, masker) = (clean(), noise(2, 48_000));
        for (a, wanted) in [(0.0, 1.0), (0.02, 0.858_553_255), (0.1, 0.364_460_677), (0.4, 0.112_092_397)] {
            let noisy: Vec<f64> = clean.iter().zip(&masker).map(|(x, m)| x + a * m).collect();
            let got = score(&clean, &noisy);
            assert!((got - wanted).abs() < 1e-3, "noise {a}: {got}, pystoi {wanted}");
        }
        let clipped: Vec<f64> = clean.iter().map(|x| x.clamp(-0.1, 0.1)).collect();
        let got = score(&clean, &clipped);
        assert!((got - 0.538_932_009).abs() < 1e-3, "clipped: {got}");
    }

    #[test]
    fn silence_and_short_signals_have_no_score() {
        assert_eq!(estoi(&[0.1; 3_000], &[0.1; 3_000]), None);
        assert_eq!(estoi(&[], &[]), None);
    }
}
