//! Arrays of numbers with a shape.

use super::error::{GraphError, invalid};

/// Most values of a tensor: far more than a second of sound needs, far less than memory.
const MAX_VALUES: usize = 1 << 27;

/// Values in the order of their last axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Data {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
    Truths(Vec<bool>),
}

/// An array with any number of axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// Values of a shape; more than [`MAX_VALUES`] are an error.
pub(super) fn count(shape: &[usize]) -> Result<usize, GraphError> {
    let values = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= MAX_VALUES);
    values.ok_or_else(|| invalid(format!("a tensor of {shape:?} values")))
}

impl Data {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Floats(v) => v.len(),
            Self::Integers(v) => v.len(),
            Self::Truths(v) => v.len(),
        }
    }
}

impl Tensor {
    pub(super) fn new(shape: Vec<usize>, data: Data) -> Result<Self, GraphError> {
        if count(&shape)? == data.len() {
            Ok(Self { shape, data })
        } else {
            Err(invalid(format!("{} values in a tensor of {shape:?}", data.len())))
        }
    }

    pub(super) fn floats_of(shape: Vec<usize>, values: Vec<f32>) -> Result<Self, GraphError> {
        Self::new(shape, Data::Floats(values))
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(super) fn data(&self) -> &Data {
        &self.data
    }

    pub(super) fn into_data(self) -> Data {
        self.data
    }

    pub(super) fn floats(&self) -> Result<&[f32], GraphError> {
        match &self.data {
            Data::Floats(v) => Ok(v),
            _ => Err(invalid("floats were expected")),
        }
    }

    pub(super) fn into_floats(self) -> Result<Vec<f32>, GraphError> {
        match self.data {
            Data::Floats(v) => Ok(v),
            _ => Err(invalid("floats were expected")),
        }
    }

    pub(super) fn integers(&self) -> Result<&[i64], GraphError> {
        match &self.data {
            Data::Integers(v) => Ok(v),
            _ => Err(invalid("integers were expected")),
        }
    }

    pub(super) fn truths(&self) -> Result<&[bool], GraphError> {
        match &self.data {
            Data::Truths(v) => Ok(v),
            _ => Err(invalid("truth values were expected")),
        }
    }

    /// The same values in another shape.
    pub(super) fn reshaped(self, shape: Vec<usize>) -> Result<Self, GraphError> {
        Self::new(shape, self.data)
    }

    /// An axis counted from the front; negative ones count from the back.
    pub(super) fn axis(&self, axis: i64) -> Result<usize, GraphError> {
        place(axis, self.shape.len()).ok_or_else(|| invalid(format!("no axis {axis} in {:?}", self.shape)))
    }

    /// How often an axis runs: (what lies before it, its length, what lies behind it).
    pub(super) fn around(&self, axis: usize) -> (usize, usize, usize) {
        let (before, rest) = self.shape.split_at(axis.min(self.shape.len()));
        let length = rest.first().copied().unwrap_or(1);
        (before.iter().product(), length, rest.iter().skip(1).product())
    }
}

/// An index into `length` things; negative ones count from the back.
pub(super) fn place(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index + length } else { index };
    if (0..length).contains(&index) { usize::try_from(index).ok() } else { None }
}
