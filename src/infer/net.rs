//! The two graphs as batched networks with explicit state.

use std::collections::HashMap;
use std::sync::Arc;

use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{IoBinding, Session};
use ort::value::{Tensor, ValueType};

use crate::model::{
    DecodeRow, DecoderGradient, DecoderNet, EncodeRow, EncoderNet, GradientRow, Manifest, NetworkError,
};

/// Batch shapes whose tensors are kept; past it the oldest choice is to start again.
const MAX_PLANS: usize = 64;

/// Rows of the tensors for a batch of so many: not every size, because the first call of a size takes milliseconds and keeps memory.
/// Rows do not meet, so what the spare ones hold does not matter.
fn with_spare(rows: usize) -> usize {
    if rows <= 8 { rows } else { rows.next_multiple_of(4) }
}

/// A graph with named inputs and outputs, each `[B, T, width]`, or `[B, width]` for the state.
struct Graph {
    name: &'static str,
    session: Session,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    plans: HashMap<(usize, usize), Plan>,
}

struct Port {
    name: &'static str,
    width: usize,
    /// Whether the tensor has a frame axis; a state has none.
    frames: bool,
}

/// Owned tensors bound once for a batch shape. (A borrowed tensor deadlocks ort rc.15 in `bind_input`.)
struct Plan {
    binding: IoBinding,
    inputs: Vec<Tensor<f32>>,
    outputs: Vec<Tensor<f32>>,
}

impl Graph {
    fn new(
        name: &'static str,
        environment: &Environment,
        bytes: &[u8],
        weights: Option<(&str, &Arc<[u8]>)>,
        inputs: Vec<Port>,
        outputs: Vec<Port>,
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
        let graph = Self { name, session, inputs, outputs, plans: HashMap::new() };
        graph.check(&graph.inputs, graph.session.inputs())?;
        graph.check(&graph.outputs, graph.session.outputs())?;
        Ok(graph)
    }

    /// That the graph was made from the one whose hash is `sha256`, as its metadata say under `key`.
    fn made_from(&self, key: &str, sha256: &str) -> Result<(), String> {
        let of = self.session.metadata().ok().and_then(|m| m.custom(key)).unwrap_or_default();
        if of == sha256 {
            Ok(())
        } else {
            Err(format!("{}: made from another graph ({of}, the manifest says {sha256})", self.name))
        }
    }

    fn check(&self, wanted: &[Port], found: &[ort::value::Outlet]) -> Result<(), String> {
        for port in wanted {
            let outlet = found
                .iter()
                .find(|o| o.name() == port.name)
                .ok_or_else(|| format!("{}: no tensor \"{}\" in the graph", self.name, port.name))?;
            let rank = if port.frames { 3 } else { 2 };
            let fits = match outlet.dtype() {
                ValueType::Tensor { shape, .. } => {
                    shape.len() == rank && shape.last().is_some_and(|&d| d == port.width as i64)
                }
                _ => false,
            };
            if !fits {
                return Err(format!(
                    "{}: tensor \"{}\" is {:?}, the manifest says width {}",
                    self.name,
                    port.name,
                    outlet.dtype(),
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

    /// Runs the graph on `rows` rows of `frames` frames: `gather` fills the inputs, `scatter` reads the outputs.
    fn run(
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
            let (b, t, w) = (rows as i64, frames as i64, port.width as i64);
            let mut tensor = if port.frames {
                Tensor::<f32>::new(&Allocator::default(), [b, t, w])?
            } else {
                Tensor::<f32>::new(&Allocator::default(), [b, w])?
            };
            tensor.extract_tensor_mut().1.fill(0.0);
            Ok::<_, ort::Error>(tensor)
        };
        let mut binding = self.session.create_binding()?;
        let inputs = self.inputs.iter().map(make).collect::<Result<Vec<_>, _>>()?;
        let mut outputs = self.outputs.iter().map(make).collect::<Result<Vec<_>, _>>()?;
        for (port, tensor) in self.inputs.iter().zip(&inputs) {
            binding.bind_input(port.name, tensor)?;
        }
        for (port, tensor) in self.outputs.iter().zip(&mut outputs) {
            binding.bind_output(port.name, tensor)?;
        }
        Ok(Plan { binding, inputs, outputs })
    }
}

fn fill<'a>(tensor: &mut Tensor<f32>, rows: impl Iterator<Item = &'a [f32]>) {
    let mut at = 0;
    let (_, data) = tensor.extract_tensor_mut();
    for row in rows {
        data[at..at + row.len()].copy_from_slice(row);
        at += row.len();
    }
}

fn empty<'a>(tensor: &Tensor<f32>, rows: impl Iterator<Item = &'a mut [f32]>) {
    let mut at = 0;
    let (_, data) = tensor.extract_tensor();
    for row in rows {
        row.copy_from_slice(&data[at..at + row.len()]);
        at += row.len();
    }
}

fn size_error(network: &'static str, what: &str, got: usize, wanted: usize) -> NetworkError {
    NetworkError { network, reason: format!("{what} has {got} values, expected {wanted}") }
}

/// Key in the metadata of a graph with integer products: the graph that it was made from.
const FLOAT_SHA256: &str = "float_sha256";

/// `encoder.onnx`: pcm `[B, T, frame]`, state `[B, S]` -> latent `[B, T, D]`, next_state `[B, S]`.
pub(super) struct OrtEncoder {
    graph: Graph,
    frame: usize,
    latent: usize,
    state: usize,
}

impl OrtEncoder {
    /// From the graph of the manifest, or from one with integer products that was `derived` from it.
    pub(super) fn new(environment: &Environment, bytes: &[u8], m: &Manifest, derived: bool) -> Result<Self, String> {
        let (frame, latent, state) = (m.frame_samples, m.latent_dim, m.encoder.state_size);
        let inputs =
            vec![Port { name: "pcm", width: frame, frames: true }, Port { name: "state", width: state, frames: false }];
        let outputs = vec![
            Port { name: "latent", width: latent, frames: true },
            Port { name: "next_state", width: state, frames: false },
        ];
        let graph = Graph::new("encoder", environment, bytes, None, inputs, outputs)?;
        if derived {
            graph.made_from(FLOAT_SHA256, &m.encoder.sha256)?;
        }
        let mut net = Self { graph, frame, latent, state };
        let (mut s, mut z) = (vec![0.0; state], vec![0.0; latent]);
        let mut row = [EncodeRow { pcm: &vec![0.0; frame], state: &mut s, latents: &mut z }];
        net.encode(&mut row, 1).map_err(|e| e.to_string())?;
        Ok(net)
    }
}

impl EncoderNet for OrtEncoder {
    fn state_size(&self) -> usize {
        self.state
    }

    fn encode(&mut self, rows: &mut [EncodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        for r in rows.iter() {
            for (what, got, wanted) in [
                ("pcm", r.pcm.len(), frames * self.frame),
                ("latents", r.latents.len(), frames * self.latent),
                ("state", r.state.len(), self.state),
            ] {
                if got != wanted {
                    return Err(size_error("encoder", what, got, wanted));
                }
            }
        }
        // Both closures look at the rows, one after the other.
        let rows = std::cell::RefCell::new(rows);
        let count = rows.borrow().len();
        self.graph.run(
            count,
            frames,
            |inputs| {
                let rows = rows.borrow();
                fill(&mut inputs[0], rows.iter().map(|r| r.pcm));
                fill(&mut inputs[1], rows.iter().map(|r| &*r.state));
            },
            |outputs| {
                let mut rows = rows.borrow_mut();
                empty(&outputs[0], rows.iter_mut().map(|r| &mut *r.latents));
                empty(&outputs[1], rows.iter_mut().map(|r| &mut *r.state));
            },
        )
    }
}

/// `decoder.onnx`: latent `[B, T, D]`, noise `[B, T, N]`, state `[B, S]` -> pcm `[B, T, frame]`, next_state `[B, S]`.
pub(super) struct OrtDecoder {
    graph: Graph,
    frame: usize,
    latent: usize,
    noise: usize,
    state: usize,
}

impl OrtDecoder {
    /// From the graph of the manifest, or from one with integer products that was `derived` from it.
    pub(super) fn new(environment: &Environment, bytes: &[u8], m: &Manifest, derived: bool) -> Result<Self, String> {
        let (frame, latent, noise, state) = (m.frame_samples, m.latent_dim, m.noise_dim, m.decoder.state_size);
        let inputs = vec![
            Port { name: "latent", width: latent, frames: true },
            Port { name: "noise", width: noise, frames: true },
            Port { name: "state", width: state, frames: false },
        ];
        let outputs = vec![
            Port { name: "pcm", width: frame, frames: true },
            Port { name: "next_state", width: state, frames: false },
        ];
        let graph = Graph::new("decoder", environment, bytes, None, inputs, outputs)?;
        if derived {
            graph.made_from(FLOAT_SHA256, &m.decoder.sha256)?;
        }
        let mut net = Self { graph, frame, latent, noise, state };
        let (mut s, mut y) = (vec![0.0; state], vec![0.0; frame]);
        let mut row = [DecodeRow { latents: &vec![0.0; latent], noise: &vec![0.0; noise], state: &mut s, pcm: &mut y }];
        net.decode(&mut row, 1).map_err(|e| e.to_string())?;
        Ok(net)
    }
}

impl DecoderNet for OrtDecoder {
    fn state_size(&self) -> usize {
        self.state
    }

    fn decode(&mut self, rows: &mut [DecodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        for r in rows.iter() {
            for (what, got, wanted) in [
                ("latents", r.latents.len(), frames * self.latent),
                ("noise", r.noise.len(), frames * self.noise),
                ("pcm", r.pcm.len(), frames * self.frame),
                ("state", r.state.len(), self.state),
            ] {
                if got != wanted {
                    return Err(size_error("decoder", what, got, wanted));
                }
            }
        }
        let rows = std::cell::RefCell::new(rows);
        let count = rows.borrow().len();
        self.graph.run(
            count,
            frames,
            |inputs| {
                let rows = rows.borrow();
                fill(&mut inputs[0], rows.iter().map(|r| r.latents));
                fill(&mut inputs[1], rows.iter().map(|r| r.noise));
                fill(&mut inputs[2], rows.iter().map(|r| &*r.state));
            },
            |outputs| {
                let mut rows = rows.borrow_mut();
                empty(&outputs[0], rows.iter_mut().map(|r| &mut *r.pcm));
                empty(&outputs[1], rows.iter_mut().map(|r| &mut *r.state));
            },
        )
    }
}

/// `gradient.onnx`: latent `[B, T, D]`, noise `[B, T, N]`, state `[B, S]`, pcm_gradient `[B, T, frame]` -> latent_gradient `[B, T, D]`.
/// Its weights lie in the decoder's file.
pub(super) struct OrtGradient {
    graph: Graph,
}

/// Key in the graph's metadata: the decoder that it is the gradient of.
const DECODER_SHA256: &str = "decoder_sha256";

impl OrtGradient {
    pub(super) fn new(
        environment: &Environment,
        bytes: &[u8],
        decoder: &Arc<[u8]>,
        m: &Manifest,
    ) -> Result<Self, String> {
        let inputs = vec![
            Port { name: "latent", width: m.latent_dim, frames: true },
            Port { name: "noise", width: m.noise_dim, frames: true },
            Port { name: "state", width: m.decoder.state_size, frames: false },
            Port { name: "pcm_gradient", width: m.frame_samples, frames: true },
        ];
        let outputs = vec![Port { name: "latent_gradient", width: m.latent_dim, frames: true }];
        let weights = Some((m.decoder.path.as_str(), decoder));
        let graph = Graph::new("gradient", environment, bytes, weights, inputs, outputs)?;
        graph.made_from(DECODER_SHA256, &m.decoder.sha256)?;
        Ok(Self { graph })
    }
}

impl DecoderGradient for OrtGradient {
    fn pull_back(
        &mut self,
        row: &GradientRow<'_>,
        frames: usize,
        latent_slope: &mut [f32],
    ) -> Result<(), NetworkError> {
        let parts = [row.latents, row.noise, row.state, row.pcm_slope];
        for (port, part) in self.graph.inputs.iter().zip(parts) {
            let wanted = if port.frames { frames * port.width } else { port.width };
            if part.len() != wanted {
                return Err(size_error("gradient", port.name, part.len(), wanted));
            }
        }
        if latent_slope.len() != row.latents.len() {
            return Err(size_error("gradient", "latent_gradient", latent_slope.len(), row.latents.len()));
        }
        self.graph.run(
            1,
            frames,
            |inputs| inputs.iter_mut().zip(parts).for_each(|(tensor, part)| fill(tensor, std::iter::once(part))),
            |outputs| empty(&outputs[0], std::iter::once(latent_slope)),
        )
    }
}
