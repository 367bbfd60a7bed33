//! An ONNX graph as a session with tensors that are bound once for each batch shape.

use std::collections::HashMap;
use std::sync::Arc;

use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, Session};
use ort::value::{Outlet, Tensor, ValueType};

use crate::model::NetworkError;

/// Batch shapes whose tensors are kept; past it the oldest choice is to start again.
const MAX_PLANS: usize = 64;

/// Rows of the tensors for a batch of so many: not every size, because the first call of a size takes milliseconds and keeps memory.
/// Rows do not meet, so what the spare ones hold does not matter.
fn with_spare(rows: usize) -> usize {
    if rows <= 8 { rows } else { rows.next_multiple_of(4) }
}

/// A graph with named inputs and outputs.
pub(super) struct Graph {
    name: &'static str,
    session: Session,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    plans: HashMap<(usize, usize), Plan>,
}

/// An input or output of a graph.
pub(super) struct Port {
    pub(super) name: String,
    pub(super) axis: Axis,
    pub(super) width: usize,
}

/// What lies between the rows of a batch and the values of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Frames: `[B, T, width]`.
    Frames,
    /// Nothing: `[B, width]`.
    None,
    /// So many rows, whatever the frames: `[B, rows, width]`.
    Rows(usize),
}

impl Port {
    pub(super) fn new(name: impl Into<String>, axis: Axis, width: usize) -> Self {
        Self { name: name.into(), axis, width }
    }

    fn shape(&self, rows: usize, frames: usize) -> Vec<i64> {
        let middle = match self.axis {
            Axis::Frames => Some(frames),
            Axis::None => None,
            Axis::Rows(n) => Some(n),
        };
        [Some(rows), middle, Some(self.width)].into_iter().flatten().map(|d| d as i64).collect()
    }

    fn fits(&self, outlet: &Outlet) -> bool {
        let ValueType::Tensor { shape, .. } = outlet.dtype() else { return false };
        let last = shape.last().is_some_and(|&d| d == self.width as i64);
        last && match self.axis {
            Axis::Frames => shape.len() == 3,
            Axis::None => shape.len() == 2,
            Axis::Rows(n) => shape.len() == 3 && shape[1] == n as i64,
        }
    }
}

/// Owned tensors bound once for a batch shape. (A borrowed tensor deadlocks ort rc.15 in `bind_input`.)
struct Plan {
    binding: IoBinding,
    inputs: Vec<Tensor<f32>>,
    outputs: Vec<Tensor<f32>>,
}

impl Graph {
    /// The graph in `bytes`, with some of its weights in the file named; `ports` says what it takes and gives.
    pub(super) fn new(
        name: &'static str,
        environment: &Environment,
        bytes: &[u8],
        weights: Option<(&str, &Arc<[u8]>)>,
        ports: impl FnOnce(&Session) -> Result<(Vec<Port>, Vec<Port>), String>,
    ) -> Result<Self, String> {
        let say = |what: &str, e: &dyn std::fmt::Display| format!("{name}: {what}: {e}");
        let mut builder = Session::builder(environment).map_err(|e| say("session", &e))?;
        if let Some((file, content)) = weights {
            builder = builder
                .with_external_initializer_file_in_memory(file, Arc::clone(content))
                .map_err(|e| say("weights", &e))?;
        }
        let session = builder
            .with_intra_threads(1)
            .map_err(|e| say("threads", &e))?
            .with_inter_threads(1)
            .map_err(|e| say("threads", &e))?
            .with_intra_op_spinning(false)
            .map_err(|e| say("spinning", &e))?
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|e| say("optimisation", &e))?
            .commit_from_memory(bytes)
            .map_err(|e| say("graph", &e))?;
        let (inputs, outputs) = ports(&session)?;
        let graph = Self { name, session, inputs, outputs, plans: HashMap::new() };
        graph.check(&graph.inputs, graph.session.inputs())?;
        graph.check(&graph.outputs, graph.session.outputs())?;
        Ok(graph)
    }

    /// That the graph was made from the one whose hash is `sha256`, as its metadata say under `key`.
    pub(super) fn made_from(&self, key: &str, sha256: &str) -> Result<(), String> {
        let of = self.session.metadata().ok().and_then(|m| m.custom(key)).unwrap_or_default();
        if of == sha256 {
            Ok(())
        } else {
            Err(format!("{}: made from another graph ({of}, the manifest says {sha256})", self.name))
        }
    }

    fn check(&self, wanted: &[Port], found: &[Outlet]) -> Result<(), String> {
        for port in wanted {
            let outlet = found
                .iter()
                .find(|o| o.name() == port.name)
                .ok_or_else(|| format!("{}: no tensor \"{}\" in the graph", self.name, port.name))?;
            if !port.fits(outlet) {
                return Err(format!(
                    "{}: tensor \"{}\" is {:?}, expected {:?} and width {}",
                    self.name,
                    port.name,
                    outlet.dtype(),
                    port.axis,
                    port.width
                ));
            }
        }
        if wanted.len() == found.len() {
            Ok(())
        } else {
            Err(format!("{}: {} tensors on one side of the graph, expected {}", self.name, found.len(), wanted.len()))
        }
    }

    /// What it takes.
    pub(super) fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// Runs the graph on `rows` rows of `frames` frames: `gather` fills the inputs, `scatter` reads the outputs.
    pub(super) fn run(
        &mut self,
        rows: usize,
        frames: usize,
        gather: impl FnOnce(&mut [Tensor<f32>]),
        scatter: impl FnOnce(&[Tensor<f32>]),
    ) -> Result<(), NetworkError> {
        let name = self.name;
        let error = |e: ort::Error| NetworkError { network: name, reason: e.to_string() };
        let rows = with_spare(rows);
        if !self.plans.contains_key(&(rows, frames)) {
            if self.plans.len() >= MAX_PLANS {
                self.plans.clear();
            }
            let plan = self.plan(rows, frames).map_err(error)?;
            self.plans.insert((rows, frames), plan);
        }
        let Some(plan) = self.plans.get_mut(&(rows, frames)) else { return Ok(()) };
        gather(&mut plan.inputs);
        drop(self.session.run_binding(&plan.binding).map_err(error)?);
        scatter(&plan.outputs);
        Ok(())
    }

    fn plan(&self, rows: usize, frames: usize) -> Result<Plan, ort::Error> {
        let make = |port: &Port| {
            let mut tensor = Tensor::<f32>::new(&Allocator::default(), port.shape(rows, frames))?;
            tensor.extract_tensor_mut().1.fill(0.0);
            Ok::<_, ort::Error>(tensor)
        };
        let mut binding = self.session.create_binding()?;
        let inputs = self.inputs.iter().map(make).collect::<Result<Vec<_>, _>>()?;
        let mut outputs = self.outputs.iter().map(make).collect::<Result<Vec<_>, _>>()?;
        for (port, tensor) in self.inputs.iter().zip(&inputs) {
            binding.bind_input(&port.name, tensor)?;
        }
        for (port, tensor) in self.outputs.iter().zip(&mut outputs) {
            binding.bind_output(&port.name, tensor)?;
        }
        Ok(Plan { binding, inputs, outputs })
    }
}

/// Puts one row after the other into a tensor.
pub(super) fn fill<'a>(tensor: &mut Tensor<f32>, rows: impl Iterator<Item = &'a [f32]>) {
    let mut at = 0;
    let (_, data) = tensor.extract_tensor_mut();
    for row in rows {
        data[at..at + row.len()].copy_from_slice(row);
        at += row.len();
    }
}

/// Takes one row after the other out of a tensor.
pub(super) fn empty<'a>(tensor: &Tensor<f32>, rows: impl Iterator<Item = &'a mut [f32]>) {
    let mut at = 0;
    let (_, data) = tensor.extract_tensor();
    for row in rows {
        row.copy_from_slice(&data[at..at + row.len()]);
        at += row.len();
    }
}
