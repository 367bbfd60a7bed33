//! Adapter to constriction's range coder (Martin 1979), and the shortest payload that decodes to the same codes.

use std::borrow::Borrow;
use std::num::NonZeroU32;

use constriction::Queue;
use constriction::backends::{BoundedReadWords, Cursor};
use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use constriction::stream::queue::{DefaultRangeDecoder, DefaultRangeEncoder};
use constriction::stream::{Decode, Encode};

use crate::token::{Frequencies, TOTAL_BITS};

const PRECISION: usize = TOTAL_BITS as usize;

/// A model that codes exactly one symbol, whose range is known.
struct Known(u32, u32);

impl EntropyModel<PRECISION> for Known {
    type Symbol = bool;
    type Probability = u32;
}

impl EncoderModel<PRECISION> for Known {
    fn left_cumulative_and_probability(&self, _: impl Borrow<bool>) -> Option<(u32, NonZeroU32)> {
        Some((self.0, NonZeroU32::new(self.1)?))
    }
}

impl DecoderModel<PRECISION> for Known {
    /// True inside the range; outside, what the decoder does next does not matter any more.
    fn quantile_function(&self, point: u32) -> (bool, u32, NonZeroU32) {
        let inside = point.wrapping_sub(self.0) < self.1;
        if inside {
            (true, self.0, NonZeroU32::new(self.1).unwrap_or(NonZeroU32::MIN))
        } else {
            (false, point, NonZeroU32::MIN)
        }
    }
}

struct Any<'a>(&'a Frequencies);

impl EntropyModel<PRECISION> for Any<'_> {
    type Symbol = u16;
    type Probability = u32;
}

impl DecoderModel<PRECISION> for Any<'_> {
    fn quantile_function(&self, point: u32) -> (u16, u32, NonZeroU32) {
        let (code, start, width) = self.0.find(point);
        (code, start, NonZeroU32::new(width).unwrap_or(NonZeroU32::MIN))
    }
}

/// Reads codes from a payload; bytes past its end count as zero.
pub(super) struct RangeReader {
    decoder: DefaultRangeDecoder<Cursor<u32, Vec<u32>>>,
}

impl RangeReader {
    pub(super) fn new(payload: &[u8]) -> Self {
        let word = |b: &[u8]| u32::from_be_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(0)));
        let words: Vec<u32> = payload.chunks(4).map(word).collect();
        match DefaultRangeDecoder::from_compressed(words) {
            Ok(decoder) => Self { decoder },
            Err(never) => match never {},
        }
    }

    /// The next code; None for bits that no encoder writes.
    pub(super) fn next(&mut self, frequencies: &Frequencies) -> Option<u16> {
        self.decoder.decode_symbol(Any(frequencies)).ok()
    }

    /// False if words are left that played no part. constriction's own check also asks for a point near the lower end, which
    /// the shortest payload does not have.
    pub(super) fn exhausted(self) -> bool {
        let (words, _, _) = self.decoder.into_raw_parts();
        BoundedReadWords::<u32, Queue>::is_exhausted(&words)
    }
}

/// Appends the code of a sequence of ranges `(start, width)`. The coder ends on whole words; this takes the shortest
/// string of bytes that still lies in the last range, by trying: at most eight times over the bundle's codes.
pub(super) fn encode(ranges: &[(u32, u32)], out: &mut Vec<u8>) {
    let mut encoder = DefaultRangeEncoder::new();
    for &(start, width) in ranges {
        // Cannot fail: every width is at least 1, and a vector takes what it is given.
        let _ = encoder.encode_symbol(true, Known(start, width));
    }
    let words = encoder.into_compressed().unwrap_or_default();
    let whole: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes()).collect();
    let shortest = (whole.len().saturating_sub(8)..whole.len()).find_map(|n| {
        let cut = &whole[..n];
        if decodes(ranges, cut) {
            return Some(cut.to_vec());
        }
        let mut up = cut.to_vec();
        for byte in up.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
        decodes(ranges, &up).then_some(up)
    });
    out.extend_from_slice(shortest.as_deref().unwrap_or(&whole));
}

fn decodes(ranges: &[(u32, u32)], bytes: &[u8]) -> bool {
    let mut reader = RangeReader::new(bytes);
    ranges.iter().all(|&(start, width)| reader.decoder.decode_symbol(Known(start, width)).unwrap_or(false))
        && reader.exhausted()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_within_a_byte_of_the_ideal() {
        let total = f64::from(1u32 << TOTAL_BITS);
        let (mut state, mut ideal, mut real) = (1u32, 0.0, 0usize);
        for _ in 0..200 {
            let mut ranges = Vec::new();
            for _ in 0..15 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let width = 1 + (state >> (12 + state % 12)) % 900_000;
                ranges.push((state % ((1 << TOTAL_BITS) - width), width));
                ideal += (total / f64::from(width)).log2();
            }
            let mut bytes = Vec::new();
            encode(&ranges, &mut bytes);
            assert!(decodes(&ranges, &bytes));
            real += bytes.len();
        }
        let excess = real as f64 - ideal / 8.0;
        assert!((0.0..200.0).contains(&excess), "{excess} bytes over the ideal in 200 payloads");
    }

    #[test]
    fn any_bytes_give_codes_or_nothing() {
        let frequencies = Frequencies::uniform(1024);
        for seed in 0..200u8 {
            let bytes: Vec<u8> = (0..seed).map(|i| i.wrapping_mul(37) ^ seed).collect();
            let mut reader = RangeReader::new(&bytes);
            for _ in 0..100 {
                let Some(code) = reader.next(&frequencies) else { break };
                assert!(code < 1024);
            }
        }
    }
}
