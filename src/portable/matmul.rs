//! Matrix products, every sum in the order of its terms.

use super::error::{GraphError, invalid};
use super::simd::{self, PANEL};
use super::tensor::{Tensor, count};
use crate::rvq::SimdLevel;

/// A matrix `[inner, columns]` in panels of [`PANEL`] columns, `[panels][inner][PANEL]`, the last one filled up with zeros.
#[derive(Debug)]
pub(super) struct Packed {
    panels: Vec<f32>,
    inner: usize,
    columns: usize,
}

impl Packed {
    /// None unless it is a matrix of floats with more than one column.
    pub(super) fn new(matrix: &Tensor) -> Option<Self> {
        let (&[inner, columns], Ok(values)) = (matrix.shape(), matrix.floats()) else { return None };
        if inner == 0 || columns < 2 {
            return None;
        }
        let mut panels = vec![0.0; columns.div_ceil(PANEL) * inner * PANEL];
        for (panel, at) in panels.chunks_exact_mut(inner * PANEL).zip((0..columns).step_by(PANEL)) {
            let width = PANEL.min(columns - at);
            for (row, values) in panel.chunks_exact_mut(PANEL).zip(values.chunks_exact(columns)) {
                row[..width].copy_from_slice(&values[at..at + width]);
            }
        }
        Some(Self { panels, inner, columns })
    }

    /// `left [.., rows, inner]` times the matrix.
    pub(super) fn product(&self, left: &Tensor, level: SimdLevel) -> Result<Tensor, GraphError> {
        let (mut shape, values) = (left.shape().to_vec(), left.floats()?);
        match shape.last_mut() {
            Some(last) if *last == self.inner => *last = self.columns,
            _ => return Err(invalid(format!("{:?} times [{}, {}]", left.shape(), self.inner, self.columns))),
        }
        let mut out = vec![0.0; count(&shape)?];
        for (index, panel) in self.panels.chunks_exact(self.inner * PANEL).enumerate() {
            simd::panel(level, values, panel, &mut out, (self.inner, self.columns, index * PANEL));
        }
        Tensor::floats_of(shape, out)
    }
}

/// The product of tensors, neither of which was packed.
pub(super) fn product(left: &Tensor, right: &Tensor, level: SimdLevel) -> Result<Tensor, GraphError> {
    let mismatch = || invalid(format!("{:?} times {:?}", left.shape(), right.shape()));
    let ([outer @ .., rows, inner], [others @ .., same, columns]) = (left.shape(), right.shape()) else {
        return Err(mismatch());
    };
    if inner != same || !(others.is_empty() || others == outer) || *inner == 0 || *columns == 0 {
        return Err(mismatch());
    }
    let shape = [outer, &[*rows, *columns]].concat();
    let (a, b) = (left.floats()?, right.floats()?);
    let mut out = vec![0.0; count(&shape)?];
    let matrices = if others.is_empty() { 1 } else { count(others)? };
    if *rows == 0 || matrices == 0 {
        return Tensor::floats_of(shape, out);
    }
    let (mut column, each) = (vec![0.0; *inner], out.len() / matrices);
    let lefts = a.chunks_exact(a.len() / matrices);
    for ((out, a), b) in out.chunks_exact_mut(each).zip(lefts).zip(b.chunks_exact(inner * columns)) {
        for j in 0..*columns {
            for (value, row) in column.iter_mut().zip(b.chunks_exact(*columns)) {
                *value = row[j];
            }
            for (out, a) in out.chunks_exact_mut(*columns).zip(a.chunks_exact(*inner)) {
                out[j] = simd::dot(level, a, &column);
            }
        }
    }
    Tensor::floats_of(shape, out)
}
