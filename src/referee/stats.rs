//! Means with bootstrap intervals, and interpolation along a curve.

use crate::model::SplitMix;

/// A mean and the bounds of its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Mean, or the estimate from all values.
    pub mean: f64,
    /// 2.5 % quantile of the bootstrap.
    pub low: f64,
    /// 97.5 % quantile of the bootstrap.
    pub high: f64,
}

const RESAMPLES: usize = 1_000;

/// Percentile bootstrap over items (Efron 1979), 1000 resamples, always the same draws.
///
/// `estimate` is given indices of items, all of them once for the mean; resamples where it gives None are left out.
/// None without items, or where all items give None.
pub fn bootstrap(items: usize, estimate: impl Fn(&[usize]) -> Option<f64>) -> Option<Interval> {
    if items == 0 {
        return None;
    }
    let mean = estimate(&(0..items).collect::<Vec<_>>())?;
    let mut random = SplitMix(6);
    let mut draws: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let picks: Vec<usize> = (0..items).map(|_| (random.number() % items as u64) as usize).collect();
            estimate(&picks)
        })
        .collect();
    draws.sort_by(f64::total_cmp);
    let at = |share: f64| draws.get((share * (draws.len().max(1) - 1) as f64).round() as usize).copied();
    Some(Interval { mean, low: at(0.025).unwrap_or(mean), high: at(0.975).unwrap_or(mean) })
}

/// Mean of finite values with its interval; None if there is none.
pub fn mean(values: &[f64]) -> Option<Interval> {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    bootstrap(finite.len(), |picks| Some(picks.iter().map(|&i| finite[i]).sum::<f64>() / picks.len() as f64))
}

/// The rate at which a curve of (rate, quality) points reaches `quality`, linear in log rate between points.
///
/// None below the first point or above the last: the curve says nothing there.
pub fn rate_at(curve: &[(f64, f64)], quality: f64) -> Option<f64> {
    let mut points = curve.to_vec();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.windows(2).find(|w| (w[0].1..=w[1].1).contains(&quality)).map(|w| {
        let span = w[1].1 - w[0].1;
        let part = if span > 0.0 { (quality - w[0].1) / span } else { 0.0 };
        (w[0].0.ln() + part * (w[1].0.ln() - w[0].0.ln())).exp()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_of_many_values_is_that_of_theory() {
        let mut random = SplitMix(1);
        let values: Vec<f64> = (0..400).map(|_| random.unit()).collect();
        let i = mean(&values).unwrap();
        // Standard error of 400 uniform values: 0.2887 / 20; the interval is 3.92 of them wide.
        assert!((i.high - i.low - 0.0566).abs() < 0.006, "{i:?}");
        assert!(i.low < 0.5 && i.high > 0.5, "{i:?}");
        assert_eq!(mean(&[f64::NAN]), None);
        assert_eq!(mean(&[2.0, f64::NAN]), Some(Interval { mean: 2.0, low: 2.0, high: 2.0 }));
    }

    #[test]
    fn a_rate_is_read_from_the_curve_or_not_at_all() {
        let curve = [(16.0, 4.0), (4.0, 2.0)];
        assert!((rate_at(&curve, 3.0).unwrap() - 8.0).abs() < 1e-9);
        assert_eq!(rate_at(&curve, 1.0), None);
        assert_eq!(rate_at(&curve, 4.5), None);
    }
}
