//! Bytes of thin bundles (docs/bitstream.md, section 5): a head of one byte that no protobuf message begins with.

use super::WireError;
use crate::bitstream::Bundle;
use crate::session::Thin;
use crate::units::{OutOfRange, StageCount};

/// The low three bits of the first byte: a wire type that protobuf does not have.
const MARK: u8 = 7;
const MARK_MASK: u8 = 7;

/// In place of a stage count: flags follow.
const LONG: u8 = 0;

/// In place of a stage count: background, and the same with its number of frames.
const BACKGROUND: u8 = 25;
const BACKGROUND_OF: u8 = 26;

/// Most stages of a background: the length of its payload tells them.
const BACKGROUND_STAGES: u8 = 4;

/// Flags of a long head.
mod flag {
    pub(super) const FRAMES: u8 = 1;
    pub(super) const GAP: u8 = 1 << 1;
    pub(super) const RESTART: u8 = 1 << 2;
    pub(super) const PLAIN: u8 = 1 << 3;
    pub(super) const CHECKED: u8 = 1 << 4;
    pub(super) const PADDED: u8 = 1 << 5;
    pub(super) const GRADED: u8 = 1 << 6;
    pub(super) const ALL: u8 = (1 << 7) - 1;
}

/// Whether a message is a thin bundle.
pub(super) fn is_thin(body: &[u8]) -> bool {
    body.first().is_some_and(|b| b & MARK_MASK == MARK)
}

fn error(what: &'static str, got: impl ToString, allowed: &'static str) -> WireError {
    OutOfRange { what, got: got.to_string(), allowed }.into()
}

/// Reads a message for which [`is_thin`] holds.
pub(super) fn decode(body: &[u8]) -> Result<Thin, WireError> {
    decode_with(body).map(|(thin, _)| thin)
}

/// The same, with what follows the payload.
pub(super) fn decode_with(body: &[u8]) -> Result<(Thin, &[u8]), WireError> {
    let mut at = Cursor(body);
    let head = at.byte()? >> 3;
    if head == BACKGROUND || head == BACKGROUND_OF {
        return background(at, head == BACKGROUND_OF).map(|thin| (thin, [].as_slice()));
    }
    if head != LONG {
        let stages = StageCount::new(head)?;
        return Ok((Thin { stages, payload: at.0.to_vec(), ..Thin::default() }, &[]));
    }
    let flags = at.byte()?;
    if flags & !flag::ALL != 0 {
        return Err(error("flags of a bundle", flags, "0 to 127"));
    }
    let has = |flag| flags & flag != 0;
    let stages = StageCount::new(at.byte()?)?;
    let frames = if has(flag::FRAMES) { Some(at.byte()?) } else { None };
    let gap = if has(flag::GAP) { at.varint()? } else { 0 };
    let (payload, rest) = match has(flag::PADDED) {
        false => (at.0, [].as_slice()),
        true => {
            let length = usize::try_from(at.varint()?).unwrap_or(usize::MAX);
            let split = at.0.split_at_checked(length);
            split.ok_or_else(|| error("payload in bytes", length, "what the message has"))?
        }
    };
    let (restart, plain, checked) = (has(flag::RESTART), has(flag::PLAIN), has(flag::CHECKED));
    let graded = has(flag::GRADED);
    let payload = payload.to_vec();
    Ok((Thin { gap, frames, stages, restart, plain, graded, background: false, checked, payload }, rest))
}

fn background(mut at: Cursor<'_>, says_frames: bool) -> Result<Thin, WireError> {
    let frames = if says_frames { Some(at.byte()?) } else { None };
    let gap = at.varint()?;
    let fits = |n: &StageCount| Bundle::payload_len(1, *n) == at.0.len();
    let stages = (1..=BACKGROUND_STAGES).filter_map(|n| StageCount::new(n).ok()).find(fits);
    let stages = stages.ok_or_else(|| error("payload in bytes", at.0.len(), "2 to 5 for a background"))?;
    Ok(Thin { gap, frames, stages, background: true, payload: at.0.to_vec(), ..Thin::default() })
}

/// Appends a bundle, without the length of the message.
pub(super) fn encode(thin: &Thin, out: &mut Vec<u8>) {
    if thin.background {
        out.push(if thin.frames.is_some() { BACKGROUND_OF } else { BACKGROUND } << 3 | MARK);
        out.extend(thin.frames);
        put_varint(thin.gap, out);
        out.extend_from_slice(&thin.payload);
        return;
    }
    let flags = flags(thin);
    if flags == 0 {
        out.push(thin.stages.value() << 3 | MARK);
    } else {
        head(thin, flags, out);
    }
    out.extend_from_slice(&thin.payload);
}

/// Appends a bundle and what is to follow its payload; a background has nothing behind it.
pub(super) fn encode_with(thin: &Thin, rest: &[u8], out: &mut Vec<u8>) {
    if rest.is_empty() || thin.background {
        return encode(thin, out);
    }
    head(thin, flags(thin) | flag::PADDED, out);
    put_varint(thin.payload.len() as u64, out);
    out.extend_from_slice(&thin.payload);
    out.extend_from_slice(rest);
}

/// Appends a bundle in exactly `bytes` bytes, without the length of the message; None if it does not fit.
pub(super) fn encode_padded(thin: &Thin, bytes: usize, out: &mut Vec<u8>) -> Option<()> {
    let before = out.len();
    encode(thin, out);
    if out.len() - before == bytes {
        return Some(());
    }
    out.truncate(before);
    if thin.background {
        return None;
    }
    head(thin, flags(thin) | flag::PADDED, out);
    put_varint(thin.payload.len() as u64, out);
    out.extend_from_slice(&thin.payload);
    if out.len() - before > bytes {
        out.truncate(before);
        return None;
    }
    out.resize(before + bytes, 0);
    Some(())
}

fn flags(thin: &Thin) -> u8 {
    let flags = [
        (thin.frames.is_some(), flag::FRAMES),
        (thin.gap > 0, flag::GAP),
        (thin.restart, flag::RESTART),
        (thin.plain, flag::PLAIN),
        (thin.checked, flag::CHECKED),
        (thin.graded, flag::GRADED),
    ];
    flags.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag)
}

fn head(thin: &Thin, flags: u8, out: &mut Vec<u8>) {
    out.extend([LONG << 3 | MARK, flags, thin.stages.value()]);
    out.extend(thin.frames);
    if thin.gap > 0 {
        put_varint(thin.gap, out);
    }
}

fn put_varint(value: u64, out: &mut Vec<u8>) {
    prost::encoding::encode_varint(value, out);
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> Result<u8, WireError> {
        let (&byte, rest) = self.0.split_first().ok_or(WireError::Missing("the rest of a bundle's head"))?;
        self.0 = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        prost::encoding::decode_varint(&mut self.0).map_err(|e| WireError::Syntax(e.to_string()))
    }
}
