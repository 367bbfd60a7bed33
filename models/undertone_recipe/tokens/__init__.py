"""The token model: a transformer over frames and a depth network over stages, trained for integer arithmetic."""
