//! A page of figures for Prometheus, written metric by metric.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::engine::Histogram;

/// Writes one metric after another.
pub(super) struct Page<'a>(DescriptorEncoder<'a>);

impl<'a> Page<'a> {
    pub(super) fn new(encoder: DescriptorEncoder<'a>) -> Self {
        Self(encoder)
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        set(&mut self.0.encode_descriptor(name, help, None, MetricType::Gauge)?, value)
    }

    /// A counter; its name gets `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    /// A counter or gauge for each set of labels.
    pub(super) fn family<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        (kind, help): (MetricType, &str),
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            let mut one = metric.encode_family(&labels)?;
            match kind {
                MetricType::Counter if value.fract() == 0.0 => {
                    one.encode_counter::<NoLabelSet, _, u64>(&(value as u64), None)?;
                }
                MetricType::Counter => one.encode_counter::<NoLabelSet, _, u64>(&value, None)?,
                _ => set(&mut one, value)?,
            }
        }
        Ok(())
    }

    /// A histogram for each phase.
    pub(super) fn histograms(&mut self, name: &str, help: &str, all: [(&str, &Histogram); 3]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (phase, times) in all {
            let (up_to, count, sum) = times.read();
            let before = std::iter::once(0).chain(up_to.iter().map(|b| b.1));
            let ends = up_to.iter().copied().chain([(f64::INFINITY, count)]);
            let buckets: Vec<(f64, u64)> = ends.zip(before).map(|((end, n), before)| (end, n - before)).collect();
            let labels = [("phase", phase)];
            let mut one = metric.encode_family(&labels)?;
            one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}

/// A whole number is written as one: who reads pages by hand, or by a small script, expects `3` listeners, not `3.0`.
fn set(metric: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return metric.encode_gauge(&(value as i64));
    }
    metric.encode_gauge(&value)
}
