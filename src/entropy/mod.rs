//! Entropy coding of bundles: a range coder driven by the token model's integer frequencies. Lossless.
//!
//! [`Encoder`] and [`Decoder`] walk the same [`Context`] over the codes of a stream, so both know the same frequencies.
//! With [`ContextRule::Bundle`] every bundle starts anew and decodes alone; with [`ContextRule::Continuous`] a bundle may
//! build on all before it, back to the last one marked as a restart.

mod depth;
mod range;
mod stream;

pub use stream::{StreamError, StreamReader, StreamWriter};

use std::sync::Arc;

use crate::bitstream::{ABSENT, Bundle, ContextRule};
use crate::rvq::SimdLevel;
use crate::token::{Context, Frequencies, TokenModel};
use crate::units::StageCount;
use depth::Depths;

/// Why a coded payload cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntropyError {
    /// The stages are more than the token model knows.
    #[error("bundle at frame {first_frame}: {got} stages, but the token model has {max}")]
    Stages {
        /// First frame of the bundle.
        first_frame: u64,
        /// Stages of the bundle.
        got: u8,
        /// Stages of the model.
        max: usize,
    },
    /// Frames with stage counts of their own in a stream that has none.
    #[error("bundle at frame {first_frame} is graded, but its stream is not")]
    Graded {
        /// First frame of the bundle.
        first_frame: u64,
    },
    /// A payload that no encoder writes.
    #[error("bundle at frame {first_frame}: coded payload of {bytes} bytes: {reason}")]
    Payload {
        /// First frame of the bundle.
        first_frame: u64,
        /// Its length.
        bytes: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// A bundle that builds on others which are missing.
    #[error("bundle at frame {first_frame} builds on frame {missing}, which is missing")]
    NoContext {
        /// First frame of the bundle.
        first_frame: u64,
        /// The frame that should have come.
        missing: u64,
    },
}

/// What an encoder made of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coded {
    /// A range-coded payload was appended.
    Range {
        /// The bundle decodes without those before it.
        restart: bool,
    },
    /// Coding would not have made it shorter: the packed payload was appended.
    Packed {
        /// The context starts anew before this bundle.
        restart: bool,
    },
}

/// What encoder and decoder share.
#[derive(Debug, Clone)]
struct Walk {
    context: Context,
    frequencies: Frequencies,
    rule: ContextRule,
    expected: Option<u64>,
    /// A silence follows what was before: the context goes on wherever the next bundle begins.
    silence: bool,
    /// Present if the stream's frames have stage counts of their own.
    depths: Option<Depths>,
}

impl Walk {
    fn new(model: Arc<TokenModel>, rule: ContextRule, level: SimdLevel) -> Self {
        let entries = model.shape().entries;
        Self {
            context: Context::new(model, StageCount::MAX, level),
            frequencies: Frequencies::uniform(entries),
            rule,
            expected: None,
            silence: false,
            depths: None,
        }
    }

    fn check(&self, first_frame: u64, stages: StageCount) -> Result<(), EntropyError> {
        let max = self.context.model().shape().stages;
        if stages.index() > max {
            return Err(EntropyError::Stages { first_frame, got: stages.value(), max });
        }
        Ok(())
    }

    fn begin(&mut self, stages: StageCount, restart: bool) {
        if restart {
            self.context.restart();
            self.depths.iter_mut().for_each(Depths::restart);
        }
        self.context.set_stages(stages);
    }

    /// Begins a frame of so many stages; in a graded stream the number is remembered.
    fn frame(&mut self, stages: u8) {
        if let Some(depths) = &mut self.depths {
            depths.push(stages);
            self.context.set_stages(StageCount::new(stages).unwrap_or(StageCount::MAX));
        }
    }

    fn end(&mut self, first_frame: u64, frames: u8) {
        self.expected = Some(first_frame.saturating_add(u64::from(frames)));
        self.silence = false;
    }

    /// Whether a bundle that begins there goes on with the context.
    fn follows(&self, first_frame: u64) -> bool {
        self.expected == Some(first_frame) || (self.silence && self.expected.is_some())
    }
}

/// Codes a stream's bundles.
#[derive(Debug, Clone)]
pub struct Encoder {
    walk: Walk,
    ranges: Vec<(u32, u32)>,
    bits: f64,
}

impl Encoder {
    /// An encoder at the start of a stream.
    pub fn new(model: Arc<TokenModel>, rule: ContextRule, level: SimdLevel) -> Self {
        Self { walk: Walk::new(model, rule, level), ranges: Vec::new(), bits: 0.0 }
    }

    /// Frames have stage counts of their own from here on; call it before the first bundle.
    pub fn graded(mut self) -> Self {
        self.walk.depths = Some(Depths::new());
        self
    }

    /// Appends the payload of a bundle: coded, or packed where that is no longer. The context restarts if it must
    /// (`bundle` rule, first bundle, a gap in the frame numbers), or if `restart` asks for it.
    ///
    /// # Errors
    /// [`EntropyError::Stages`], [`EntropyError::Graded`].
    pub fn encode(&mut self, bundle: &Bundle, restart: bool, out: &mut Vec<u8>) -> Result<Coded, EntropyError> {
        let walk = &mut self.walk;
        walk.check(bundle.first_frame, bundle.stages)?;
        if walk.depths.is_none() && bundle.is_graded() {
            return Err(EntropyError::Graded { first_frame: bundle.first_frame });
        }
        let restart = restart || walk.rule == ContextRule::Bundle || !walk.follows(bundle.first_frame);
        walk.begin(bundle.stages, restart);
        self.ranges.clear();
        for frame in bundle.by_frame() {
            if let Some(depths) = &mut walk.depths {
                let symbol = frame.len() as u16 - 1;
                let frequencies = depths.frequencies(bundle.stages);
                self.bits += frequencies.bits(symbol);
                self.ranges.push(frequencies.range(symbol).unwrap_or((0, 1)));
            }
            walk.frame(frame.len() as u8);
            for &code in frame {
                walk.context.frequencies(&mut walk.frequencies);
                self.bits += walk.frequencies.bits(code);
                // A code beyond the codebook cannot come from our search; the last entry stands for it in the context.
                self.ranges.push(walk.frequencies.range(code).unwrap_or((0, 1)));
                walk.context.push(code);
            }
        }
        walk.end(bundle.first_frame, bundle.frames);
        let before = out.len();
        range::encode(&self.ranges, out);
        let packed = if walk.depths.is_some() {
            let mut packed = Vec::new();
            bundle.pack_graded_into(&mut packed);
            packed.len()
        } else {
            Bundle::payload_len(bundle.frames, bundle.stages)
        };
        if out.len() - before < packed {
            return Ok(Coded::Range { restart });
        }
        out.truncate(before);
        if walk.depths.is_some() {
            bundle.pack_graded_into(out)
        } else {
            bundle.pack_into(out)
        }
        Ok(Coded::Packed { restart })
    }

    /// A silence follows: the context goes on after it.
    pub fn silence(&mut self) {
        self.walk.silence = true;
    }

    /// Bits that all codes so far cost by the model, without the rounding of payloads to bytes.
    pub fn model_bits(&self) -> f64 {
        self.bits
    }
}

/// Decodes a stream's bundles.
#[derive(Debug)]
pub struct Decoder {
    walk: Walk,
}

impl Decoder {
    /// A decoder before the first bundle; it may join a stream at any restart.
    pub fn new(model: Arc<TokenModel>, rule: ContextRule, level: SimdLevel) -> Self {
        Self { walk: Walk::new(model, rule, level) }
    }

    /// As [`Encoder::graded`].
    pub fn graded(mut self) -> Self {
        self.walk.depths = Some(Depths::new());
        self
    }

    /// Decodes a payload. The work is bounded by frames times stages, whatever the bytes are.
    ///
    /// # Errors
    /// [`EntropyError`]; the decoder then waits for the next restart.
    pub fn decode(
        &mut self,
        first_frame: u64,
        frames: u8,
        stages: StageCount,
        restart: bool,
        payload: &[u8],
    ) -> Result<Bundle, EntropyError> {
        let made = self.codes(first_frame, frames, stages, restart, payload);
        match &made {
            Ok(_) => self.walk.end(first_frame, frames),
            Err(_) => self.walk.expected = None,
        }
        made
    }

    fn codes(
        &mut self,
        first_frame: u64,
        frames: u8,
        stages: StageCount,
        restart: bool,
        payload: &[u8],
    ) -> Result<Bundle, EntropyError> {
        let walk = &mut self.walk;
        let error = |reason| EntropyError::Payload { first_frame, bytes: payload.len(), reason };
        walk.check(first_frame, stages)?;
        let most = match walk.depths {
            Some(_) => Bundle::graded_len(frames, stages),
            None => Bundle::payload_len(frames, stages),
        };
        if payload.len() >= most {
            return Err(error("not shorter than the packed payload would be"));
        }
        let restart = restart || walk.rule == ContextRule::Bundle;
        if !restart && !walk.follows(first_frame) {
            return Err(EntropyError::NoContext { first_frame, missing: walk.expected.unwrap_or(0) });
        }
        walk.begin(stages, restart);
        let mut reader = range::RangeReader::new(payload);
        let count = usize::from(frames) * stages.index();
        let mut codes = Vec::with_capacity(count);
        let damaged = || error("no code has such bits");
        for frame in 1..=usize::from(frames) {
            let depth = match &mut walk.depths {
                Some(depths) => reader.next(depths.frequencies(stages)).ok_or_else(damaged)? as u8 + 1,
                None => stages.value(),
            };
            walk.frame(depth);
            for _ in 0..depth {
                walk.context.frequencies(&mut walk.frequencies);
                let code = reader.next(&walk.frequencies).ok_or_else(damaged)?;
                walk.context.push(code);
                codes.push(code);
            }
            codes.resize(frame * stages.index(), ABSENT);
        }
        if !reader.exhausted() {
            return Err(error("bytes are left over"));
        }
        Bundle::new(first_frame, frames, stages, codes).map_err(|_| error("not a bundle"))
    }

    /// As [`Encoder::silence`].
    pub fn silence(&mut self) {
        self.walk.silence = true;
    }

    /// Takes a bundle that travelled packed, so that later ones can build on it.
    ///
    /// # Errors
    /// [`EntropyError::Stages`].
    pub fn observe(&mut self, bundle: &Bundle, restart: bool) -> Result<(), EntropyError> {
        let walk = &mut self.walk;
        walk.check(bundle.first_frame, bundle.stages)?;
        let restart = restart || walk.rule == ContextRule::Bundle;
        if !restart && !walk.follows(bundle.first_frame) {
            return Ok(());
        }
        walk.begin(bundle.stages, restart);
        for frame in bundle.by_frame() {
            walk.frame(frame.len() as u8);
            frame.iter().for_each(|&c| walk.context.push(c));
        }
        walk.end(bundle.first_frame, bundle.frames);
        Ok(())
    }
}
