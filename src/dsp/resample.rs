//! Sample-rate conversion; the only file that names rubato.

use audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _};

use crate::units::SampleRate;

/// Streaming conversion of one channel by FFT (rubato), its delay removed: n samples in give n * to / from out.
///
/// Holds back at most one block of 10 ms (more for rates with an awkward ratio).
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
}
