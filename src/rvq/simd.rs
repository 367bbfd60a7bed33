//! The inner loop of the search for every instruction set; the only unsafe code of the quantiser.
//!
//! Distances are compared in integers (about 12 bits a value), whose sums are the same in any order: all versions agree bit for bit,
//! twice as many products fit an instruction as with floats, and half as much memory is read. What rounding can hide is a difference
//! of some 1e-4 of a distance; residuals themselves are exact, so nothing adds up from stage to stage.

use std::sync::OnceLock;

use super::codebook::{BLOCK, StageView};
use crate::beam::{Candidate, Candidates};

/// Instruction set of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

    /// The best level this machine has, but none above the one given to [`SimdLevel::limit`]; results are the same with all of them.
    pub fn detect() -> Self {
        let best = Self::available().last().copied().unwrap_or(Self::Scalar);
        best.min(LIMIT.get().copied().unwrap_or(Self::Avx512))
    }

    /// Keeps to `scalar`, `avx2` or `avx512` from now on; the first call counts. False if there is no such level.
    pub fn limit(name: &str) -> bool {
        let levels = [Self::Scalar, Self::Avx2, Self::Avx512];
        let level = levels.into_iter().find(|l| format!("{l:?}").eq_ignore_ascii_case(name.trim()));
        level.is_some_and(|level| *LIMIT.get_or_init(|| level) == level)
    }
}

/// The highest level that may be used.
static LIMIT: OnceLock<SimdLevel> = OnceLock::new();

/// Declares a function that runs `$body` compiled for the best instruction set that `level` allows. Only files of inner loops may: it
/// expands to unsafe code.
macro_rules! for_every_level {
    ($(#[$doc:meta])* $name:ident = $body:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {
        $(#[$doc])*
        pub(super) fn $name(level: SimdLevel, $($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    $body($($arg),*)
                }
                match level {
                    SimdLevel::Avx512
                        if std::arch::is_x86_feature_detected!("avx512f")
                            && std::arch::is_x86_feature_detected!("avx512vl") =>
                    {
                        // SAFETY: the guard of this arm has just found both on this machine.
                        return unsafe { avx512($($arg),*) };
                    }
                    SimdLevel::Avx512 | SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
                        // SAFETY: the guard of this arm has just found AVX2 on this machine.
                        return unsafe { avx2($($arg),*) };
                    }
                    _ => {}
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = level;
            $body($($arg),*)
        }
    };
}
pub(crate) use for_every_level;

/// A survivor of one of the frames that are searched together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Survivor {
    /// Which list of candidates it belongs to.
    pub(super) frame: usize,
    /// Its place among the survivors of its frame.
    pub(super) parent: u16,
    /// Squared length of its residual.
    pub(super) error: f32,
    /// Power of two by which its residual is taken more coarsely than the entries.
    pub(super) shift: u32,
}

/// Offers every entry as a continuation of every survivor, whose residual `pairs` `[survivors][dim / 2]` holds, to the list of its frame.
///
/// A block is read once for all of them: a beam, or more frames, cost arithmetic, not memory traffic.
pub(super) fn scan(
    level: SimdLevel,
    stage: StageView<'_>,
    survivors: &[Survivor],
    pairs: &[i32],
    lists: &mut [Candidates],
) {
    let squared = stage.unit * stage.unit;
    let blocks = stage.blocked.chunks_exact(stage.dim * BLOCK).zip(stage.half_norms.chunks_exact(BLOCK));
    let mut halves = [0i32; BLOCK];
    for (index, (block, norms)) in blocks.enumerate() {
        for (survivor, pairs) in survivors.iter().zip(pairs.chunks_exact(stage.dim / 2)) {
            let least = half_distances(level, block, norms, pairs, survivor.shift, &mut halves);
            let (list, scale) = (&mut lists[survivor.frame], 2.0 * squared * (1u32 << survivor.shift) as f32);
            if survivor.error + scale * (least as f32) < list.limit() || list.is_empty() {
                let here = stage.entries - (index * BLOCK).min(stage.entries);
                offer_block(&halves[..here.min(BLOCK)], scale, index, survivor, list);
            }
        }
    }
}

/// Offers the entries of one block that are better than the limit.
#[cold]
fn offer_block(halves: &[i32], scale: f32, block: usize, survivor: &Survivor, list: &mut Candidates) {
    let cost = |half: i32| survivor.error + scale * (half as f32);
    for (part, halves) in halves.chunks(8).enumerate() {
        let least = halves.iter().copied().min().unwrap_or(i32::MAX);
        // A NaN (from overflow far outside any signal) must not leave a stage without a candidate.
        if cost(least) >= list.limit() && !list.is_empty() {
            continue;
        }
        for (i, &half) in halves.iter().enumerate() {
            let cost = cost(half);
            if cost < list.limit() || list.is_empty() {
                list.offer(Candidate { cost, parent: survivor.parent, entry: (block * BLOCK + part * 8 + i) as u16 });
            }
        }
    }
}

/// A residual `[dim]` in units of a stage times a power of two, which is returned: one that is far larger than the entries is taken more
/// coarsely. Two values to an integer `[dim / 2]`.
pub(super) fn integers(level: SimdLevel, stage: StageView<'_>, residual: &[f32], pairs: &mut [i32]) -> u32 {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 | SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the guard of this arm has just found AVX2 on this machine.
            unsafe { integers_avx2(stage, residual, pairs) }
        }
        _ => integers_here(stage, residual, pairs),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn integers_avx2(stage: StageView<'_>, residual: &[f32], pairs: &mut [i32]) -> u32 {
    integers_here(stage, residual, pairs)
}

#[inline(always)]
fn integers_here(stage: StageView<'_>, residual: &[f32], pairs: &mut [i32]) -> u32 {
    // Magnitudes of floats are ordered as their bits are.
    let largest = residual.iter().map(|v| v.to_bits() & 0x7FFF_FFFF).max().unwrap_or(0);
    let (largest, mut shift, mut unit) = (f32::from_bits(largest), 0, stage.unit);
    while largest > stage.most * unit && shift < 30 {
        shift += 1;
        unit *= 2.0;
    }
    let (inverse, most) = (1.0 / unit, stage.most);
    // Adding this float rounds to the nearest integer, which its lowest bits then hold.
    let whole =
        |v: f32| (((v * inverse).max(-most).min(most) + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4B40_0000);
    for (o, pair) in pairs.iter_mut().zip(residual.chunks_exact(2)) {
        *o = whole(pair[0]) & 0xFFFF | whole(pair[1]) << 16;
    }
    shift
}

/// Half of |entry|^2 - 2 entry . residual, in squared units times 2^shift, for the entries of a block; returns the least.
#[inline(always)]
fn half_distances(
    level: SimdLevel,
    block: &[i16],
    norms: &[i32],
    pairs: &[i32],
    shift: u32,
    out: &mut [i32; BLOCK],
) -> i32 {
    match level {
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512
            if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bw") =>
        {
            // SAFETY: the guard of this arm has just found AVX-512F and BW on this machine.
            unsafe { half_distances_avx512(block, norms, pairs, shift, out) }
        }
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 | SimdLevel::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the guard of this arm has just found AVX2 on this machine.
            unsafe { half_distances_avx2(block, norms, pairs, shift, out) }
        }
        _ => half_distances_here(block, norms, pairs, shift, out),
    }
}

/// The specification: what the others compute faster.
fn half_distances_here(block: &[i16], norms: &[i32], pairs: &[i32], shift: u32, out: &mut [i32; BLOCK]) -> i32 {
    let mut sums = [0i32; BLOCK];
    for (&pair, entries) in pairs.iter().zip(block.chunks_exact(2 * BLOCK)) {
        let (first, second) = (i32::from(pair as i16), pair >> 16);
        for (s, c) in sums.iter_mut().zip(entries.chunks_exact(2)) {
            *s += first * i32::from(c[0]) + second * i32::from(c[1]);
        }
    }
    let mut least = i32::MAX;
    for ((o, s), &n) in out.iter_mut().zip(&sums).zip(norms) {
        *o = (n >> shift).wrapping_sub(*s);
        least = least.min(*o);
    }
    least
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn half_distances_avx2(block: &[i16], norms: &[i32], pairs: &[i32], shift: u32, out: &mut [i32; BLOCK]) -> i32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_si256(); BLOCK / 8];
    for (&pair, entries) in pairs.iter().zip(block.chunks_exact(2 * BLOCK)) {
        let pair = _mm256_set1_epi32(pair);
        for (s, c) in sums.iter_mut().zip(entries.chunks_exact(16)) {
            // SAFETY: the chunk holds 16 integers of 16 bits, and the load needs no alignment.
            let c = unsafe { _mm256_loadu_si256(c.as_ptr().cast()) };
            *s = _mm256_add_epi32(*s, _mm256_madd_epi16(c, pair));
        }
    }
    let mut least = _mm256_set1_epi32(i32::MAX);
    let shift = _mm_cvtsi32_si128(shift as i32);
    for ((o, s), n) in out.chunks_exact_mut(8).zip(&sums).zip(norms.chunks_exact(8)) {
        // SAFETY: the chunk holds 8 integers of 32 bits, and the load needs no alignment.
        let norms = unsafe { _mm256_loadu_si256(n.as_ptr().cast()) };
        let half = _mm256_sub_epi32(_mm256_sra_epi32(norms, shift), *s);
        // SAFETY: as above, for the store.
        unsafe { _mm256_storeu_si256(o.as_mut_ptr().cast(), half) };
        least = _mm256_min_epi32(least, half);
    }
    let four = _mm_min_epi32(_mm256_castsi256_si128(least), _mm256_extracti128_si256::<1>(least));
    let two = _mm_min_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_min_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn half_distances_avx512(block: &[i16], norms: &[i32], pairs: &[i32], shift: u32, out: &mut [i32; BLOCK]) -> i32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); BLOCK / 16];
    for (&pair, entries) in pairs.iter().zip(block.chunks_exact(2 * BLOCK)) {
        let pair = _mm512_set1_epi32(pair);
        for (s, c) in sums.iter_mut().zip(entries.chunks_exact(32)) {
            // SAFETY: the chunk holds 32 integers of 16 bits, and the load needs no alignment.
            let c = unsafe { _mm512_loadu_si512(c.as_ptr().cast()) };
            *s = _mm512_add_epi32(*s, _mm512_madd_epi16(c, pair));
        }
    }
    let mut least = _mm512_set1_epi32(i32::MAX);
    let shift = _mm_cvtsi32_si128(shift as i32);
    for ((o, s), n) in out.chunks_exact_mut(16).zip(&sums).zip(norms.chunks_exact(16)) {
        // SAFETY: the chunk holds 16 integers of 32 bits, and the load needs no alignment.
        let norms = unsafe { _mm512_loadu_si512(n.as_ptr().cast()) };
        let half = _mm512_sub_epi32(_mm512_sra_epi32(norms, shift), *s);
        // SAFETY: as above, for the store.
        unsafe { _mm512_storeu_si512(o.as_mut_ptr().cast(), half) };
        least = _mm512_min_epi32(least, half);
    }
    _mm512_reduce_min_epi32(least)
}
