//! The inner loops for every instruction set; the only unsafe code of this module.
//!
//! Every version is the same Rust code, compiled for another instruction set: the compiler keeps the order of sums and never fuses a
//! product with a sum by itself, so that all of them agree bit for bit.

use crate::rvq::{SimdLevel, for_every_level};

/// Columns that are computed together: a cache line, the widest vector.
pub(super) const PANEL: usize = 16;

for_every_level! {
    /// Rows `[rows, inner]` times a panel of columns `[inner][PANEL]`, written to columns from `at` on of `out` `[rows, columns]`;
    /// `size` is (inner, columns, at).
    panel = panel_here(rows: &[f32], panel: &[f32], out: &mut [f32], size: (usize, usize, usize))
}

/// Rows that are computed together.
const ROWS: usize = 4;

#[inline(always)]
fn panel_here(rows: &[f32], panel: &[f32], out: &mut [f32], (inner, columns, at): (usize, usize, usize)) {
    let width = PANEL.min(columns - at);
    let (mut left, mut out) = (rows.chunks_exact(inner * ROWS), out.chunks_exact_mut(columns * ROWS));
    for (rows, out) in left.by_ref().zip(out.by_ref()) {
        let sums = block::<ROWS>(rows, panel, inner);
        for (out, sums) in out.chunks_exact_mut(columns).zip(&sums) {
            out[at..at + width].copy_from_slice(&sums[..width]);
        }
    }
    let rest = out.into_remainder().chunks_exact_mut(columns);
    for (row, out) in left.remainder().chunks_exact(inner).zip(rest) {
        let [sums] = block::<1>(row, panel, inner);
        out[at..at + width].copy_from_slice(&sums[..width]);
    }
}

/// `M` rows times a panel.
#[inline(always)]
fn block<const M: usize>(rows: &[f32], panel: &[f32], inner: usize) -> [[f32; PANEL]; M] {
    let mut sums = [[0.0f32; PANEL]; M];
    let rows: [&[f32]; M] = std::array::from_fn(|m| &rows[m * inner..(m + 1) * inner]);
    let (panel, _) = panel.as_chunks::<PANEL>();
    for (k, entries) in panel.iter().enumerate().take(inner) {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let value = row[k];
            for (sum, entry) in sums.iter_mut().zip(entries) {
                *sum += value * entry;
            }
        }
    }
    sums
}

for_every_level! {
    /// The sum of the products of two rows: sixteen sums of every sixteenth product, added up in pairs.
    dot = dot_here(a: &[f32], b: &[f32]) -> f32
}

#[inline(always)]
fn dot_here(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; PANEL];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<PANEL>(), b.as_chunks::<PANEL>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += a * b;
    }
    in_pairs(sums)
}

for_every_level! {
    /// Brings rows to mean 0 and variance 1, then scales and shifts each column.
    layer_norm = layer_norm_here(rows: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32)
}

#[inline(always)]
fn layer_norm_here(rows: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let width = scale.len();
    for row in rows.chunks_exact_mut(width) {
        let mean = sum(row, |x| x) / width as f32;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
        let factor = 1.0 / (variance + epsilon).sqrt();
        for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
            *x = (*x - mean) * factor * scale + shift;
        }
    }
}

/// The sum of `f` of all values, in the order of [`dot`].
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; PANEL];
    let (whole, rest) = values.as_chunks::<PANEL>();
    for values in whole {
        for (sum, &x) in sums.iter_mut().zip(values) {
            *sum += f(x);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f(x);
    }
    in_pairs(sums)
}

#[inline(always)]
fn in_pairs(mut sums: [f32; PANEL]) -> f32 {
    let mut width = PANEL;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            sums[i] += sums[i + width];
        }
    }
    sums[0]
}

for_every_level! {
    /// x Φ(x), Φ the normal distribution's.
    gelu = gelu_here(values: &mut [f32])
}

#[inline(always)]
fn gelu_here(values: &mut [f32]) {
    for x in values {
        *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// The error function within 6e-7: a rational minimax approximation where it is not 1 (the one of Eigen and XLA).
#[inline(always)]
fn erf(x: f32) -> f32 {
    const LIMIT: f32 = 3.832_507;
    let x = x.clamp(-LIMIT, LIMIT);
    let s = x * x;
    let mut p = 0.000_229_050_66;
    for c in [0.003_408_291, 0.050_955_695, 0.185_208_32, std::f32::consts::FRAC_2_SQRT_PI] {
        p = p * s + c;
    }
    let mut q = -1.179_160_3e-7;
    for c in [2.354_796_6e-5, 0.001_017_962_5, 0.014_070_47, 0.110_985_05, 0.497_469_25, 1.0] {
        q = q * s + c;
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        crate::model::decoder_noise(seed, &mut values);
        values
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let (inner, columns) = (67, 29);
        let (rows, columns_of_panel) = (noise(1, 7 * inner), noise(2, inner * PANEL));
        let run = |level| {
            let mut out = vec![0.0; 7 * columns];
            panel(level, &rows, &columns_of_panel, &mut out, (inner, columns, 16));
            let mut curved = rows.iter().map(|x| x * 6.0).collect::<Vec<_>>();
            gelu(level, &mut curved);
            out.extend_from_slice(&curved);
            out.push(dot(level, &rows[..inner], &rows[inner..2 * inner]));
            out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        let plain = run(SimdLevel::Scalar);
        for level in SimdLevel::available() {
            assert_eq!(run(level), plain, "{level:?}");
        }
    }

    #[test]
    fn the_error_function_is_that_of_libm() {
        for i in -6_000..=6_000 {
            let x = i as f32 / 1_000.0;
            let (got, wanted) = (erf(x), libm::erf(f64::from(x)));
            assert!((f64::from(got) - wanted).abs() < 6e-7, "erf({x}) is {wanted}, got {got}");
        }
    }
}
