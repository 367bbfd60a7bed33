//! Short-time Fourier transform and its transpose.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};

/// Spectra of windows of `size` samples, a hop apart, all of them inside the signal.
pub(super) struct Stft {
    pub(super) size: usize,
    pub(super) hop: usize,
    window: Vec<f32>,
    forward: Arc<dyn RealToComplex<f32>>,
    inverse: Arc<dyn ComplexToReal<f32>>,
    piece: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
}

impl Stft {
    /// Hann windows.
    pub(super) fn new(planner: &mut RealFftPlanner<f32>, size: usize, hop: usize) -> Self {
        let (forward, inverse) = (planner.plan_fft_forward(size), planner.plan_fft_inverse(size));
        let turn = 2.0 * std::f64::consts::PI / size as f64;
        Self {
            size,
            hop,
            window: (0..size).map(|i| (0.5 - 0.5 * (turn * i as f64).cos()) as f32).collect(),
            piece: forward.make_input_vec(),
            spectrum: forward.make_output_vec(),
            scratch: vec![Complex::default(); forward.get_scratch_len().max(inverse.get_scratch_len())],
            forward,
            inverse,
        }
    }

    /// Bins of a spectrum.
    pub(super) fn bins(&self) -> usize {
        self.size / 2 + 1
    }

    /// Windows that fit into a signal.
    pub(super) fn windows(&self, samples: usize) -> usize {
        if samples < self.size { 0 } else { (samples - self.size) / self.hop + 1 }
    }

    /// Spectrum of window `index` of a signal that holds it.
    pub(super) fn analyse(&mut self, signal: &[f32], index: usize) -> &[Complex<f32>] {
        let signal = &signal[index * self.hop..][..self.size];
        for ((p, s), w) in self.piece.iter_mut().zip(signal).zip(&self.window) {
            *p = s * w;
        }
        // The buffers were made by the plan, so their sizes fit.
        let _ = self.forward.process_with_scratch(&mut self.piece, &mut self.spectrum, &mut self.scratch);
        &self.spectrum
    }

    /// The transpose of [`Stft::analyse`]: adds to `gradient`, by the signal's samples, what a `slope` by the real and imaginary
    /// parts of the window's spectrum comes to.
    pub(super) fn pull_back(&mut self, slope: &[Complex<f32>], index: usize, gradient: &mut [f32]) {
        // The inverse transform counts every bin but the first and the last twice, once as its mirror image.
        let last = slope.len() - 1;
        for (i, (s, g)) in self.spectrum.iter_mut().zip(slope).enumerate() {
            *s = if i == 0 || i == last { Complex::new(g.re, 0.0) } else { g * 0.5 };
        }
        let _ = self.inverse.process_with_scratch(&mut self.spectrum, &mut self.piece, &mut self.scratch);
        let gradient = &mut gradient[index * self.hop..][..self.size];
        for ((g, p), w) in gradient.iter_mut().zip(&self.piece).zip(&self.window) {
            *g += p * w;
        }
    }
}
