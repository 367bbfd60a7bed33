//! Raw interleaved bytes <-> mono samples at the codec's rate.

use super::Resampler;
use crate::units::{CODEC_RATE, PcmEncoding, PcmFormat};

/// Bytes in any chunking -> samples at the codec's rate: decode, mix channels down, resample.
#[derive(Debug)]
pub struct PcmReader {
    format: PcmFormat,
    partial: Vec<u8>,
    mono: Vec<f32>,
    resampler: Resampler,
}

impl PcmReader {
    /// A reader at the start of its stream.
    pub fn new(format: PcmFormat) -> Self {
        Self { format, partial: Vec::new(), mono: Vec::new(), resampler: Resampler::new(format.rate, CODEC_RATE) }
    }

    /// Appends the samples that `bytes` complete to `out`. Values that are not finite become 0.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<f32>) {
        let size = self.format.bytes_per_sample();
        self.mono.clear();
        let mut rest = bytes;
        if !self.partial.is_empty() {
            let (head, tail) = rest.split_at((size - self.partial.len()).min(rest.len()));
            self.partial.extend_from_slice(head);
            rest = tail;
            if self.partial.len() < size {
                return;
            }
            self.mono.push(mix(self.format.encoding, &self.partial));
            self.partial.clear();
        }
        let whole = rest.chunks_exact(size);
        self.partial.extend_from_slice(whole.remainder());
        self.mono.extend(whole.map(|s| mix(self.format.encoding, s)));
        self.resampler.push(&self.mono, out);
    }

    /// Ends the input. An incomplete last sample is dropped.
    pub fn finish(&mut self, out: &mut Vec<f32>) {
        self.partial.clear();
        self.resampler.finish(out);
    }
}

/// Mean of the channels of one interleaved sample.
fn mix(encoding: PcmEncoding, sample: &[u8]) -> f32 {
    let (sum, channels) = match encoding {
        PcmEncoding::S16Le => {
            let values = sample.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0);
            (values.sum::<f32>(), sample.len() / 2)
        }
        PcmEncoding::F32Le => {
            let values = sample.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (values.map(|v| if v.is_finite() { v } else { 0.0 }).sum::<f32>(), sample.len() / 4)
        }
    };
    sum / channels as f32
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
        let mut pcm = Vec::new();
        PcmReader::new(format).push(&bytes, &mut pcm);
        assert_eq!(pcm, [0.3, 0.0]);
    }
}
