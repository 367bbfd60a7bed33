//! The error of everything that reads or runs a graph.

/// Why a graph cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GraphError(String);

/// A graph error with that reason.
pub(super) fn invalid(reason: impl Into<String>) -> GraphError {
    GraphError(reason.into())
}
