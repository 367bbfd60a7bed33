//! Raw interleaved bytes <-> mono samples at the codec's rate.

use super::{Downmix, Intake, Resampler};
use crate::units::{CODEC_RATE, PcmEncoding, PcmFormat};

/// Bytes in any chunking -> samples at the codec's rate. Raw bytes say nothing of where their channels belong: it takes the mean.
#[derive(Debug)]
pub struct PcmReader {
    format: PcmFormat,
    partial: Vec<u8>,
    intake: Intake,
}

impl PcmReader {
    /// A reader at the start of its stream.
    pub fn new(format: PcmFormat) -> Self {
        let intake = Intake::new(format.rate, Downmix::mean(usize::from(format.channels)));
        Self { format, partial: Vec::new(), intake }
    }

    /// Appends the samples that `bytes` complete to `out`. Values that cannot be used become silence.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<f32>) {
        let size = self.format.bytes_per_sample();
        let mut rest = bytes;
        if !self.partial.is_empty() {
            let (head, tail) = rest.split_at((size - self.partial.len()).min(rest.len()));
            self.partial.extend_from_slice(head);
            rest = tail;
            if self.partial.len() < size {
                return;
            }
            let whole = std::mem::take(&mut self.partial);
            self.values(&whole, out);
        }
        let (whole, part) = rest.split_at(rest.len() - rest.len() % size);
        self.partial.extend_from_slice(part);
        self.values(whole, out);
    }

    /// Ends the input. An incomplete last sample is dropped.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        self.partial.clear();
        self.intake.finish(out);
    }

    /// Values that could not be used so far: not a number, infinite, or far beyond full scale.
    pub fn unusable(&self) -> u64 {
        self.intake.unusable()
    }

    fn values(&mut self, bytes: &[u8], out: &mut Vec<f32>) {
        match self.format.encoding {
            PcmEncoding::S16Le => {
                let value = |b: &[u8]| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0;
                self.intake.push(bytes.chunks_exact(2).map(value), out);
            }
            PcmEncoding::F32Le => {
                let value = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                self.intake.push(bytes.chunks_exact(4).map(value), out);
            }
        }
    }
}

/// Samples at the codec's rate -> bytes: resample, copy to every channel, encode.
#[derive(Debug)]
pub struct PcmWriter {
    format: PcmFormat,
    samples: Vec<f32>,
    resampler: Resampler,
}

impl PcmWriter {
    /// A writer at the start of its stream.
    pub fn new(format: PcmFormat) -> Self {
        Self { format, samples: Vec::new(), resampler: Resampler::new(CODEC_RATE, format.rate) }
    }

    /// Appends the bytes of `pcm` to `out`; values beyond full scale are limited.
    pub fn push(&mut self, pcm: &[f32], out: &mut Vec<u8>) {
        self.samples.clear();
        self.resampler.push(pcm, &mut self.samples);
        self.write(out);
    }

    /// Ends the stream.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.samples.clear();
        self.resampler.finish(&mut self.samples);
        self.write(out);
    }

    fn write(&self, out: &mut Vec<u8>) {
        for &x in &self.samples {
            for _ in 0..self.format.channels {
                match self.format.encoding {
                    PcmEncoding::S16Le => {
                        let v = (x * 32_768.0).round().clamp(-32_768.0, 32_767.0) as i16;
                        out.extend_from_slice(&v.to_le_bytes());
                    }
                    PcmEncoding::F32Le => out.extend_from_slice(&x.to_le_bytes()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s16_passes_unchanged_in_any_chunking() {
        let bytes: Vec<u8> =
            (-500i32..500).flat_map(|v| i16::try_from(v * 65).unwrap_or(i16::MAX).to_le_bytes()).collect();
        for size in [1, 3, 7, 2_000] {
            let (mut r, mut w) = (PcmReader::new(PcmFormat::CODEC), PcmWriter::new(PcmFormat::CODEC));
            let (mut pcm, mut out) = (Vec::new(), Vec::new());
            for chunk in bytes.chunks(size) {
                r.push(chunk, &mut pcm);
            }
            r.finish(&mut pcm);
            w.push(&pcm, &mut out);
            w.finish(&mut out);
            assert_eq!(out, bytes, "chunks of {size}");
        }
    }

    #[test]
    fn channels_are_averaged_and_nan_is_silence() {
        let format: PcmFormat = "f32le:24000:3".parse().unwrap();
        let bytes: Vec<u8> = [0.3f32, f32::NAN, 0.6, f32::INFINITY, f32::NEG_INFINITY, 0.0]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let (mut pcm, mut reader) = (Vec::new(), PcmReader::new(format));
        reader.push(&bytes, &mut pcm);
        assert!((pcm[0] - 0.3).abs() < 1e-6 && pcm[1] == 0.0, "{pcm:?}");
        assert_eq!(reader.unusable(), 3);
    }
}
