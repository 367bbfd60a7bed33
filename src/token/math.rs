//! Integer functions of the token model.

/// Frequencies of a code sum to 2 to this power.
pub const TOTAL_BITS: u32 = 20;

/// Sum of the frequencies of a code.
pub const TOTAL: u32 = 1 << TOTAL_BITS;

pub(super) const LIMIT: i32 = 32767;

/// Tables that come with the weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tables {
    /// GELU of `(i - 1024) / 128` with 10 fractional bits, `[2048]`.
    pub(super) gelu: Vec<i16>,
    /// 2^(i / 1024) with 20 fractional bits, `[1024]`.
    pub(super) exp2: Vec<i32>,
}

pub(super) fn clamp(x: i32) -> i16 {
    x.clamp(-LIMIT, LIMIT) as i16
}

impl Tables {
    /// GELU of a value with 10 fractional bits.
    pub(super) fn gelu(&self, x: i16) -> i16 {
        let at = (i32::from(x) + 4) >> 3;
        if at > 1023 {
            x
        } else if at < -1024 {
            0
        } else {
            self.gelu[(at + 1024) as usize]
        }
    }

    /// 2^(x / 1024) with 20 fractional bits; x at most 0.
    #[inline(always)]
    pub(super) fn exp2(&self, x: i32) -> u32 {
        debug_assert!(x <= 0);
        (self.exp2[(x & 1023) as usize] as u32) >> (-(x >> 10)).min(31)
    }
}

/// LayerNorm without gain and shift: input with 14 fractional bits, output with 10.
pub(super) fn norm(x: &[i32], out: &mut [i16]) {
    let n = x.len() as i64;
    let mean = x.iter().map(|&v| i64::from(v)).sum::<i64>().div_euclid(n);
    let centred = |v: i32| (i64::from(v) - mean).clamp(-(1 << 23), (1 << 23) - 1);
    let variance = x.iter().map(|&v| centred(v) * centred(v)).sum::<i64>() / n;
    let deviation = ((variance as u64) << 8).isqrt().max(16) as i64;
    let inverse = (1i64 << 40) / deviation;
    for (o, &v) in out.iter_mut().zip(x) {
        *o = ((centred(v) * inverse + (1 << 25)) >> 26).clamp(-i64::from(LIMIT), i64::from(LIMIT)) as i16;
    }
}

/// Integer frequencies of the entries of a codebook: each at least 1, [`TOTAL`] in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frequencies {
    /// `[entries + 1]`, from 0 to [`TOTAL`].
    cumulative: Vec<u32>,
}

impl Frequencies {
    /// All entries alike, as far as that goes.
    pub fn uniform(entries: usize) -> Self {
        let entries = entries.clamp(1, 1 << 16) as u64;
        Self { cumulative: (0..=entries).map(|i| (i * u64::from(TOTAL) / entries) as u32).collect() }
    }

    /// Frequencies in proportion to counts, each at least 1; their sum is far below [`TOTAL`].
    pub fn set_counts(&mut self, counts: &[u32]) {
        let sum = counts.iter().map(|&c| u64::from(c)).sum::<u64>().max(1);
        let mut before = 0;
        self.cumulative.clear();
        self.cumulative.push(0);
        self.cumulative.extend(counts.iter().map(|&c| {
            before += u64::from(c);
            (before * u64::from(TOTAL) / sum) as u32
        }));
    }

    /// Frequencies that are each at least 1 and at most [`TOTAL`] in all; `first` gets what is left.
    pub(super) fn set(&mut self, weights: &mut [u32], first: usize) {
        let left = TOTAL - weights.iter().sum::<u32>();
        if let Some(w) = weights.get_mut(first) {
            *w += left;
        }
        self.cumulative.clear();
        self.cumulative.push(0);
        let mut sum = 0;
        self.cumulative.extend(weights.iter().map(|&w| {
            sum += w;
            sum
        }));
    }

    /// Cumulative frequencies, `[entries + 1]`, from 0 to [`TOTAL`].
    pub fn bounds(&self) -> &[u32] {
        &self.cumulative
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        self.cumulative.len() - 1
    }

    /// Where the range of `code` starts, and its width; None beyond the last entry.
    pub fn range(&self, code: u16) -> Option<(u32, u32)> {
        let [start, end] = self.cumulative.get(usize::from(code)..)?.first_chunk::<2>()?;
        Some((*start, end - start))
    }

    /// The code in whose range `point` lies, where that starts, and its width; `point` below [`TOTAL`].
    pub fn find(&self, point: u32) -> (u16, u32, u32) {
        let after = self.cumulative.partition_point(|&c| c <= point).clamp(1, self.entries());
        let start = self.cumulative[after - 1];
        ((after - 1) as u16, start, self.cumulative[after] - start)
    }

    /// Bits that coding `code` costs.
    pub fn bits(&self, code: u16) -> f64 {
        self.range(code).map_or(f64::INFINITY, |(_, width)| f64::from(TOTAL_BITS) - f64::from(width).log2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_fill_the_range() {
        let mut f = Frequencies::uniform(4);
        assert_eq!(f.range(3), Some((TOTAL / 4 * 3, TOTAL / 4)));
        assert_eq!(f.range(4), None);
        f.set(&mut [TOTAL / 7 * 4, TOTAL / 7 * 2, 1, TOTAL / 7], 0);
        let widths: Vec<u32> = (0..4).map(|c| f.range(c).unwrap().1).collect();
        assert_eq!(widths.iter().sum::<u32>(), TOTAL);
        assert_eq!(widths[2], 1);
        assert!((f64::from(widths[0]) / f64::from(widths[1]) - 2.0).abs() < 1e-4);
        for point in [0, 1, widths[0] - 1, widths[0], TOTAL - 1] {
            let (code, start, width) = f.find(point);
            assert_eq!(f.range(code), Some((start, width)));
            assert!((start..start + width).contains(&point));
        }
        assert!((f.bits(0) - (-(4.0f64 / 7.0).log2())).abs() < 1e-3);
    }

    #[test]
    fn norm_has_unit_variance() {
        let x: Vec<i32> = (0..192).map(|i| (i * 7919 % 1000) * 50 - 20_000).collect();
        let mut y = vec![0; 192];
        norm(&x, &mut y);
        let mean = y.iter().map(|&v| f64::from(v)).sum::<f64>() / 192.0 / 1024.0;
        let var = y.iter().map(|&v| (f64::from(v) / 1024.0 - mean).powi(2)).sum::<f64>() / 192.0;
        assert!(mean.abs() < 1e-3 && (var - 1.0).abs() < 1e-3, "{mean} {var}");
        norm(&[5; 192], &mut y);
        assert!(y.iter().all(|&v| v == 0));
    }
}
