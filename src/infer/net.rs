//! The networks as batches of rows with explicit state.

use std::cell::RefCell;
use std::sync::Arc;

use ort::environment::Environment;

use super::frame::FrameNet;
use super::graph::{Axis, Graph, Port, empty, fill};
use super::row::JobRow;
use crate::model::{
    DecodeRow, DecoderGradient, DecoderNet, EncodeRow, EncoderNet, GradientRow, GraphEntry, Manifest, NetworkError,
};

/// A network with integer products, that was made from one of the manifest's.
pub(super) struct Integers {
    /// Name of the graph's file.
    pub(super) file: &'static str,
    /// The graph.
    pub(super) graph: Arc<[u8]>,
    /// The same for calls of one frame, with its weights in that file.
    pub(super) frame: Option<Vec<u8>>,
}

/// Where a network comes from.
pub(super) enum Origin<'a> {
    /// The graph of the manifest.
    Manifest(&'a [u8]),
    /// One made from it.
    Integers(&'a Integers),
}

/// Key in the metadata of a graph with integer products: the graph that it was made from.
const FLOAT_SHA256: &str = "float_sha256";

/// Inputs, `state [B, S]` -> one output, `next_state [B, S]`; and the same for calls of one frame.
struct Net {
    name: &'static str,
    graph: Graph,
    single: Option<FrameNet>,
    state: usize,
    output: usize,
}

impl Net {
    /// `inputs` and `output`: names and widths of what has an axis of frames.
    fn new(
        name: &'static str,
        environment: &Environment,
        origin: Origin<'_>,
        entry: &GraphEntry,
        inputs: &[(&str, usize)],
        output: (&str, usize),
    ) -> Result<Self, String> {
        let state = entry.state_size;
        let frames = |&(name, width): &(&str, usize)| Port::new(name, Axis::Frames, width);
        let data = || inputs.iter().map(frames).collect::<Vec<_>>();
        let ports = |_: &_| {
            let mut taken = data();
            taken.push(Port::new("state", Axis::None, state));
            Ok((taken, vec![frames(&output), Port::new("next_state", Axis::None, state)]))
        };
        let (graph, single) = match origin {
            Origin::Manifest(bytes) => (Graph::new(name, environment, bytes, None, ports)?, None),
            Origin::Integers(Integers { file, graph: bytes, frame }) => {
                let graph = Graph::new(name, environment, bytes, None, ports)?;
                graph.made_from(FLOAT_SHA256, &entry.sha256)?;
                let open =
                    |b: &Vec<u8>| FrameNet::new(name, environment, b, (file, bytes), data(), frames(&output), state);
                (graph, frame.as_ref().map(open).transpose()?)
            }
        };
        Ok(Self { name, graph, single, state, output: output.1 })
    }

    fn check<R: JobRow>(&self, row: &mut R, frames: usize) -> Result<(), NetworkError> {
        // The last input is the state, or a part of it.
        for (port, part) in self.graph.inputs().iter().zip(row.inputs()) {
            size(self.name, &port.name, part.len(), frames * port.width)?;
        }
        size(self.name, "state", row.state().len(), self.state)?;
        size(self.name, "output", row.output().len(), frames * self.output)
    }

    fn run<R: JobRow>(&mut self, rows: &mut [R], frames: usize) -> Result<(), NetworkError> {
        for row in rows.iter_mut() {
            self.check(row, frames)?;
        }
        // Not every graph takes a call that asks for nothing.
        if frames == 0 || rows.is_empty() {
            return Ok(());
        }
        if let (Some(single), 1) = (&mut self.single, frames) {
            return single.run(rows);
        }
        let count = rows.len();
        // Both closures look at the rows, one after the other.
        let rows = RefCell::new(rows);
        self.graph.run(
            count,
            frames,
            |inputs| {
                let rows = rows.borrow();
                let state = inputs.len() - 1;
                for (i, input) in inputs[..state].iter_mut().enumerate() {
                    fill(input, rows.iter().filter_map(|r| r.inputs().nth(i)));
                }
                fill(&mut inputs[state], rows.iter().map(R::state));
            },
            |outputs| {
                let mut rows = rows.borrow_mut();
                empty(&outputs[0], rows.iter_mut().map(R::output));
                empty(&outputs[1], rows.iter_mut().map(R::state_mut));
            },
        )
    }
}

fn size(network: &'static str, what: &str, got: usize, wanted: usize) -> Result<(), NetworkError> {
    if got == wanted {
        return Ok(());
    }
    Err(NetworkError { network, reason: format!("{what} has {got} values, expected {wanted}") })
}

/// `encoder.onnx`: pcm `[B, T, frame]`, state `[B, S]` -> latent `[B, T, D]`, next_state `[B, S]`.
pub(super) struct OrtEncoder(Net);

impl OrtEncoder {
    pub(super) fn new(environment: &Environment, origin: Origin<'_>, m: &Manifest) -> Result<Self, String> {
        let (inputs, output) = ([("pcm", m.frame_samples)], ("latent", m.latent_dim));
        let mut net = Self(Net::new("encoder", environment, origin, &m.encoder, &inputs, output)?);
        let (mut state, mut latents) = (vec![0.0; m.encoder.state_size], vec![0.0; m.latent_dim]);
        let mut row = [EncodeRow { pcm: &vec![0.0; m.frame_samples], state: &mut state, latents: &mut latents }];
        net.encode(&mut row, 1).map_err(|e| e.to_string())?;
        Ok(net)
    }
}

impl EncoderNet for OrtEncoder {
    fn state_size(&self) -> usize {
        self.0.state
    }

    fn encode(&mut self, rows: &mut [EncodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        self.0.run(rows, frames)
    }
}

/// `decoder.onnx`: latent `[B, T, D]`, noise `[B, T, N]`, state `[B, S]` -> pcm `[B, T, frame]`, next_state `[B, S]`.
pub(super) struct OrtDecoder(Net);

impl OrtDecoder {
    pub(super) fn new(environment: &Environment, origin: Origin<'_>, m: &Manifest) -> Result<Self, String> {
        let (inputs, output) = ([("latent", m.latent_dim), ("noise", m.noise_dim)], ("pcm", m.frame_samples));
        let mut net = Self(Net::new("decoder", environment, origin, &m.decoder, &inputs, output)?);
        let (latents, noise) = (vec![0.0; m.latent_dim], vec![0.0; m.noise_dim]);
        let (mut state, mut pcm) = (vec![0.0; m.decoder.state_size], vec![0.0; m.frame_samples]);
        let mut row = [DecodeRow { latents: &latents, noise: &noise, state: &mut state, pcm: &mut pcm }];
        net.decode(&mut row, 1).map_err(|e| e.to_string())?;
        Ok(net)
    }
}

impl DecoderNet for OrtDecoder {
    fn state_size(&self) -> usize {
        self.0.state
    }

    fn decode(&mut self, rows: &mut [DecodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        self.0.run(rows, frames)
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
        let ports = |_: &_| {
            let inputs = vec![
                Port::new("latent", Axis::Frames, m.latent_dim),
                Port::new("noise", Axis::Frames, m.noise_dim),
                Port::new("state", Axis::None, m.decoder.state_size),
                Port::new("pcm_gradient", Axis::Frames, m.frame_samples),
            ];
            Ok((inputs, vec![Port::new("latent_gradient", Axis::Frames, m.latent_dim)]))
        };
        let weights = Some((m.decoder.path.as_str(), decoder));
        let graph = Graph::new("gradient", environment, bytes, weights, ports)?;
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
        for (port, part) in self.graph.inputs().iter().zip(parts) {
            let wanted = if port.axis == Axis::Frames { frames * port.width } else { port.width };
            size("gradient", &port.name, part.len(), wanted)?;
        }
        size("gradient", "latent_gradient", latent_slope.len(), row.latents.len())?;
        self.graph.run(
            1,
            frames,
            |inputs| inputs.iter_mut().zip(parts).for_each(|(tensor, part)| fill(tensor, std::iter::once(part))),
            |outputs| empty(&outputs[0], std::iter::once(latent_slope)),
        )
    }
}
