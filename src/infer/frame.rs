//! A network for calls of one frame: the graph gives what is new in its state, and the histories are moved on here.
//!
//! Copying histories is a quarter of such a call when the graph takes and gives whole states (docs/performance.md).

use std::cell::RefCell;
use std::sync::Arc;

use ort::environment::Environment;
use ort::session::Session;
use ort::value::ValueType;

use super::graph::{Axis, Graph, Port, empty, fill};
use super::row::JobRow;
use crate::model::{NetworkError, sha256_hex};

/// Key in the graph's metadata: the graph whose file its weights lie in.
const WEIGHTS_SHA256: &str = "weights_sha256";

/// A part of the state: `rows` of `width` values, the oldest first. A frame brings `new` rows, and as many leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    rows: usize,
    width: usize,
    new: usize,
}

impl Part {
    fn size(self) -> usize {
        self.rows * self.width
    }

    /// Moves `history` on by the `new` rows.
    fn advance(self, history: &mut [f32], new: &[f32]) {
        history.copy_within(new.len().., 0);
        let kept = history.len() - new.len();
        history[kept..].copy_from_slice(new);
    }
}

/// Inputs, `past_i [B, rows, width]` for each part of the state -> output, `new_i [B, new, width]`.
pub(super) struct FrameNet {
    graph: Graph,
    parts: Vec<Part>,
}

impl FrameNet {
    /// The graph in `bytes`, whose weights lie in the file named; `state` is the size of all parts together.
    pub(super) fn new(
        name: &'static str,
        environment: &Environment,
        bytes: &[u8],
        weights: (&str, &Arc<[u8]>),
        mut inputs: Vec<Port>,
        output: Port,
        state: usize,
    ) -> Result<Self, String> {
        let mut parts = Vec::new();
        let graph = Graph::new(name, environment, bytes, Some(weights), |session| {
            parts = parts_of(session)?;
            let size: usize = parts.iter().map(|p| p.size()).sum();
            if size != state {
                return Err(format!("{name}: a state of {size} values a frame, the manifest says {state}"));
            }
            let mut outputs = vec![output];
            for (i, part) in parts.iter().enumerate() {
                inputs.push(Port::new(format!("past_{i}"), Axis::Rows(part.rows), part.width));
                outputs.push(Port::new(format!("new_{i}"), Axis::Rows(part.new), part.width));
            }
            Ok((inputs, outputs))
        })?;
        graph.made_from(WEIGHTS_SHA256, &sha256_hex(weights.1))?;
        Ok(Self { graph, parts })
    }

    /// One frame of every row, whose sizes were checked.
    pub(super) fn run<R: JobRow>(&mut self, rows: &mut [R]) -> Result<(), NetworkError> {
        let (count, parts) = (rows.len(), &self.parts);
        // Both closures look at the rows, one after the other.
        let rows = RefCell::new(rows);
        self.graph.run(
            count,
            1,
            |inputs| {
                let rows = rows.borrow();
                let (data, past) = inputs.split_at_mut(inputs.len() - parts.len());
                for (i, input) in data.iter_mut().enumerate() {
                    fill(input, rows.iter().filter_map(|r| r.inputs().nth(i)));
                }
                let mut at = 0;
                for (part, tensor) in parts.iter().zip(past) {
                    fill(tensor, rows.iter().map(|r| &r.state()[at..at + part.size()]));
                    at += part.size();
                }
            },
            |outputs| {
                let mut rows = rows.borrow_mut();
                empty(&outputs[0], rows.iter_mut().map(R::output));
                let mut at = 0;
                for (part, tensor) in parts.iter().zip(&outputs[1..]) {
                    let (_, new) = tensor.extract_tensor();
                    for (row, new) in rows.iter_mut().zip(new.chunks_exact(part.new * part.width)) {
                        part.advance(&mut row.state_mut()[at..at + part.size()], new);
                    }
                    at += part.size();
                }
            },
        )
    }
}

/// The parts of the state, by the shapes of the ports `past_i` and `new_i`.
fn parts_of(session: &Session) -> Result<Vec<Part>, String> {
    let shape = |ports: &[ort::value::Outlet], name: String| {
        let port = ports.iter().find(|p| p.name() == name)?;
        let ValueType::Tensor { shape, .. } = port.dtype() else { return None };
        let &[_, rows, width] = &shape[..] else { return None };
        Some((usize::try_from(rows).ok()?, usize::try_from(width).ok()?))
    };
    let mut parts = Vec::new();
    while let Some((rows, width)) = shape(session.inputs(), format!("past_{}", parts.len())) {
        let name = format!("new_{}", parts.len());
        match shape(session.outputs(), name.clone()) {
            Some((new, same)) if same == width && (1..=rows).contains(&new) => parts.push(Part { rows, width, new }),
            other => return Err(format!("{name} is {other:?}, expected 1 to {rows} rows of {width}")),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_forgets_its_oldest_rows() {
        let part = Part { rows: 3, width: 2, new: 1 };
        let mut history = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        part.advance(&mut history, &[7.0, 8.0]);
        assert_eq!(history, [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        // A part of one row is replaced.
        part.advance(&mut history[..2], &[9.0, 9.5]);
        assert_eq!(history, [9.0, 9.5, 5.0, 6.0, 7.0, 8.0]);
    }
}
