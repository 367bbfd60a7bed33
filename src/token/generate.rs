//! Continuing a stream.

use std::sync::Arc;

use super::{Context, TokenModel};
use crate::rvq::SimdLevel;
use crate::sampling::{Params, Sampler, TokenSource};
use crate::units::{MAX_STAGES, StageCount};

/// A stream that goes on by sampling, frame after frame.
#[derive(Debug)]
pub struct Generator {
    context: Context,
    sampler: Sampler,
    stages: StageCount,
    logits: Vec<f32>,
}

impl Generator {
    /// Continues after `history`, frames of codes in order (those beyond the model's window have no influence). All new
    /// frames have `stages` stages. The same history, parameters and seed give the same codes.
    pub fn new<'a>(
        model: Arc<TokenModel>,
        history: impl IntoIterator<Item = &'a [u16]>,
        stages: StageCount,
        params: Params,
        seed: u64,
    ) -> Self {
        let mut context = Context::new(model, stages, SimdLevel::detect());
        for frame in history {
            if let Ok(n) = StageCount::new(frame.len().min(usize::from(MAX_STAGES)) as u8) {
                context.set_stages(n);
                frame.iter().take(n.index()).for_each(|&c| context.push(c));
            }
        }
        context.set_stages(stages);
        Self { context, sampler: Sampler::new(params, seed), stages, logits: Vec::new() }
    }

    /// Changes how the next codes are chosen.
    pub fn set_params(&mut self, params: Params) {
        self.sampler.set_params(params);
    }

    /// Appends the codes of the next frame.
    pub fn frame(&mut self, codes: &mut Vec<u16>) {
        for _ in 0..self.stages.index() {
            TokenSource::logits(&mut self.context, &mut self.logits);
            let code = self.sampler.sample(&self.logits);
            self.context.push(code);
            codes.push(code);
        }
    }
}
