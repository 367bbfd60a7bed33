//! The products of the token model, compiled once for every instruction set. Integers add in any order to the same
//! sum, so all versions agree by construction; the only unsafe code of the token model.

use super::math::Tables;
use super::weights::Linear;
use crate::rvq::SimdLevel;

/// out = weight x in, scaled and shifted row by row: sums of int8 times int16 in int32, a factor of 24 fractional bits.
pub(super) fn linear(level: SimdLevel, layer: &Linear, x: &[i16], out: &mut [i32]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512
            if std::arch::is_x86_feature_detected!("avx512bw") && std::arch::is_x86_feature_detected!("avx512f") =>
        {
            // SAFETY: the guard of this arm has just found AVX-512F and BW on this machine.
            unsafe { linear_avx512(layer, x, out) }
        }
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 | SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the guard of this arm has just found AVX2 on this machine.
            unsafe { linear_avx2(layer, x, out) }
        }
        _ => linear_here(layer, x, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn linear_avx512(layer: &Linear, x: &[i16], out: &mut [i32]) {
    linear_here(layer, x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn linear_avx2(layer: &Linear, x: &[i16], out: &mut [i32]) {
    linear_here(layer, x, out);
}

#[inline(always)]
fn linear_here(layer: &Linear, x: &[i16], out: &mut [i32]) {
    let rows = layer.weight.chunks_exact(layer.inputs).zip(&layer.factor).zip(&layer.bias);
    for (o, ((row, &factor), &bias)) in out.iter_mut().zip(rows) {
        let sum = dot(x, row);
        *o = (((i64::from(sum) * i64::from(factor) + (1 << 23)) >> 24) as i32).wrapping_add(bias);
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

/// Attention of one frame over `keys` and `values` `[frames][width]`; `at(i)` is the row of the frame i steps back.
pub(super) fn attention(
    level: SimdLevel,
    how: Attention<'_>,
    query: &[i16],
    (keys, values): (&[i16], &[i16]),
    rows: &[usize],
    scratch: &mut Vec<i32>,
    out: &mut [i16],
) {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 | SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the guard of this arm has just found AVX2 on this machine.
            unsafe { attention_avx2(how, query, (keys, values), rows, scratch, out) }
        }
        _ => attention_here(how, query, (keys, values), rows, scratch, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn attention_avx2(
    how: Attention<'_>,
    query: &[i16],
    memory: (&[i16], &[i16]),
    rows: &[usize],
    scratch: &mut Vec<i32>,
    out: &mut [i16],
) {
    attention_here(how, query, memory, rows, scratch, out);
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
            total += e;
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
