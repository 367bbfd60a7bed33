//! The inner loop of the search, compiled once for every instruction set; the only unsafe code of the quantiser.
//!
//! All versions come from one source that adds in one fixed order and never fuses multiply and add, so that their
//! results are the same bit for bit; the scalar one is the specification.

use super::codebook::StageView;
use crate::sampling::beam::{Candidate, Candidates};

/// Entries side by side in memory: eight AVX2 registers of sums.
pub(super) const BLOCK: usize = 64;

/// Instruction set of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    /// What every machine of the target has.
    Scalar,
    /// 256-bit vectors on x86-64.
    Avx2,
    /// 512-bit vectors on x86-64.
    Avx512,
}

impl SimdLevel {
    /// Every level this machine has, the plain one first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut levels = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if std::arch::is_x86_feature_detected!("avx2") {
                levels.push(Self::Avx2);
            }
            if std::arch::is_x86_feature_detected!("avx512f") {
                levels.push(Self::Avx512);
            }
        }
        levels
    }

    /// The best level this machine has, or the lower one that the environment variable `UNDERTONE_SIMD` names
    /// (`scalar`, `avx2`, `avx512`); results are the same with all of them.
    pub fn detect() -> Self {
        let levels = Self::available();
        let wanted = std::env::var("UNDERTONE_SIMD")
            .ok()
            .and_then(|name| levels.iter().copied().find(|l| format!("{l:?}").eq_ignore_ascii_case(name.trim())));
        wanted.or(levels.last().copied()).unwrap_or(Self::Scalar)
    }
}

/// Offers every entry as a continuation of every residual `[n][dim]` with squared length `errors` `[n]`.
pub(super) fn scan(level: SimdLevel, stage: StageView<'_>, residuals: &[f32], errors: &[f32], out: &mut Candidates) {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 if std::arch::is_x86_feature_detected!("avx512f") => {
            // SAFETY: the guard of this arm has just found AVX-512F on this machine.
            unsafe { scan_avx512(stage, residuals, errors, out) }
        }
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the guard of this arm has just found AVX2 on this machine.
            unsafe { scan_avx2(stage, residuals, errors, out) }
        }
        _ => scan_here(stage, residuals, errors, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn scan_avx512(stage: StageView<'_>, residuals: &[f32], errors: &[f32], out: &mut Candidates) {
    scan_here(stage, residuals, errors, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn scan_avx2(stage: StageView<'_>, residuals: &[f32], errors: &[f32], out: &mut Candidates) {
    scan_here(stage, residuals, errors, out);
}

/// A block is read once for all residuals: a beam costs arithmetic, not memory traffic.
#[inline(always)]
fn scan_here(stage: StageView<'_>, residuals: &[f32], errors: &[f32], out: &mut Candidates) {
    let blocks = stage.blocked.chunks_exact(stage.dim * BLOCK).zip(stage.norms.chunks_exact(BLOCK));
    for (index, (block, norms)) in blocks.enumerate() {
        for (parent, (residual, &error)) in residuals.chunks_exact(stage.dim).zip(errors).enumerate() {
            let mut sums = [0.0f32; BLOCK];
            for (&r, row) in residual.iter().zip(block.chunks_exact(BLOCK)) {
                for (s, &c) in sums.iter_mut().zip(row) {
                    *s += r * c;
                }
            }
            let mut least = f32::INFINITY;
            for (s, &n) in sums.iter_mut().zip(norms) {
                *s = error + (n - 2.0 * *s);
                least = if *s < least { *s } else { least };
            }
            if least < out.limit() || (out.is_empty() && index == 0) {
                offer_block(&sums, index, parent, out);
            }
        }
    }
}

/// Offers the entries of one block that are better than the limit.
#[cold]
fn offer_block(errors: &[f32; BLOCK], block: usize, parent: usize, out: &mut Candidates) {
    for (i, &error) in errors.iter().enumerate() {
        // A NaN (from overflow far outside any signal) must not leave a stage without a candidate.
        if error < out.limit() || out.is_empty() {
            out.offer(Candidate { cost: error, parent: parent as u16, entry: (block * BLOCK + i) as u16 });
        }
    }
}
