//! Generated messages <-> checked ones.

use super::proto::envelope::Kind;
use super::{WireError, proto};
use crate::bitstream::{Bundle, MAX_FRAMES};
use crate::session::{Close, Control, Hello, Message, PackedBundle, Reason, Role, StreamName};
use crate::units::{ModelId, OutOfRange, StageCount};

/// Longest bearer token.
const MAX_TOKEN: usize = 1024;
/// Longest text of a Close that is kept.
const MAX_TEXT: usize = 500;

fn range(what: &'static str, got: impl ToString, allowed: &'static str) -> WireError {
    OutOfRange { what, got: got.to_string(), allowed }.into()
}

fn stages(value: u32) -> Result<StageCount, WireError> {
    let narrow = u8::try_from(value).map_err(|_| range("stage count", value, "1 to 16"))?;
    Ok(StageCount::new(narrow)?)
}

fn optional_stages(value: u32) -> Result<Option<StageCount>, WireError> {
    if value == 0 { Ok(None) } else { stages(value).map(Some) }
}

fn model(bytes: &[u8]) -> Result<ModelId, WireError> {
    let id = bytes.try_into().map_err(|_| range("length of a model id in bytes", bytes.len(), "8"))?;
    Ok(ModelId(id))
}

pub(super) fn from_proto(envelope: proto::Envelope) -> Result<Message, WireError> {
    match envelope.kind.ok_or(WireError::Missing("content"))? {
        Kind::Hello(m) => hello(m).map(Message::Hello),
        Kind::HelloAck(m) => {
            Ok(Message::HelloAck { version: m.version, model_id: model(&m.model_id)?, stages: stages(m.stages)? })
        }
        Kind::Bundle(m) => bundle(m),
        Kind::Control(m) => Ok(Message::Control(Control { stages: optional_stages(m.stages)? })),
        Kind::Close(m) => {
            let reason = reason(m.reason())?;
            Ok(Message::Close(Close::new(reason, m.text.chars().take(MAX_TEXT).collect::<String>())))
        }
    }
}

fn hello(m: proto::Hello) -> Result<Hello, WireError> {
    let role = match m.role() {
        proto::Role::Unspecified => return Err(WireError::Missing("a role")),
        proto::Role::Publish => Role::Publish,
        proto::Role::Subscribe => Role::Subscribe,
    };
    let frames = u8::try_from(m.frames_per_bundle).ok().filter(|&f| f <= MAX_FRAMES);
    let fits = frames.filter(|&f| f > 0 || role == Role::Subscribe);
    if m.token.len() > MAX_TOKEN {
        return Err(range("length of the token in bytes", m.token.len(), "0 to 1024"));
    }
    Ok(Hello {
        version: m.version,
        role,
        stream: StreamName::new(&m.stream)?,
        model_id: model(&m.model_id)?,
        stages: optional_stages(m.stages)?,
        frames_per_bundle: fits.ok_or_else(|| range("frames of a bundle", m.frames_per_bundle, "1 to 50"))?,
        token: m.token,
    })
}

fn bundle(m: proto::Bundle) -> Result<Message, WireError> {
    let frames = u8::try_from(m.frames).ok().filter(|f| (1..=MAX_FRAMES).contains(f));
    let frames = frames.ok_or_else(|| range("frames of a bundle", m.frames, "1 to 50"))?;
    let stages = stages(m.stages)?;
    if m.payload.len() != Bundle::payload_len(frames, stages) {
        return Err(range("payload in bytes", m.payload.len(), "what its frames and stages take"));
    }
    if m.first_frame.checked_add(u64::from(frames)).is_none() {
        return Err(range("first frame", m.first_frame, "less than 2^64 - 50"));
    }
    let bundle = PackedBundle { first_frame: m.first_frame, frames, stages, payload: m.payload };
    Ok(Message::Bundle { sequence: m.sequence, bundle })
}

fn reason(reason: proto::Reason) -> Result<Reason, WireError> {
    Ok(match reason {
        proto::Reason::Unspecified => return Err(WireError::Missing("a reason")),
        proto::Reason::StreamEnded => Reason::StreamEnded,
        proto::Reason::Done => Reason::Done,
        proto::Reason::ShuttingDown => Reason::ShuttingDown,
        proto::Reason::Protocol => Reason::Protocol,
        proto::Reason::Model => Reason::Model,
        proto::Reason::Busy => Reason::Busy,
        proto::Reason::SlowConsumer => Reason::SlowConsumer,
        proto::Reason::Timeout => Reason::Timeout,
        proto::Reason::Full => Reason::Full,
        proto::Reason::Denied => Reason::Denied,
    })
}

fn proto_reason(reason: Reason) -> proto::Reason {
    match reason {
        Reason::StreamEnded => proto::Reason::StreamEnded,
        Reason::Done => proto::Reason::Done,
        Reason::ShuttingDown => proto::Reason::ShuttingDown,
        Reason::Protocol => proto::Reason::Protocol,
        Reason::Model => proto::Reason::Model,
        Reason::Busy => proto::Reason::Busy,
        Reason::SlowConsumer => proto::Reason::SlowConsumer,
        Reason::Timeout => proto::Reason::Timeout,
        Reason::Full => proto::Reason::Full,
        Reason::Denied => proto::Reason::Denied,
    }
}

pub(super) fn to_proto(message: &Message) -> proto::Envelope {
    let count = |s: Option<StageCount>| s.map_or(0, |s| u32::from(s.value()));
    let kind = match message {
        Message::Hello(h) => Kind::Hello(proto::Hello {
            version: h.version,
            role: match h.role {
                Role::Publish => proto::Role::Publish.into(),
                Role::Subscribe => proto::Role::Subscribe.into(),
            },
            stream: h.stream.as_str().to_owned(),
            model_id: h.model_id.0.to_vec(),
            stages: count(h.stages),
            frames_per_bundle: u32::from(h.frames_per_bundle),
            token: h.token.clone(),
        }),
        Message::HelloAck { version, model_id, stages } => Kind::HelloAck(proto::HelloAck {
            version: *version,
            model_id: model_id.0.to_vec(),
            stages: count(Some(*stages)),
        }),
        Message::Bundle { sequence, bundle } => Kind::Bundle(proto::Bundle {
            sequence: *sequence,
            first_frame: bundle.first_frame,
            frames: u32::from(bundle.frames),
            stages: count(Some(bundle.stages)),
            payload: bundle.payload.clone(),
        }),
        Message::Control(c) => Kind::Control(proto::Control { stages: count(c.stages) }),
        Message::Close(c) => Kind::Close(proto::Close { reason: proto_reason(c.reason).into(), text: c.text.clone() }),
    };
    proto::Envelope { kind: Some(kind) }
}
