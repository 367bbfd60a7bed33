//! The networks as the codec asks for them.

use std::sync::Arc;

use super::error::{GraphError, invalid};
use super::graph::Graph;
use super::tensor::Tensor;
use crate::model::{DecodeRow, DecoderNet, EncodeRow, EncoderNet, Manifest, NetworkError};
use crate::rvq::SimdLevel;

/// Frames of a call of the graph: more share the reading of weights, but what is between the layers no longer fits the caches.
const CALL_FRAMES: usize = 6;

/// A graph with a state: `[1, T, width]` for each input, `state [1, S]` -> `[1, T, width]`, `next_state [1, S]`.
#[derive(Debug, Clone)]
struct Net {
    name: &'static str,
    graph: Arc<Graph>,
    inputs: Vec<usize>,
    output: usize,
    state: usize,
    level: SimdLevel,
}

impl Net {
    /// Checks sizes, then runs so many frames.
    fn run(&self, inputs: &[&[f32]], state: &mut [f32], out: &mut [f32], frames: usize) -> Result<(), NetworkError> {
        let size = |what: &str, got: usize, wanted: usize| match got == wanted {
            true => Ok(()),
            false => Err(self.error(&invalid(format!("{what} has {got} values, expected {wanted}")))),
        };
        size("state", state.len(), self.state)?;
        size("output", out.len(), frames * self.output)?;
        for (input, width) in inputs.iter().zip(&self.inputs) {
            size("input", input.len(), frames * width)?;
        }
        for first in (0..frames).step_by(CALL_FRAMES) {
            let frames = CALL_FRAMES.min(frames - first);
            let parts: Vec<_> = inputs
                .iter()
                .zip(&self.inputs)
                .map(|(input, width)| (&input[first * width..(first + frames) * width], *width))
                .collect();
            let out = &mut out[first * self.output..(first + frames) * self.output];
            self.call(&parts, state, out, frames).map_err(|e| self.error(&e))?;
        }
        Ok(())
    }

    fn call(
        &self,
        inputs: &[(&[f32], usize)],
        state: &mut [f32],
        out: &mut [f32],
        frames: usize,
    ) -> Result<(), GraphError> {
        let data = inputs.iter().map(|(part, width)| Tensor::floats_of(vec![1, frames, *width], part.to_vec()));
        let state_before = Tensor::floats_of(vec![1, self.state], state.to_vec());
        let tensors = data.chain([state_before]).collect::<Result<Vec<_>, _>>()?;
        let made = self.graph.run(self.level, tensors)?;
        for (tensor, part) in made.iter().zip([out, state]) {
            let values = tensor.floats()?;
            if values.len() != part.len() {
                return Err(invalid(format!("an output of {:?}", tensor.shape())));
            }
            part.copy_from_slice(values);
        }
        Ok(())
    }

    fn error(&self, e: &GraphError) -> NetworkError {
        NetworkError { network: self.name, reason: e.to_string() }
    }
}

/// The encoder network. Clones share its weights.
#[derive(Debug, Clone)]
pub struct PortableEncoder(Net);

impl PortableEncoder {
    /// The network in the bytes of `encoder.onnx`, tried with a frame of silence.
    ///
    /// # Errors
    /// [`GraphError`] if it is not what the manifest says, or has operators that are not known here.
    pub fn new(bytes: &[u8], manifest: &Manifest, level: SimdLevel) -> Result<Self, GraphError> {
        let net = Net {
            name: "encoder",
            graph: Arc::new(Graph::new(bytes, &["pcm", "state"], &["latent", "next_state"])?),
            inputs: vec![manifest.frame_samples],
            output: manifest.latent_dim,
            state: manifest.encoder.state_size,
            level,
        };
        tried(net).map(Self)
    }
}

impl EncoderNet for PortableEncoder {
    fn state_size(&self) -> usize {
        self.0.state
    }

    fn encode(&mut self, rows: &mut [EncodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        rows.iter_mut().try_for_each(|row| self.0.run(&[row.pcm], row.state, row.latents, frames))
    }
}

/// The decoder network. Clones share its weights.
#[derive(Debug, Clone)]
pub struct PortableDecoder(Net);

impl PortableDecoder {
    /// The network in the bytes of `decoder.onnx`, tried with a frame of silence.
    ///
    /// # Errors
    /// As [`PortableEncoder::new`].
    pub fn new(bytes: &[u8], manifest: &Manifest, level: SimdLevel) -> Result<Self, GraphError> {
        let net = Net {
            name: "decoder",
            graph: Arc::new(Graph::new(bytes, &["latent", "noise", "state"], &["pcm", "next_state"])?),
            inputs: vec![manifest.latent_dim, manifest.noise_dim],
            output: manifest.frame_samples,
            state: manifest.decoder.state_size,
            level,
        };
        tried(net).map(Self)
    }
}

impl DecoderNet for PortableDecoder {
    fn state_size(&self) -> usize {
        self.0.state
    }

    fn decode(&mut self, rows: &mut [DecodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        rows.iter_mut().try_for_each(|row| self.0.run(&[row.latents, row.noise], row.state, row.pcm, frames))
    }
}

/// The network if it runs and gives what it should.
fn tried(net: Net) -> Result<Net, GraphError> {
    let inputs: Vec<Vec<f32>> = net.inputs.iter().map(|&width| vec![0.0; width]).collect();
    let inputs: Vec<(&[f32], usize)> = inputs.iter().map(|input| (&input[..], input.len())).collect();
    net.call(&inputs, &mut vec![0.0; net.state], &mut vec![0.0; net.output], 1)?;
    Ok(net)
}
