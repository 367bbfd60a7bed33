//! Sampling: logits -> choices. It knows no model; whoever has logits may use it.
//!
//! Filters work in one order: repetition control, temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020),
//! typical sampling (Meister et al. 2023), then the draw. All randomness comes from a seed through ChaCha8, and the
//! exponential is libm's, so that a seed gives the same choices on every machine.

pub mod beam;
mod params;
mod sampler;
pub mod speculative;

pub use params::{Params, SamplingError, Stop, StopReason};
pub use sampler::{Distribution, Sampler};

/// Something that gives logits for the next token and takes tokens: a model at a place in a sequence.
pub trait TokenSource {
    /// A place to come back to.
    type Mark;
    /// Logits of the next token, natural logarithms up to a constant, into `out` `[entries]`.
    fn logits(&mut self, out: &mut Vec<f32>);
    /// Takes the next token.
    fn push(&mut self, token: u16);
    /// The place it is at now.
    fn mark(&self) -> Self::Mark;
    /// Goes back to a place it was at not long ago.
    fn back_to(&mut self, mark: &Self::Mark);
}
