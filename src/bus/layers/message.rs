//! A layer of a bundle as a message, and what its bytes may be.

use crate::bitstream::{BitstreamError, Bundle, Form};
use crate::profile::Profile;
use crate::session::PackedBundle;
use crate::units::{MessageRate, ModelId, OutOfRange, StageCount};

/// Layers of a stream. A layer is a subject of its own, so that a daemon fetches only what its listeners want.
pub const LAYERS: usize = 4;

/// Stages before which each layer ends: 1 to 3, 4 to 6, 7 to 12, and the rest. The steps are 1.5, 3 and 6 kbit/s. A
/// message costs about 110 bytes besides its codes, so a layer for every stage would cost ten times its codes, and a
/// single layer would make thin listeners fetch everything.
pub(super) const ENDS: [usize; LAYERS] = [3, 6, 12, usize::MAX];

/// Version of the message.
const VERSION: u8 = 1;

/// Kind of a graded layer of a stream whose messages have one size: its rate in bit/s and the length of its payload (2 bytes each) come
/// before the payload, and bytes without a meaning after it.
const PADDED: u8 = 6;

/// Bytes before the codes.
pub const HEAD: usize = 45;

/// Layers that hold the first `stages` stages.
pub fn layers_of(stages: StageCount) -> usize {
    ENDS.iter().take_while(|&&end| end < stages.index()).count() + 1
}

/// The stages of a layer, out of so many.
pub(super) fn range(layer: usize, stages: usize) -> std::ops::Range<usize> {
    let start = if layer == 0 { 0 } else { ENDS[layer - 1] };
    start.min(stages)..ENDS[layer].min(stages)
}

/// Who publishes a stream: of two, the earlier one is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Microseconds since 1970 on the publisher's clock when it began.
    pub started: u64,
    /// Tells two that began in the same microsecond apart.
    pub id: u64,
}

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A layer of a bundle.
    Codes,
    /// A layer of a bundle whose frames have stage counts of their own.
    Graded,
    /// A description of silence, whole.
    Background,
    /// The publisher ended the stream; the sequence is the number of its bundles.
    End,
    /// The publisher gave way to an earlier one: the stream goes on without it.
    Yield,
    /// The publisher says that the stream is its own.
    Claim,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMessage {
    /// What it is about.
    pub kind: Kind,
    /// Who sent it.
    pub epoch: Epoch,
    /// Model of the codes.
    pub model: ModelId,
    /// Number of the bundle since the publisher began.
    pub sequence: u64,
    /// Number of its first frame.
    pub first_frame: u64,
    /// Its frames; 0 unless this is a layer.
    pub frames: u8,
    /// Stages of the whole bundle; 0 unless this is a layer.
    pub stages: u8,
    /// Which layer, from 0.
    pub layer: u8,
    /// Indices of the layer's stages, `[frames][stages of the layer]`, ten bits each; graded, those that a frame has, after the number
    /// of all its stages in five bits.
    pub payload: Vec<u8>,
    /// The stream's messages have one size; None: they are as long as they get.
    pub constant: Option<MessageRate>,
}

/// Why a message was thrown away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Too short, or of another version or kind.
    #[error("not a message of this version: {0}")]
    Head(String),
    /// Numbers out of range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// Codes that do not fit the numbers.
    #[error(transparent)]
    Codes(#[from] BitstreamError),
    /// Frame numbers that do not follow from the bundles before.
    #[error("frame {got}, but {next} is the next one")]
    Frame {
        /// The bundle's first frame.
        got: u64,
        /// The frame that was expected.
        next: u64,
    },
    /// A bundle from so far ahead that the number cannot be true.
    #[error("bundle {got}, but {next} is the next one")]
    Jump {
        /// Its number.
        got: u64,
        /// The number that was expected.
        next: u64,
    },
    /// Layers of one bundle that contradict each other.
    #[error("bundle {0}: its layers contradict each other")]
    Differs(u64),
    /// A code that the model does not have.
    #[error("bundle {sequence}: code {code} out of range, allowed 0 to {}", entries - 1)]
    Code {
        /// The bundle.
        sequence: u64,
        /// The code.
        code: u16,
        /// Entries of a codebook.
        entries: usize,
    },
}

impl LayerMessage {
    /// A message without codes.
    pub fn word(kind: Kind, epoch: Epoch, model: ModelId, sequence: u64) -> Self {
        let (payload, constant) = (Vec::new(), None);
        Self { kind, epoch, model, sequence, first_frame: 0, frames: 0, stages: 0, layer: 0, payload, constant }
    }

    /// The bytes of the message, as many as its payload needs.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_for(self.frames)
    }

    /// The bytes of the message; of a stream of one size, as many as any layer of this number and so many frames takes.
    pub fn encode_for(&self, frames: u8) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.payload.len());
        let kind = match self.kind {
            Kind::Codes => 0,
            Kind::End => 1,
            Kind::Yield => 2,
            Kind::Claim => 3,
            Kind::Graded if self.constant.is_some() => PADDED,
            Kind::Graded => 4,
            Kind::Background => 5,
        };
        out.extend([VERSION, kind, self.layer, self.frames, self.stages]);
        out.extend(self.model.0);
        for number in [self.epoch.started, self.epoch.id, self.sequence, self.first_frame] {
            out.extend(number.to_be_bytes());
        }
        let Some(rate) = self.constant else {
            out.extend(&self.payload);
            return out;
        };
        out.extend((rate.bps() as u16).to_be_bytes());
        out.extend((self.payload.len() as u16).to_be_bytes());
        out.extend(&self.payload);
        let width = range(usize::from(self.layer), rate.most_stages().index()).len();
        let most = HEAD + 4 + Bundle::layer_len(frames.max(self.frames), width);
        out.resize(out.len().max(most), 0);
        out
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`MessageError`] for anything that [`LayerMessage::encode`] would not write.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let Some((head, payload)) = bytes.split_first_chunk::<HEAD>() else {
            return Err(MessageError::Head(format!("{} bytes", bytes.len())));
        };
        let [version, kind, layer, frames, stages, rest @ ..] = *head;
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&rest[at..at + 8]);
            eight
        };
        if version != VERSION {
            return Err(MessageError::Head(format!("version {version}")));
        }
        let (constant, payload) = if kind == PADDED { padded(payload)? } else { (None, payload) };
        let kind = match kind {
            PADDED => Kind::Graded,
            0 => Kind::Codes,
            1 => Kind::End,
            2 => Kind::Yield,
            3 => Kind::Claim,
            4 => Kind::Graded,
            5 => Kind::Background,
            _ => return Err(MessageError::Head(format!("kind {kind}"))),
        };
        let [started, id, sequence, first_frame] = [8, 16, 24, 32].map(|at| u64::from_be_bytes(number(at)));
        let message = Self {
            kind,
            epoch: Epoch { started, id },
            model: ModelId(number(0)),
            sequence,
            first_frame,
            frames,
            stages,
            layer,
            payload: payload.to_vec(),
            constant,
        };
        if !message.has_codes() {
            let bare = Self::word(kind, message.epoch, message.model, sequence);
            let same = bare == Self { first_frame: 0, ..message };
            return if same {
                Ok(bare)
            } else {
                Err(MessageError::Head("codes in a message without codes".to_owned()))
            };
        }
        message.codes()?;
        Ok(message)
    }

    pub(super) fn has_codes(&self) -> bool {
        matches!(self.kind, Kind::Codes | Kind::Graded | Kind::Background)
    }

    /// The layer's indices, `[frames][stages of the layer]`; [`crate::bitstream::ABSENT`] for stages that a frame does not have.
    pub(super) fn codes(&self) -> Result<Vec<u16>, MessageError> {
        let stages = StageCount::new(self.stages)?;
        let layer = usize::from(self.layer);
        if layer >= layers_of(stages) {
            return Err(MessageError::Head(format!("layer {layer} of a bundle of {stages} stages")));
        }
        if self.kind == Kind::Background {
            if layer != 0 || !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&self.frames) {
                return Err(MessageError::Head(format!("a background in layer {layer}, of {} frames", self.frames)));
            }
            return Ok(Bundle::unpack(self.first_frame, 1, stages, &self.payload)?.codes);
        }
        let range = range(layer, stages.index());
        if self.kind == Kind::Graded {
            return Ok(Bundle::unpack_layer(self.first_frame, self.frames, stages, range, &self.payload)?);
        }
        let width = StageCount::new(u8::try_from(range.len()).unwrap_or(u8::MAX))?;
        Ok(Bundle::unpack(self.first_frame, self.frames, width, &self.payload)?.codes)
    }
}

/// Cuts a bundle into its layers.
///
/// # Errors
/// [`MessageError`] for a payload that does not fit.
pub fn split(
    bundle: &PackedBundle,
    epoch: Epoch,
    model: ModelId,
    sequence: u64,
) -> Result<Vec<LayerMessage>, MessageError> {
    if bundle.is_background() {
        let (kind, first_frame, payload) = (Kind::Background, bundle.first_frame, bundle.payload.clone());
        let (frames, stages) = (bundle.frames, bundle.stages.value());
        let constant = None;
        let message =
            LayerMessage { kind, epoch, model, sequence, first_frame, frames, stages, layer: 0, payload, constant };
        return Ok(vec![message]);
    }
    let all = bundle.unpack()?;
    let stages = bundle.stages.index();
    let mut messages = Vec::with_capacity(LAYERS);
    for layer in 0..layers_of(bundle.stages) {
        let range = range(layer, stages);
        let payload = if bundle.form == Form::Graded {
            all.pack_layer(range)
        } else {
            let width = StageCount::new(u8::try_from(range.len()).unwrap_or(u8::MAX))?;
            let codes = all.codes.chunks_exact(stages).flat_map(|frame| &frame[range.clone()]).copied().collect();
            PackedBundle::pack(&Bundle::new(bundle.first_frame, bundle.frames, width, codes)?).payload
        };
        messages.push(LayerMessage {
            kind: if bundle.form == Form::Graded { Kind::Graded } else { Kind::Codes },
            epoch,
            model,
            sequence,
            first_frame: bundle.first_frame,
            frames: bundle.frames,
            stages: bundle.stages.value(),
            layer: layer as u8,
            payload,
            constant: None,
        });
    }
    Ok(messages)
}

/// Cuts a bundle of a stream whose messages have one size into its layers: always all that the rate has, however many stages the
/// bundle has; silence is none of it.
///
/// # Errors
/// [`MessageError`] for a payload that does not fit.
pub fn split_constant(
    bundle: &PackedBundle,
    rate: MessageRate,
    epoch: Epoch,
    model: ModelId,
    sequence: u64,
) -> Result<Vec<LayerMessage>, MessageError> {
    let stages = rate.most_stages();
    let all = bundle.limited(stages)?.unpack()?;
    let message = |layer| LayerMessage {
        kind: Kind::Graded,
        epoch,
        model,
        sequence,
        first_frame: bundle.first_frame,
        frames: bundle.frames,
        stages: stages.value(),
        layer: layer as u8,
        payload: all.pack_layer(range(layer, stages.index())),
        constant: Some(rate),
    };
    Ok(if bundle.is_background() { Vec::new() } else { (0..layers_of(stages)).map(message).collect() })
}

/// What stands before the payload of a stream whose messages have one size, and the payload without what follows it.
fn padded(bytes: &[u8]) -> Result<(Option<MessageRate>, &[u8]), MessageError> {
    let short = || MessageError::Head(format!("{} bytes behind the head", bytes.len()));
    let ([r0, r1, n0, n1], rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    let rate = MessageRate::new(u32::from(u16::from_be_bytes([*r0, *r1])))?;
    let length = usize::from(u16::from_be_bytes([*n0, *n1]));
    Ok((Some(rate), rest.get(..length).ok_or_else(short)?))
}
