//! One stream's position in the token model: the codes so far, as keys and values of a bounded window.

use std::sync::Arc;

use super::linear::Linear;
use super::math::{Frequencies, clamp, norm};
use super::simd::{Attention, attention, linear, softmax};
use super::weights::TokenModel;
use crate::rvq::SimdLevel;
use crate::units::StageCount;

/// Frames beyond the window that are kept, so that a few can be taken back.
const SLACK: usize = 16;

/// Limit of queries and keys: their products then fit 32 bits.
const QUERY: i32 = 4095;

/// Where a context stands; see [`Context::mark`].
#[derive(Debug, Clone)]
pub struct Mark {
    frames: usize,
    stage: usize,
    hidden: Option<Vec<i16>>,
    sums: Vec<i32>,
    input: Vec<i32>,
}

/// The model's memory of a stream. Memory is bounded: layers x (window + 16) x width x 4 bytes.
#[derive(Debug, Clone)]
pub struct Context {
    model: Arc<TokenModel>,
    level: SimdLevel,
    stages: usize,
    /// Keys and values by layer, `[ring][width]`.
    keys: Vec<Vec<i16>>,
    values: Vec<Vec<i16>>,
    /// Frames in the memory since the start, including the start itself.
    frames: usize,
    /// Input of the transformer for the frame that is being coded.
    input: Vec<i32>,
    /// The transformer's output for this frame, then room for the partial sum; None until asked for.
    ready: bool,
    hidden: Vec<i16>,
    /// Sums of entries of this frame: all so far, after the first, after the fourth.
    sums: Vec<i32>,
    stage: usize,
    scratch: Scratch,
}

#[derive(Debug, Clone, Default)]
struct Scratch {
    activations: Vec<i16>,
    mixed: Vec<i16>,
    values: Vec<i32>,
    more: Vec<i32>,
    rows: Vec<usize>,
    scores: Vec<i32>,
    logits: Vec<i32>,
    weights: Vec<u32>,
}

fn apply<'a>(level: SimdLevel, layer: &Linear, x: &[i16], out: &'a mut Vec<i32>) -> &'a mut [i32] {
    out.resize(layer.bias.len(), 0);
    linear(level, layer, x, out);
    out
}

impl Context {
    /// A context before the first frame of a stream of `stages` stages.
    pub fn new(model: Arc<TokenModel>, stages: StageCount, level: SimdLevel) -> Self {
        let s = &model.shape;
        let ring = (s.window + SLACK) * s.width;
        Self {
            level,
            stages: stages.index().min(s.stages),
            keys: vec![vec![0; ring]; s.layers],
            values: vec![vec![0; ring]; s.layers],
            frames: 0,
            input: model.start.clone(),
            ready: false,
            hidden: vec![0; s.width + s.latent],
            sums: vec![0; 3 * s.latent],
            stage: 0,
            scratch: Scratch::default(),
            model,
        }
    }

    /// Forgets everything: the next frame is a stream's first.
    pub fn restart(&mut self) {
        self.frames = 0;
        self.input.clone_from(&self.model.start);
        self.begin();
    }

    /// Sets the stages of the frames from here on; only between frames.
    pub fn set_stages(&mut self, stages: StageCount) {
        debug_assert_eq!(self.stage, 0, "in the middle of a frame");
        self.stages = stages.index().min(self.model.shape.stages);
    }

    /// The model.
    pub fn model(&self) -> &Arc<TokenModel> {
        &self.model
    }

    /// Stage whose code comes next.
    pub fn stage(&self) -> usize {
        self.stage
    }

    /// Frames remembered since the last start.
    pub fn frames(&self) -> usize {
        self.frames.saturating_sub(usize::from(self.ready))
    }

    /// Logits of the next code, `[entries]`, in 1/1024 of a factor of two.
    pub fn logits(&mut self) -> &[i32] {
        if !self.ready {
            self.transform();
        }
        let model = Arc::clone(&self.model);
        let (s, depth, level) = (&model.shape, &model.depth[self.stage], self.level);
        for (h, &v) in self.hidden[s.width..].iter_mut().zip(&self.sums) {
            *h = clamp(v);
        }
        let t = &mut self.scratch;
        let up = apply(level, &depth.up, &self.hidden, &mut t.values);
        t.activations.clear();
        t.activations.extend(up.iter().map(|&v| model.tables.gelu(clamp(v))));
        apply(level, &depth.down, &t.activations, &mut t.values);
        apply(level, &depth.skip, &self.hidden, &mut t.more);
        t.activations.clear();
        t.activations.extend(t.values.iter().zip(&t.more).map(|(&a, &b)| clamp(a.wrapping_add(b))));
        apply(level, &depth.table, &t.activations, &mut t.logits)
    }

    /// Frequencies of the next code.
    pub fn frequencies(&mut self, out: &mut Frequencies) {
        self.logits();
        let Scratch { logits, weights, .. } = &mut self.scratch;
        let max = logits.iter().copied().max().unwrap_or(0);
        weights.resize(logits.len(), 0);
        softmax(self.level, &self.model.tables, logits, max, weights);
        out.set(weights, logits.iter().position(|&l| l == max).unwrap_or(0));
    }

    /// Takes the next code. One beyond the codebook counts as the last entry; callers check codes before.
    pub fn push(&mut self, code: u16) {
        if !self.ready {
            self.transform();
        }
        let s = &self.model.shape;
        let entry = self.stage * s.entries + usize::from(code).min(s.entries - 1);
        let book = &self.model.books[entry * s.latent..(entry + 1) * s.latent];
        let (all, marks) = self.sums.split_at_mut(s.latent);
        for (sum, &v) in all.iter_mut().zip(book) {
            *sum += v;
        }
        self.stage += 1;
        for (after, mark) in [1, 4].into_iter().zip(marks.chunks_exact_mut(s.latent)) {
            if self.stage <= after {
                mark.copy_from_slice(all);
            }
        }
        if self.stage == self.stages {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        let model = Arc::clone(&self.model);
        let s = &model.shape;
        let t = &mut self.scratch;
        t.activations.clear();
        t.activations.extend(self.sums.iter().map(|&v| clamp(v)));
        apply(self.level, &model.inp, &t.activations, &mut self.input);
        let count = &model.count[(self.stages - 1) * s.width..self.stages * s.width];
        for (x, &c) in self.input.iter_mut().zip(count) {
            *x = x.wrapping_add(c);
        }
        self.begin();
    }

    fn begin(&mut self) {
        self.ready = false;
        self.stage = 0;
        self.sums.fill(0);
    }

    /// One step of the transformer: the frame before enters the memory, the prediction of this frame comes out.
    fn transform(&mut self) {
        let model = Arc::clone(&self.model);
        let (s, level) = (&model.shape, self.level);
        let ring = s.window + SLACK;
        let at = self.frames % ring;
        let t = &mut self.scratch;
        t.rows.clear();
        t.rows.extend((0..s.window.min(self.frames + 1)).map(|back| (at + ring - back) % ring));
        let how = Attention { width: s.width, score: model.score, slopes: &model.slopes, tables: &model.tables };
        let mut x = self.input.clone();
        for (layer, (keys, values)) in model.layers.iter().zip(self.keys.iter_mut().zip(&mut self.values)) {
            t.activations.resize(s.width, 0);
            norm(&x, &mut t.activations);
            let qkv = apply(level, &layer.qkv, &t.activations, &mut t.values);
            let query = |v: &i32| (*v).clamp(-QUERY, QUERY) as i16;
            let place = at * s.width..(at + 1) * s.width;
            for (k, v) in keys[place.clone()].iter_mut().zip(&qkv[s.width..]) {
                *k = query(v);
            }
            for (o, v) in values[place].iter_mut().zip(&qkv[2 * s.width..]) {
                *o = clamp(*v);
            }
            t.activations.clear();
            t.activations.extend(qkv[..s.width].iter().map(query));
            t.mixed.resize(s.width, 0);
            let memory = (keys.as_slice(), values.as_slice());
            attention(level, how, &t.activations, memory, &t.rows, &mut t.scores, &mut t.mixed);
            add(&mut x, apply(level, &layer.mix, &t.mixed, &mut t.values));
            norm(&x, &mut t.activations);
            let up = apply(level, &layer.up, &t.activations, &mut t.values);
            t.mixed.clear();
            t.mixed.extend(up.iter().map(|&v| model.tables.gelu(clamp(v))));
            add(&mut x, apply(level, &layer.down, &t.mixed, &mut t.values));
        }
        norm(&x, &mut self.hidden[..s.width]);
        self.frames += 1;
        self.ready = true;
    }

    /// Where the context stands now, to come back to with [`Context::back_to`].
    pub fn mark(&self) -> Mark {
        Mark {
            frames: self.frames,
            stage: self.stage,
            hidden: self.ready.then(|| self.hidden.clone()),
            sums: self.sums.clone(),
            input: self.input.clone(),
        }
    }

    /// Takes back everything since `mark`, a mark of this context at most 16 frames old; false if it is older.
    pub fn back_to(&mut self, mark: &Mark) -> bool {
        if self.frames < mark.frames || self.frames - mark.frames > SLACK {
            return false;
        }
        self.frames = mark.frames;
        self.stage = mark.stage;
        self.ready = mark.hidden.is_some();
        if let Some(hidden) = &mark.hidden {
            self.hidden.clone_from(hidden);
        }
        self.sums.clone_from(&mark.sums);
        self.input.clone_from(&mark.input);
        true
    }
}

fn add(x: &mut [i32], y: &[i32]) {
    for (a, &b) in x.iter_mut().zip(y) {
        *a = a.wrapping_add(b);
    }
}
