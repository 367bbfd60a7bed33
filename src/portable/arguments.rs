//! What the steps of a graph work on.

use super::error::{GraphError, invalid};
use super::tensor::Tensor;

/// Where an argument comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operand {
    /// It was left out.
    None,
    /// A weight, or what follows from weights alone.
    Constant(usize),
    /// What a step before has made.
    Value(usize),
}

/// What a step works on.
pub(super) struct Arguments<'a> {
    pub(super) sources: &'a [Operand],
    pub(super) constants: &'a [Tensor],
    pub(super) values: &'a mut [Option<Tensor>],
    pub(super) last: &'a [usize],
}

impl Arguments<'_> {
    /// Arguments that were given, those in the middle that were left out included.
    pub(super) fn count(&self) -> usize {
        self.sources.len()
    }

    pub(super) fn optional(&self, index: usize) -> Result<Option<&Tensor>, GraphError> {
        match self.sources.get(index).copied().unwrap_or(Operand::None) {
            Operand::None => Ok(None),
            Operand::Constant(i) => Ok(self.constants.get(i)),
            Operand::Value(i) => match self.values.get(i) {
                Some(Some(tensor)) => Ok(Some(tensor)),
                _ => Err(invalid(format!("argument {index} is not there yet"))),
            },
        }
    }

    pub(super) fn get(&self, index: usize) -> Result<&Tensor, GraphError> {
        self.optional(index)?.ok_or_else(|| invalid(format!("argument {index} is missing")))
    }

    /// An argument to be changed: without a copy if nobody asks for it again.
    pub(super) fn take(&mut self, index: usize) -> Result<Tensor, GraphError> {
        if let Some(&Operand::Value(i)) = self.sources.get(index)
            && self.last.contains(&i)
            && self.sources.iter().filter(|&&source| source == Operand::Value(i)).count() == 1
            && let Some(tensor) = self.values.get_mut(i).and_then(Option::take)
        {
            return Ok(tensor);
        }
        self.get(index).cloned()
    }
}
