//! Entropy coding of bundles: a range coder driven by the token model's integer frequencies. Lossless.
//!
//! [`Encoder`] and [`Decoder`] walk the same [`Context`] over the codes of a stream, so both know the same frequencies.
//! With [`ContextRule::Bundle`] every bundle starts anew and decodes alone; with [`ContextRule::Continuous`] a bundle may
//! build on all before it, back to the last one marked as a restart.

mod range;
mod stream;

pub use stream::{StreamError, StreamReader, StreamWriter};

use std::sync::Arc;

use crate::bitstream::{Bundle, ContextRule};
use crate::rvq::SimdLevel;
use crate::token::{Context, Frequencies, TokenModel};
use crate::units::StageCount;

/// Why a coded payload cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
#[derive(Debug)]
struct Walk {
    context: Context,
    frequencies: Frequencies,
    rule: ContextRule,
    expected: Option<u64>,
}

impl Walk {
    fn new(model: Arc<TokenModel>, rule: ContextRule, level: SimdLevel) -> Self {
        let entries = model.shape().entries;
        Self {
            context: Context::new(model, StageCount::MAX, level),
            frequencies: Frequencies::uniform(entries),
            rule,
            expected: None,
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
        }
        self.context.set_stages(stages);
    }

    fn end(&mut self, first_frame: u64, frames: u8) {
        self.expected = Some(first_frame.saturating_add(u64::from(frames)));
    }
}

/// Codes a stream's bundles.
#[derive(Debug)]
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

    /// Appends the payload of a bundle: coded, or packed where that is no longer. The context restarts if it must
    /// (`bundle` rule, first bundle, a gap in the frame numbers), or if `restart` asks for it.
    ///
    /// Errors: [`EntropyError::Stages`].
    pub fn encode(&mut self, bundle: &Bundle, restart: bool, out: &mut Vec<u8>) -> Result<Coded, EntropyError> {
        let walk = &mut self.walk;
        walk.check(bundle.first_frame, bundle.stages)?;
        let restart = restart || walk.rule == ContextRule::Bundle || walk.expected != Some(bundle.first_frame);
        walk.begin(bundle.stages, restart);
        self.ranges.clear();
        for &code in &bundle.codes {
            walk.context.frequencies(&mut walk.frequencies);
            self.bits += walk.frequencies.bits(code);
            // A code beyond the codebook cannot come from our search; the last entry stands for it in the context.
            self.ranges.push(walk.frequencies.range(code).unwrap_or((0, 1)));
            walk.context.push(code);
        }
        walk.end(bundle.first_frame, bundle.frames);
        let before = out.len();
        range::encode(&self.ranges, out);
        if out.len() - before < Bundle::payload_len(bundle.frames, bundle.stages) {
            return Ok(Coded::Range { restart });
        }
        out.truncate(before);
        bundle.pack_into(out);
        Ok(Coded::Packed { restart })
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

    /// Decodes a payload. The work is bounded by frames times stages, whatever the bytes are.
    ///
    /// Errors: [`EntropyError`]; the decoder then waits for the next restart.
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
        if payload.len() >= Bundle::payload_len(frames, stages) {
            return Err(error("not shorter than the packed payload would be"));
        }
        let restart = restart || walk.rule == ContextRule::Bundle;
        if !restart && walk.expected != Some(first_frame) {
            return Err(EntropyError::NoContext { first_frame, missing: walk.expected.unwrap_or(0) });
        }
        walk.begin(stages, restart);
        let mut reader = range::Reader::new(payload);
        let count = usize::from(frames) * stages.index();
        let mut codes = Vec::with_capacity(count);
        for _ in 0..count {
            walk.context.frequencies(&mut walk.frequencies);
            let code = reader.next(&walk.frequencies).ok_or_else(|| error("no code has such bits"))?;
            walk.context.push(code);
            codes.push(code);
        }
        if !reader.exhausted() {
            return Err(error("bytes are left over"));
        }
        Bundle::new(first_frame, frames, stages, codes).map_err(|_| error("not a bundle"))
    }

    /// Takes a bundle that travelled packed, so that later ones can build on it.
    ///
    /// Errors: [`EntropyError::Stages`].
    pub fn observe(&mut self, bundle: &Bundle, restart: bool) -> Result<(), EntropyError> {
        let walk = &mut self.walk;
        walk.check(bundle.first_frame, bundle.stages)?;
        let restart = restart || walk.rule == ContextRule::Bundle;
        if !restart && walk.expected != Some(bundle.first_frame) {
            return Ok(());
        }
        walk.begin(bundle.stages, restart);
        bundle.codes.iter().for_each(|&c| walk.context.push(c));
        walk.end(bundle.first_frame, bundle.frames);
        Ok(())
    }
}
