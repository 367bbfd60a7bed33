//! The token model as a source of tokens for the sampling engine.

use super::{Context, LOGIT_STEPS, Mark};
use crate::sampling::TokenSource;

impl TokenSource for Context {
    type Mark = Mark;

    fn logits(&mut self, out: &mut Vec<f32>) {
        let scale = std::f32::consts::LN_2 / LOGIT_STEPS as f32;
        out.clear();
        out.extend(Context::logits(self).iter().map(|&l| l as f32 * scale));
    }

    fn push(&mut self, token: u16) {
        Context::push(self, token);
    }

    fn mark(&self) -> Mark {
        Context::mark(self)
    }

    fn back_to(&mut self, mark: &Mark) {
        let near = Context::back_to(self, mark);
        debug_assert!(near, "the sampling engine goes back a few tokens only");
    }
}
