//! Coded bundles of a live session: agreed on in the handshake, checked bundle by bundle.

use std::sync::Arc;

use super::Wire;
use crate::bitstream::{Bundle, CodedBundle, ContextRule, Form, PackedBundle, crc16};
use crate::entropy::{Coded, Decoder, Encoder, EntropyError};
use crate::rvq::SimdLevel;
use crate::token::TokenModel;

/// Names a token model, and proves that this machine computes with it what the peer's does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenTag {
    /// First 8 bytes of the SHA-256 of the model's file.
    pub id: [u8; 8],
    /// First 8 bytes of the SHA-256 of the cumulative frequencies of its golden codes, computed here.
    pub check: [u8; 8],
}

impl TokenTag {
    /// The tag of a model on this machine.
    pub fn of(model: &Arc<TokenModel>) -> Self {
        Self { id: model.id(), check: model.fingerprint(SimdLevel::detect()) }
    }
}

/// Why a coded bundle cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodingError {
    /// The coder.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// A payload too short, or packed codes that do not fit.
    #[error("bundle at frame {first_frame}: coded payload of {bytes} bytes does not fit")]
    Payload {
        /// First frame of the bundle.
        first_frame: u64,
        /// Its length.
        bytes: usize,
    },
    /// The peers no longer agree on the codes.
    #[error("bundle at frame {first_frame}: check sum of the codes is {got:04x}, computed {computed:04x}")]
    Check {
        /// First frame of the bundle.
        first_frame: u64,
        /// As sent.
        got: u16,
        /// Of the codes decoded here.
        computed: u16,
    },
}

/// Frames between two check sums of thin sessions: the transport has its own, so that ours only has to notice that the peers' coders
/// no longer agree.
const CHECK_FRAMES: u32 = 50;

/// Codes what one direction of a session sends. The context is continuous, as the transport is reliable.
#[derive(Debug, Clone)]
pub struct SessionEncoder {
    coder: Encoder,
    /// Frames since the last check sum; None if every bundle has one.
    unchecked: Option<u32>,
    graded: bool,
}

impl SessionEncoder {
    /// At the start of a session.
    pub fn new(model: Arc<TokenModel>) -> Self {
        let coder = Encoder::new(model, ContextRule::Continuous, SimdLevel::detect());
        Self { coder, unchecked: None, graded: false }
    }

    /// For a session that has agreed on these forms: of thin bundles only one a second is checked, and frames may be graded.
    #[must_use]
    pub fn on(self, wire: Wire) -> Self {
        let coder = if wire.is_graded_when_coded() { self.coder.graded() } else { self.coder };
        Self { coder, unchecked: wire.thin.then_some(CHECK_FRAMES), graded: wire.is_graded_when_coded() }
    }

    /// Frames are left out, as after a description of silence: the context goes on after them.
    pub fn silence(&mut self) {
        self.coder.silence();
    }

    /// Codes a bundle, and says whether its payload ends with the CRC-16 of the packed codes, low byte first.
    ///
    /// # Errors
    /// [`CodingError`].
    pub fn encode(&mut self, bundle: &PackedBundle) -> Result<(CodedBundle, bool), CodingError> {
        let codes = unpacked(bundle)?;
        let mut payload = Vec::with_capacity(bundle.payload.len() + 2);
        let coded = self.coder.encode(&codes, false, &mut payload)?;
        let checked = self.unchecked.is_none_or(|frames| frames >= CHECK_FRAMES);
        if checked {
            payload.extend_from_slice(&crc16(&bundle.payload).to_le_bytes());
        }
        if let Some(frames) = &mut self.unchecked {
            *frames = if checked { 0 } else { *frames } + u32::from(bundle.frames);
        }
        let (Coded::Range { restart } | Coded::Packed { restart }) = coded;
        let bundle = CodedBundle {
            first_frame: bundle.first_frame,
            frames: bundle.frames,
            stages: bundle.stages,
            graded: self.graded,
            restart,
            packed: matches!(coded, Coded::Packed { .. }),
            payload,
        };
        Ok((bundle, checked))
    }
}

fn unpacked(bundle: &PackedBundle) -> Result<Bundle, CodingError> {
    bundle.unpack().map_err(|_| CodingError::Payload { first_frame: bundle.first_frame, bytes: bundle.payload.len() })
}

/// Decodes what one direction of a session receives.
#[derive(Debug)]
pub struct SessionDecoder(Decoder);

impl SessionDecoder {
    /// At the start of a session.
    pub fn new(model: Arc<TokenModel>) -> Self {
        Self(Decoder::new(model, ContextRule::Continuous, SimdLevel::detect()))
    }

    /// As [`SessionEncoder::on`].
    #[must_use]
    pub fn on(self, wire: Wire) -> Self {
        if wire.is_graded_when_coded() { Self(self.0.graded()) } else { self }
    }

    /// As [`SessionEncoder::silence`].
    pub fn silence(&mut self) {
        self.0.silence();
    }

    /// Decodes a bundle and checks its codes if it is `checked`.
    ///
    /// # Errors
    /// [`CodingError`]; the session cannot go on then.
    pub fn decode(&mut self, bundle: &CodedBundle, checked: bool) -> Result<PackedBundle, CodingError> {
        let first_frame = bundle.first_frame;
        let error = || CodingError::Payload { first_frame, bytes: bundle.payload.len() };
        let (payload, sum) = match bundle.payload.split_last_chunk::<2>() {
            _ if !checked => (bundle.payload.as_slice(), None),
            Some((payload, sum)) => (payload, Some(*sum)),
            None => return Err(error()),
        };
        let codes = if bundle.packed {
            let (form, payload) = (if bundle.graded { Form::Graded } else { Form::Plain }, payload.to_vec());
            let packed = PackedBundle { first_frame, frames: bundle.frames, stages: bundle.stages, form, payload };
            let codes = packed.unpack().map_err(|_| error())?;
            self.0.observe(&codes, bundle.restart)?;
            codes
        } else {
            self.0.decode(first_frame, bundle.frames, bundle.stages, bundle.restart, payload)?
        };
        let packed = PackedBundle::pack(&codes);
        let computed = crc16(&packed.payload);
        match sum.map(u16::from_le_bytes).filter(|&got| got != computed) {
            Some(got) => Err(CodingError::Check { first_frame, got, computed }),
            None => Ok(packed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::ABSENT;
    use crate::fake;
    use crate::units::StageCount;

    #[test]
    fn peers_with_one_model_agree_and_others_notice() {
        let books = fake::codebooks(16, 7);
        let (one, two) = (crate::token::fake::model(&books, 1), crate::token::fake::model(&books, 2));
        assert_eq!(TokenTag::of(&one), TokenTag::of(&Arc::clone(&one)));
        assert_ne!(TokenTag::of(&one).check, TokenTag::of(&two).check);
        let mut encoder = SessionEncoder::new(Arc::clone(&one));
        let (mut same, mut other) = (SessionDecoder::new(one), SessionDecoder::new(two));
        let stages = StageCount::new(4).unwrap();
        let mut wrong = 0;
        for i in 0..20u64 {
            let codes = (0..20).map(|k| (i * 37 + k * 11) as u16 % 256).collect();
            let bundle = PackedBundle::pack(&Bundle::new(5 * i, 5, stages, codes).unwrap());
            let (coded, checked) = encoder.encode(&bundle).unwrap();
            assert!(checked);
            assert_eq!(coded.restart, i == 0);
            assert_eq!(same.decode(&coded, true).unwrap(), bundle);
            wrong += usize::from(other.decode(&coded, true).is_err());
            let mut cut = coded.clone();
            cut.payload.truncate(1);
            assert!(matches!(SessionDecoder::new(two_of(&books)).decode(&cut, true), Err(CodingError::Payload { .. })));
        }
        assert!(wrong >= 19, "{wrong} of 20 bundles were noticed");
    }

    #[test]
    fn thin_sessions_are_checked_once_a_second() {
        let model = crate::token::fake::model(&fake::codebooks(16, 7), 1);
        let mut encoder = SessionEncoder::new(Arc::clone(&model)).on(Wire::ALL);
        let mut decoder = SessionDecoder::new(model).on(Wire::ALL);
        let stages = StageCount::new(4).unwrap();
        let mut checked = Vec::new();
        for i in 0..30u64 {
            let mut codes: Vec<u16> = (0..20).map(|k| (i * 37 + k * 11) as u16 % 256).collect();
            // Every other bundle is graded.
            codes[2..4].fill(if i % 2 == 0 { ABSENT } else { 7 });
            let bundle = PackedBundle::pack(&Bundle::new(5 * i, 5, stages, codes).unwrap());
            let (coded, check) = encoder.encode(&bundle).unwrap();
            assert_eq!(decoder.decode(&coded, check).unwrap(), bundle);
            if check {
                checked.push(i);
            }
        }
        assert_eq!(checked, [0, 10, 20]);
    }

    fn two_of(books: &crate::rvq::Codebooks) -> Arc<TokenModel> {
        crate::token::fake::model(books, 2)
    }
}
