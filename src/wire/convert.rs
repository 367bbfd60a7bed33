//! Generated messages <-> checked ones.

use std::time::Duration;

use super::proto::envelope::Kind;
use super::{WireError, proto};
use crate::bitstream::{Bundle, CodedBundle, Form};
use crate::jitter::{Pace, Report};
use crate::profile::Profile;
use crate::session::{
    Close, Continuation, Control, Hello, Message, PackedBundle, Reason, Role, StreamName, TokenTag, Wire,
};
use crate::units::{MessageRate, ModelId, OutOfRange, StageCount};

/// Longest bearer token.
const MAX_TOKEN: usize = 1024;
/// Longest text of a Close that is kept.
const MAX_TEXT: usize = 500;

fn range(what: &'static str, got: impl ToString, allowed: &'static str) -> WireError {
    OutOfRange { what, got: got.to_string(), allowed }.into()
}

fn stages(value: u32) -> Result<StageCount, WireError> {
    let narrow = u8::try_from(value).map_err(|_| range("stage count", value, "1 to 24"))?;
    Ok(StageCount::new(narrow)?)
}

fn optional_stages(value: u32) -> Result<Option<StageCount>, WireError> {
    if value == 0 { Ok(None) } else { stages(value).map(Some) }
}

/// Frames of a bundle; None for 0.
fn optional_frames(value: u32) -> Result<Option<u8>, WireError> {
    match u8::try_from(value) {
        Ok(0) => Ok(None),
        Ok(frames) if frames <= Profile::MAX_FRAMES_PER_BUNDLE => Ok(Some(frames)),
        _ => Err(range("frames of a bundle", value, "0 to 50")),
    }
}

fn eight(what: &'static str, bytes: &[u8]) -> Result<[u8; 8], WireError> {
    bytes.try_into().map_err(|_| range(what, format!("of {} bytes", bytes.len()), "8 bytes"))
}

fn model(bytes: &[u8]) -> Result<ModelId, WireError> {
    Ok(ModelId(eight("model id", bytes)?))
}

pub(super) fn from_proto(envelope: proto::Envelope) -> Result<Message, WireError> {
    match envelope.kind.ok_or(WireError::Missing("content"))? {
        Kind::Hello(m) => hello(m).map(Message::Hello),
        Kind::HelloAck(m) => {
            let coding =
                if m.token_model_id.is_empty() { None } else { Some(eight("token model id", &m.token_model_id)?) };
            Ok(Message::HelloAck {
                version: m.version,
                model_id: model(&m.model_id)?,
                stages: stages(m.stages)?,
                coding,
                wire: Wire::from_bits(m.wire),
            })
        }
        Kind::Bundle(m) => bundle(m),
        Kind::Control(m) => Ok(Message::Control(Control {
            stages: optional_stages(m.stages)?,
            skipped: m.skipped_frames,
            bundle_frames: optional_frames(m.bundle_frames)?,
            bundles_sent: (m.bundles_sent > 0).then_some(m.bundles_sent),
        })),
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
    let frames = u8::try_from(m.frames_per_bundle).ok().filter(|&f| f <= Profile::MAX_FRAMES_PER_BUNDLE);
    let fits = frames.filter(|&f| f > 0 || role == Role::Subscribe);
    let pace = match m.pace() {
        proto::Pace::Unspecified => Pace::Unknown,
        proto::Pace::Live => Pace::Live,
        proto::Pace::Recording => Pace::Recording,
    };
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
        coding: if m.token_model_id.is_empty() {
            None
        } else {
            let (id, check) = (eight("token model id", &m.token_model_id)?, eight("token check", &m.token_check)?);
            Some(TokenTag { id, check })
        },
        continuation: continuation(m.continue_frames, m.continue_temperature_percent, m.continue_seed)?,
        pace,
        wire: Wire::from_bits(m.wire),
        latency: optional_frames(m.latency_frames)?,
        constant: if m.constant_bps == 0 { None } else { Some(MessageRate::new(m.constant_bps)?) },
    })
}

fn continuation(frames: u32, percent: u32, seed: u64) -> Result<Option<Continuation>, WireError> {
    let within = |value: u32, most: u16| u16::try_from(value).ok().filter(|&v| v <= most);
    let count = within(frames, 500).ok_or_else(|| range("frames to continue", frames, "0 to 500"))?;
    let temperature_percent =
        within(percent, 1000).ok_or_else(|| range("temperature in percent", percent, "0 to 1000"))?;
    Ok((count > 0).then_some(Continuation { frames: count, temperature_percent, seed }))
}

fn bundle(m: proto::Bundle) -> Result<Message, WireError> {
    let frames = u8::try_from(m.frames).ok().filter(|f| (1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(f));
    let frames = frames.ok_or_else(|| range("frames of a bundle", m.frames, "1 to 50"))?;
    let stages = stages(m.stages)?;
    let packed_len = Bundle::payload_len(frames, stages);
    let coding = m.coding();
    let form = match m.form() {
        proto::Form::Plain => Form::Plain,
        proto::Form::Graded => Form::Graded,
        proto::Form::Background => Form::Background,
    };
    let fits = match coding {
        proto::Coding::Packed => PackedBundle::allows(frames, stages, form, m.payload.len()),
        // Coded sessions of this kind have no graded bundles: those are thin.
        _ if form != Form::Plain => false,
        proto::Coding::Plain | proto::Coding::PlainRestart => m.payload.len() == packed_len + 2,
        proto::Coding::Range | proto::Coding::RangeRestart => (2..packed_len + 2).contains(&m.payload.len()),
    };
    if !fits {
        return Err(range("payload in bytes", m.payload.len(), "what its frames and stages take"));
    }
    if m.first_frame.checked_add(u64::from(frames)).is_none() {
        return Err(range("first frame", m.first_frame, "less than 2^64 - 50"));
    }
    if coding != proto::Coding::Packed {
        let restart = matches!(coding, proto::Coding::RangeRestart | proto::Coding::PlainRestart);
        let packed = matches!(coding, proto::Coding::Plain | proto::Coding::PlainRestart);
        let (first_frame, graded, payload) = (m.first_frame, false, m.payload);
        let bundle = CodedBundle { first_frame, frames, stages, graded, restart, packed, payload };
        return Ok(Message::Coded { sequence: m.sequence, bundle, checked: true });
    }
    let bundle = PackedBundle { first_frame: m.first_frame, frames, stages, form, payload: m.payload };
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

pub(super) fn report_to_proto(r: &Report) -> proto::Report {
    let us = |d: Duration| u32::try_from(d.as_micros()).unwrap_or(u32::MAX);
    proto::Report {
        expected: r.expected,
        received: r.received,
        late: r.late,
        reordered: r.reordered,
        duplicated: r.duplicated,
        rebuilt_frames: r.rebuilt_frames,
        concealed_frames: r.concealed_frames,
        jitter_us: us(r.jitter),
        queued_us: us(r.queued),
    }
}

pub(super) fn report(r: &proto::Report) -> Report {
    let us = |n| Duration::from_micros(u64::from(n));
    Report {
        expected: r.expected,
        received: r.received,
        late: r.late,
        reordered: r.reordered,
        duplicated: r.duplicated,
        rebuilt_frames: r.rebuilt_frames,
        concealed_frames: r.concealed_frames,
        jitter: us(r.jitter_us),
        queued: us(r.queued_us),
    }
}

fn hello_to_proto(h: &Hello) -> proto::Hello {
    proto::Hello {
        version: h.version,
        role: match h.role {
            Role::Publish => proto::Role::Publish.into(),
            Role::Subscribe => proto::Role::Subscribe.into(),
        },
        stream: h.stream.as_str().to_owned(),
        model_id: h.model_id.0.to_vec(),
        stages: h.stages.map_or(0, |s| u32::from(s.value())),
        frames_per_bundle: u32::from(h.frames_per_bundle),
        token: h.token.clone(),
        token_model_id: h.coding.map_or_else(Vec::new, |c| c.id.to_vec()),
        token_check: h.coding.map_or_else(Vec::new, |c| c.check.to_vec()),
        continue_frames: h.continuation.map_or(0, |c| u32::from(c.frames)),
        continue_temperature_percent: h.continuation.map_or(0, |c| u32::from(c.temperature_percent)),
        continue_seed: h.continuation.map_or(0, |c| c.seed),
        pace: match h.pace {
            Pace::Unknown => proto::Pace::Unspecified,
            Pace::Live => proto::Pace::Live,
            Pace::Recording => proto::Pace::Recording,
        }
        .into(),
        wire: h.wire.bits(),
        latency_frames: u32::from(h.latency.unwrap_or(0)),
        constant_bps: h.constant.map_or(0, MessageRate::bps),
    }
}

/// The envelope of a message. A thin bundle has none of its own: see [`super::thin`].
pub(super) fn to_proto(message: &Message) -> proto::Envelope {
    let count = |s: Option<StageCount>| s.map_or(0, |s| u32::from(s.value()));
    let kind = match message {
        Message::Hello(h) => Kind::Hello(hello_to_proto(h)),
        Message::HelloAck { version, model_id, stages, coding, wire } => Kind::HelloAck(proto::HelloAck {
            version: *version,
            model_id: model_id.0.to_vec(),
            stages: count(Some(*stages)),
            token_model_id: coding.map_or_else(Vec::new, |id| id.to_vec()),
            wire: wire.bits(),
        }),
        Message::Bundle { sequence, bundle } => Kind::Bundle(proto::Bundle {
            sequence: *sequence,
            first_frame: bundle.first_frame,
            frames: u32::from(bundle.frames),
            stages: u32::from(bundle.stages.value()),
            payload: bundle.payload.clone(),
            coding: proto::Coding::Packed.into(),
            form: match bundle.form {
                Form::Plain => proto::Form::Plain,
                Form::Graded => proto::Form::Graded,
                Form::Background => proto::Form::Background,
            }
            .into(),
        }),
        Message::Coded { sequence, bundle, .. } => Kind::Bundle(proto::Bundle {
            sequence: *sequence,
            first_frame: bundle.first_frame,
            frames: u32::from(bundle.frames),
            stages: count(Some(bundle.stages)),
            payload: bundle.payload.clone(),
            coding: match (bundle.packed, bundle.restart) {
                (false, false) => proto::Coding::Range,
                (false, true) => proto::Coding::RangeRestart,
                (true, false) => proto::Coding::Plain,
                (true, true) => proto::Coding::PlainRestart,
            }
            .into(),
            form: proto::Form::Plain.into(),
        }),
        // Written by the framer; in datagrams there is none.
        Message::Thin(_) => return proto::Envelope::default(),
        Message::Control(c) => Kind::Control(proto::Control {
            stages: count(c.stages),
            skipped_frames: c.skipped,
            bundle_frames: u32::from(c.bundle_frames.unwrap_or(0)),
            bundles_sent: c.bundles_sent.unwrap_or(0),
        }),
        Message::Close(c) => Kind::Close(proto::Close { reason: proto_reason(c.reason).into(), text: c.text.clone() }),
    };
    proto::Envelope { kind: Some(kind), padding: Vec::new() }
}
