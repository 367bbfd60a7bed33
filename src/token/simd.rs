//! The products of the token model, compiled once for every instruction set. Integers add in any order to the same
//! sum, so all versions agree by construction; the only unsafe code of the token model.

use super::linear::{LANES, Linear};
use super::math::{TOTAL, Tables};
use crate::rvq::{SimdLevel, for_every_level};

/// Most inputs of a layer.
const MAX_INPUTS: usize = 512;

/// out = weight x in, scaled and shifted row by row: sums of int8 times int16 in int32, a factor of 24 fractional bits.
pub(super) fn linear(level: SimdLevel, layer: &Linear, x: &[i16], out: &mut [i32]) {
    // Two inputs a lane, as they are multiplied.
    let mut pairs = [0; MAX_INPUTS / 2];
    let pairs = &mut pairs[..layer.inputs().div_ceil(2)];
    for (pair, x) in pairs.iter_mut().zip(x.chunks(2)) {
        let high = x.get(1).copied().unwrap_or(0);
        *pair = i32::from(x[0] as u16) | i32::from(high) << 16;
    }
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 if x86::has_vnni() => {
            // SAFETY: the guard of this arm has just found AVX-512F, BW and VNNI on this machine.
            unsafe { x86::linear_vnni(layer, pairs, out) }
        }
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 | SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the guard of this arm has just found AVX2 on this machine.
            unsafe { x86::linear_avx2(layer, pairs, out) }
        }
        _ => {
            for ((weights, out), n) in layer.blocks().zip(out.chunks_mut(LANES)).zip(0..) {
                let mut sums = [0i32; LANES];
                for (weights, &pair) in weights.chunks_exact(2 * LANES).zip(&*pairs) {
                    let (low, high) = (i32::from(pair as i16), pair >> 16);
                    for (sum, w) in sums.iter_mut().zip(weights.chunks_exact(2)) {
                        *sum = sum.wrapping_add(low * i32::from(w[0]) + high * i32::from(w[1]));
                    }
                }
                scale(layer, n, &sums, out);
            }
        }
    }
}

/// Scales the sums of block `n`.
#[inline(always)]
fn scale(layer: &Linear, n: usize, sums: &[i32; LANES], out: &mut [i32]) {
    let (factors, biases) = (&layer.factor[n * LANES..], &layer.bias[n * LANES..]);
    for (((out, &sum), &factor), &bias) in out.iter_mut().zip(sums).zip(factors).zip(biases) {
        *out = (((i64::from(sum) * i64::from(factor) + (1 << 23)) >> 24) as i32).wrapping_add(bias);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Linear, scale};

    pub(super) fn has_vnni() -> bool {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vnni")
    }

    /// Blocks whose sums are formed side by side, so that one product need not wait for another.
    const BLOCKS: usize = 4;

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn linear_vnni(layer: &Linear, pairs: &[i32], out: &mut [i32]) {
        let mut blocks = layer.blocks();
        let (mut n, mut rest) = (0, out);
        while blocks.len() >= BLOCKS {
            let four: [&[i8]; BLOCKS] = std::array::from_fn(|_| blocks.next().unwrap_or(&[]));
            let mut sums = [_mm512_setzero_si512(); BLOCKS];
            let mut weights = four.map(|b| b.chunks_exact(2 * LANES));
            for &pair in pairs {
                let x = _mm512_set1_epi32(pair);
                for (sum, weights) in sums.iter_mut().zip(&mut weights) {
                    let Some(w) = weights.next() else { continue };
                    *sum = _mm512_dpwssd_epi32(*sum, x, widened(w));
                }
            }
            for sum in sums {
                rest = scaled(layer, n, sum, rest);
                n += 1;
            }
        }
        for block in blocks {
            let mut sum = _mm512_setzero_si512();
            for (w, &pair) in block.chunks_exact(2 * LANES).zip(pairs) {
                sum = _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(pair), widened(w));
            }
            rest = scaled(layer, n, sum, rest);
            n += 1;
        }
    }

    /// 32 weights as 16-bit numbers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn widened(weights: &[i8]) -> __m512i {
        debug_assert!(weights.len() >= 2 * LANES);
        // SAFETY: there are 32 bytes behind the slice's start; the load asks for no alignment.
        _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(weights.as_ptr().cast()) })
    }

    /// Writes a block's outputs; gives what is left.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn scaled<'a>(layer: &Linear, n: usize, sum: __m512i, out: &'a mut [i32]) -> &'a mut [i32] {
        let mut sums = [0; LANES];
        // SAFETY: the array has the 64 bytes that are stored; the store asks for no alignment.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum) };
        let (now, rest) = out.split_at_mut(LANES.min(out.len()));
        scale(layer, n, &sums, now);
        rest
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn linear_avx2(layer: &Linear, pairs: &[i32], out: &mut [i32]) {
        for ((block, out), n) in layer.blocks().zip(out.chunks_mut(LANES)).zip(0..) {
            let mut halves = [_mm256_setzero_si256(); 2];
            for (weights, &pair) in block.chunks_exact(2 * LANES).zip(pairs) {
                let x = _mm256_set1_epi32(pair);
                for (sum, w) in halves.iter_mut().zip(weights.chunks_exact(LANES)) {
                    // SAFETY: there are 16 bytes behind the slice's start; the load asks for no alignment.
                    let w = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(w.as_ptr().cast()) });
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, w));
                }
            }
            let mut sums = [0; LANES];
            for (to, half) in sums.chunks_exact_mut(LANES / 2).zip(halves) {
                // SAFETY: the chunk has the 32 bytes that are stored; the store asks for no alignment.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), half) };
            }
            scale(layer, n, &sums, out);
        }
    }
}

for_every_level! {
    /// Weights of logits `[entries]`, each at least 1, [`TOTAL`] in all but for what rounding leaves.
    softmax = softmax_here(tables: &Tables, logits: &[i32], max: i32, out: &mut [u32])
}

#[inline(always)]
fn softmax_here(tables: &Tables, logits: &[i32], max: i32, out: &mut [u32]) {
    for (o, &l) in out.iter_mut().zip(logits) {
        *o = tables.exp2(l.saturating_sub(max).max(-(1 << 20)));
    }
    let sum = out.iter().map(|&w| u64::from(w)).sum::<u64>().max(1);
    let scale = (u64::from(TOTAL - logits.len() as u32) << 32) / sum;
    for w in out.iter_mut() {
        *w = ((u64::from(*w) * scale) >> 32) as u32 + 1;
    }
}

#[inline(always)]
fn dot(a: &[i16], b: &[i16]) -> i32 {
    let mut sum = 0i32;
    for (&x, &y) in a.iter().zip(b) {
        sum = sum.wrapping_add(i32::from(x) * i32::from(y));
    }
    sum
}

/// Sizes of one attention step.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) width: usize,
    /// Factor of a score, 22 fractional bits after it.
    pub(super) score: i64,
    /// Penalty of a frame of distance by head.
    pub(super) slopes: &'a [i32],
    pub(super) tables: &'a Tables,
}

for_every_level! {
    /// Attention of one frame over `memory`, keys and values `[frames][width]`; `rows[i]` is the row of the frame i steps back.
    attention = attention_here(
        how: Attention<'_>,
        query: &[i16],
        memory: (&[i16], &[i16]),
        rows: &[usize],
        scratch: &mut Vec<i32>,
        out: &mut [i16]
    )
}

#[inline(always)]
fn attention_here(
    how: Attention<'_>,
    query: &[i16],
    (keys, values): (&[i16], &[i16]),
    rows: &[usize],
    scores: &mut Vec<i32>,
    out: &mut [i16],
) {
    let size = how.width / how.slopes.len();
    let mut sums = [0i32; 512];
    for (head, &slope) in how.slopes.iter().enumerate() {
        let part = |row: usize| row * how.width + head * size..row * how.width + (head + 1) * size;
        let q = &query[head * size..(head + 1) * size];
        scores.clear();
        scores.extend(rows.iter().zip(0i32..).map(|(&row, distance)| {
            let product = i64::from(dot(q, &keys[part(row)]));
            ((product * how.score + (1 << 21)) >> 22) as i32 - slope * distance
        }));
        let max = scores.iter().copied().max().unwrap_or(0);
        let mut total = 0u64;
        for s in scores.iter_mut() {
            let e = how.tables.exp2((*s).saturating_sub(max));
            total += u64::from(e);
            *s = e as i32;
        }
        let inverse = (1u64 << 40) / total.max(1);
        let sums = &mut sums[..size];
        sums.fill(0);
        for (&e, &row) in scores.iter().zip(rows) {
            let weight = ((e as u64 * inverse) >> 25).min(32767) as i32;
            if weight > 0 {
                for (s, &v) in sums.iter_mut().zip(&values[part(row)]) {
                    *s = s.wrapping_add(weight * i32::from(v));
                }
            }
        }
        for (o, &s) in out[head * size..].iter_mut().zip(sums.iter()) {
            *o = (s.wrapping_add(1 << 14) >> 15) as i16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_same_weights() {
        let exp2 = (0..1024).map(|i| ((f64::from(i) / 1024.0).exp2() * 1_048_576.0).round() as i32).collect();
        let tables = Tables { gelu: vec![0; 2048], exp2 };
        let logits: Vec<i32> = (0..1024).map(|i| if i % 9 == 4 { i32::MIN } else { -(i * 7919 % 20_011) }).collect();
        for level in SimdLevel::available() {
            let mut out = vec![0; logits.len()];
            softmax(level, &tables, &logits, 0, &mut out);
            assert!(out.iter().all(|&w| w > 0) && out[4] == 1 && out.iter().sum::<u32>() <= TOTAL, "{level:?}");
            let (ratio, want) = (f64::from(out[0]) / f64::from(out[1]), f64::from(-logits[1]) / 1024.0);
            assert!((ratio / want.exp2() - 1.0).abs() < 0.02, "{ratio}");
            let mut scalar = vec![0; logits.len()];
            softmax(SimdLevel::Scalar, &tables, &logits, 0, &mut scalar);
            assert!(out == scalar, "{level:?}");
        }
    }

    #[test]
    fn every_level_multiplies_as_the_definition_does() {
        let mut seed = 7u32;
        let mut number = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as i32
        };
        for (inputs, outputs) in [(1, 1), (2, 16), (7, 15), (80, 1024), (33, 65), (264, 192), (512, 49)] {
            let rows: Vec<i8> = (0..inputs * outputs).map(|_| (number() % 255 - 127) as i8).collect();
            let factor: Vec<i32> = (0..outputs).map(|_| number() % (1 << 24)).collect();
            let bias: Vec<i32> = (0..outputs).map(|_| number() % 5_000 - 2_500).collect();
            let x: Vec<i16> = (0..inputs).map(|i| if i == 0 { -32_767 } else { number() as i16 | 1 }).collect();
            let want: Vec<i32> = rows
                .chunks_exact(inputs)
                .zip(factor.iter().zip(&bias))
                .map(|(row, (&f, &b))| {
                    let sum: i32 = row.iter().zip(&x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
                    ((i64::from(sum) * i64::from(f) + (1 << 23)) >> 24) as i32 + b
                })
                .collect();
            let layer = Linear::new(inputs, &rows, factor, bias);
            for level in SimdLevel::available() {
                let mut out = vec![0; outputs];
                linear(level, &layer, &x, &mut out);
                assert_eq!(out, want, "{level:?} {inputs} x {outputs}");
            }
            let last = layer.row(outputs - 1).unwrap().collect::<Vec<_>>();
            assert!(last == rows[(outputs - 1) * inputs..] && layer.row(outputs).is_none());
        }
    }
}
