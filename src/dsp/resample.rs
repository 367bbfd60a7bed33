//! Sample-rate conversion; the only file that names rubato.

use audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Adjustable as _, Async, Fft, FixedAsync, FixedSync, Resampler as _, SincInterpolationParameters};

use super::drift::MAX_CORRECTION;
use crate::units::SampleRate;

/// Streaming conversion of one channel by FFT (rubato), its delay removed: n samples in give n * to / from out.
///
/// Holds back at most one block of 10 ms (more for rates with an awkward ratio).
///
/// # Examples
/// ```
/// use undertone::{dsp::Resampler, units::SampleRate};
///
/// let mut resampler = Resampler::new(SampleRate::new(48_000)?, SampleRate::new(24_000)?);
/// let mut out = Vec::new();
/// resampler.push(&[0.5; 48_000], &mut out);
/// resampler.finish(&mut out);
/// assert_eq!(out.len(), 24_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Resampler {
    inner: Option<Box<Inner>>,
    samples_in: u64,
    samples_out: u64,
    from: u64,
    to: u64,
}

struct Inner {
    fft: Fft<f32>,
    block: Vec<f32>,
    result: Vec<f32>,
    skip: usize,
}

impl std::fmt::Debug for Resampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Resampler({} -> {} Hz)", self.from, self.to)
    }
}

impl Resampler {
    /// Equal rates pass samples through.
    pub fn new(from: SampleRate, to: SampleRate) -> Self {
        let inner = (from != to).then(|| {
            let (a, b) = (from.hz() as usize, to.hz() as usize);
            let fft = Fft::new(a, b, block(a, b), 1, FixedSync::Both).expect("checked rates and one channel fit");
            let result = vec![0.0; fft.output_frames_max()];
            let skip = fft.output_delay();
            Box::new(Inner { block: Vec::with_capacity(fft.input_frames_max()), fft, result, skip })
        });
        Self { inner, samples_in: 0, samples_out: 0, from: u64::from(from.hz()), to: u64::from(to.hz()) }
    }

    /// Converts what makes whole blocks and appends it to `out`.
    pub fn push(&mut self, mut pcm: &[f32], out: &mut Vec<f32>) {
        self.samples_in += pcm.len() as u64;
        let Some(inner) = &mut self.inner else {
            out.extend_from_slice(pcm);
            return;
        };
        while !pcm.is_empty() {
            let wanted = inner.fft.input_frames_next();
            let (now, later) = pcm.split_at((wanted - inner.block.len()).min(pcm.len()));
            inner.block.extend_from_slice(now);
            pcm = later;
            if inner.block.len() == wanted {
                self.samples_out += inner.convert(out) as u64;
            }
        }
    }

    /// Ends the input: appends what is held back, so that lengths agree with the ratio.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        let total = (self.samples_in * self.to).div_ceil(self.from);
        let Some(inner) = &mut self.inner else { return };
        while self.samples_out < total {
            inner.block.resize(inner.fft.input_frames_next(), 0.0);
            self.samples_out += inner.convert(out) as u64;
        }
        out.truncate(out.len() - (self.samples_out - total) as usize);
        self.samples_out = total;
    }
}

impl Inner {
    /// Converts the full block; returns how many samples it appended.
    fn convert(&mut self, out: &mut Vec<f32>) -> usize {
        let (n_in, n_out) = (self.block.len(), self.result.len());
        let input = InterleavedSlice::new(&self.block, 1, n_in).expect("one channel fits");
        let mut output = InterleavedSlice::new_mut(&mut self.result, 1, n_out).expect("one channel fits");
        let (_, made) = self.fft.process_into_buffer(&input, &mut output, None).expect("a whole block converts");
        self.block.clear();
        let skipped = self.skip.min(made);
        self.skip -= skipped;
        out.extend_from_slice(&self.result[skipped..made]);
        made - skipped
    }
}

/// Samples of about 10 ms: whole on both sides and even, because a filter of odd length would lag by half a sample.
fn block(from: usize, to: usize) -> usize {
    let unit = from / gcd(from, to);
    let blocks = (from / 100).div_ceil(unit);
    if (unit * blocks).is_multiple_of(2) { unit * blocks } else { unit * (blocks + 1) }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Streaming conversion of one channel whose ratio may be corrected while it runs (windowed sinc of 256 points, cubic
/// interpolation): for devices, whose clocks differ from ours. 2.7 to 5.3 ms of delay.
pub struct VariableResampler {
    inner: Async<f32>,
    ratio: f64,
    result: Vec<f32>,
}

impl std::fmt::Debug for VariableResampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VariableResampler(x {})", self.inner.resample_ratio())
    }
}

impl VariableResampler {
    /// Gives `samples` samples a call and takes what it needs for them.
    pub fn fixed_output(from: SampleRate, to: SampleRate, samples: usize) -> Self {
        Self::new(from, to, samples, FixedAsync::Output)
    }

    /// Takes `samples` samples a call and gives what they make.
    pub fn fixed_input(from: SampleRate, to: SampleRate, samples: usize) -> Self {
        Self::new(from, to, samples, FixedAsync::Input)
    }

    fn new(from: SampleRate, to: SampleRate, samples: usize, fixed: FixedAsync) -> Self {
        let ratio = f64::from(to.hz()) / f64::from(from.hz());
        let span = 1.0 + 2.0 * MAX_CORRECTION;
        let sinc = SincInterpolationParameters::default();
        let inner = Async::new_sinc(ratio, span, &sinc, samples, 1, fixed).expect("checked rates and one channel fit");
        let result = vec![0.0; inner.output_frames_max()];
        Self { inner, ratio, result }
    }

    /// Samples that the next call takes.
    pub fn input_needed(&self) -> usize {
        self.inner.input_frames_next()
    }

    /// Takes in faster by the part `correction` of the rate (slower if negative), clamped to [`MAX_CORRECTION`].
    pub fn correct(&mut self, correction: f64) {
        let correction = correction.clamp(-MAX_CORRECTION, MAX_CORRECTION);
        self.inner.set_resample_ratio(self.ratio / (1.0 + correction), true).expect("within the span it was made for");
    }

    /// Converts exactly [`VariableResampler::input_needed`] samples and appends the result to `out`.
    ///
    /// # Panics
    /// With any other number of samples.
    pub fn process(&mut self, pcm: &[f32], out: &mut Vec<f32>) {
        assert_eq!(pcm.len(), self.input_needed(), "as many samples as needed");
        let (n_in, n_out) = (pcm.len(), self.result.len());
        let input = InterleavedSlice::new(pcm, 1, n_in).expect("one channel fits");
        let mut output = InterleavedSlice::new_mut(&mut self.result, 1, n_out).expect("one channel fits");
        let (_, made) = self.inner.process_into_buffer(&input, &mut output, None).expect("a whole block converts");
        out.extend_from_slice(&self.result[..made]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(rate: u32, hz: f32, n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * hz * std::f32::consts::TAU / rate as f32).sin() * 0.5).collect()
    }

    #[test]
    fn a_tone_keeps_its_place_and_level_at_every_rate() {
        for rate in [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000] {
            let x = tone(rate, 440.0, rate as usize);
            let mut r = Resampler::new(SampleRate::new(rate).unwrap(), SampleRate::new(24_000).unwrap());
            let mut y = Vec::new();
            for chunk in x.chunks(777) {
                r.push(chunk, &mut y);
            }
            r.finish(&mut y);
            assert_eq!(y.len(), 24_000, "{rate}");
            let want = tone(24_000, 440.0, 24_000);
            let worst =
                y[2_000..22_000].iter().zip(&want[2_000..22_000]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-3, "{rate} Hz: off by {worst}");
        }
    }

    #[test]
    fn chunks_do_not_matter() {
        let x = tone(44_100, 1_000.0, 30_001);
        let run = |sizes: &[usize]| {
            let mut r = Resampler::new(SampleRate::new(44_100).unwrap(), SampleRate::new(24_000).unwrap());
            let (mut y, mut at, mut i) = (Vec::new(), 0, 0);
            while at < x.len() {
                let n = sizes[i % sizes.len()].min(x.len() - at);
                r.push(&x[at..at + n], &mut y);
                at += n;
                i += 1;
            }
            r.finish(&mut y);
            y
        };
        assert_eq!(run(&[30_001]), run(&[1, 7, 441, 1_000]));
    }

    #[test]
    fn the_ratio_can_be_corrected_while_it_runs() {
        let rate = |hz| SampleRate::new(hz).unwrap();
        let mut r = VariableResampler::fixed_output(rate(48_000), rate(24_000), 480);
        let taken = |r: &mut VariableResampler, correction| {
            let (mut taken, mut out) = (0, Vec::new());
            for _ in 0..500 {
                r.correct(correction);
                let n = r.input_needed();
                r.process(&vec![0.1; n], &mut out);
                taken += n;
            }
            assert_eq!(out.len(), 240_000);
            taken as f64 / 480_000.0 - 1.0
        };
        assert!(taken(&mut r, 0.0).abs() < 1e-3);
        assert!((taken(&mut r, 0.003) - 0.003).abs() < 2e-4);
        assert!((taken(&mut r, -1.0) + MAX_CORRECTION).abs() < 2e-4, "clamped");
        // A tone keeps its level.
        let mut r = VariableResampler::fixed_input(rate(24_000), rate(44_100), 480);
        let (x, mut y) = (tone(24_000, 440.0, 24_000), Vec::new());
        x.chunks_exact(480).for_each(|block| r.process(block, &mut y));
        assert!((y.len() as i64 - 44_100).abs() < 10);
        let power = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        assert!((power(&y[4_410..39_690]) / power(&x[2_400..21_600]) - 1.0).abs() < 0.01);
    }
}
