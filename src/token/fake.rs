//! A small token model with pseudo-random weights: as exact as a real one, and no file need be present.

use std::sync::Arc;

use super::linear::Linear;
use super::math::Tables;
use super::weights::{Depth, Layer, TokenModel, TokenShape};
use crate::rvq::Codebooks;

struct Random(u64);

impl Random {
    /// A number of -limit..=limit.
    fn next(&mut self, limit: i32) -> i32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as i32).rem_euclid(2 * limit + 1) - limit
    }

    fn linear(&mut self, inputs: usize, outputs: usize, factor: i32) -> Linear {
        let rows: Vec<i8> = (0..inputs * outputs).map(|_| self.next(127) as i8).collect();
        let bias = (0..outputs).map(|_| self.next(500)).collect();
        Linear::new(inputs, &rows, vec![factor; outputs], bias)
    }
}

/// A token model for these codebooks; another seed is another model.
pub fn model(codebooks: &Codebooks, seed: u64) -> Arc<TokenModel> {
    let shape = TokenShape {
        width: 32,
        layers: 1,
        heads: 2,
        hidden: 32,
        window: 16,
        depth_hidden: 16,
        rank: 16,
        late: 8,
        late_hidden: 8,
        late_rank: 8,
        stages: codebooks.stages(),
        entries: codebooks.entries(),
        latent: codebooks.dim(),
    };
    let mut r = Random(seed);
    let n = shape.width + shape.latent;
    let gelu = (-1024..1024).map(|i: i32| (i.max(0) * 8) as i16).collect();
    let exp2 = (0..1024).map(|i| ((f64::from(i) / 1024.0).exp2() * 1_048_576.0).round() as i32).collect();
    let layer = Layer {
        qkv: r.linear(shape.width, 3 * shape.width, 20_000),
        mix: r.linear(shape.width, shape.width, 300_000),
        up: r.linear(shape.width, shape.hidden, 20_000),
        down: r.linear(shape.hidden, shape.width, 300_000),
    };
    let depth = (0..shape.stages).map(|k| shape.depth_size(k)).map(|(hidden, rank)| Depth {
        up: r.linear(n, hidden, 20_000),
        down: r.linear(hidden, rank, 20_000),
        skip: r.linear(n, rank, 20_000),
        table: r.linear(rank, shape.entries, 20_000),
    });
    let depth = depth.collect();
    let books = codebooks.values().iter().map(|v| (v * 1024.0).round_ties_even() as i32).collect();
    TokenModel::from_parts(
        seed.to_le_bytes(),
        shape,
        Tables { gelu, exp2 },
        vec![layer],
        depth,
        books,
        |inputs, outputs| r.linear(inputs, outputs, 300_000),
    )
}
