//! Length-delimited framing, sans I/O.

use prost::Message as _;

use super::{WireError, convert, proto, thin};
use crate::session::Message;

/// Largest message in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// Longest length prefix: five groups of seven bits hold every 32-bit length.
const MAX_PREFIX: usize = 5;

/// Bytes in, messages out. Buffers at most one message and what was pushed last.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: Vec<u8>,
    at: usize,
}

impl Framer {
    /// Takes more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// The next message; None if more bytes are needed. A length is refused before its bytes are waited for.
    ///
    /// # Errors
    /// [`WireError`]; nothing sensible can follow in this connection.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Message>, WireError> {
        let bytes = &self.buffer[self.at..];
        let Some((length, prefix)) = length(bytes)? else { return Ok(None) };
        let Some(body) = bytes.get(prefix..prefix + length) else { return Ok(None) };
        let message = if thin::is_thin(body) {
            Message::Thin(thin::decode(body)?)
        } else {
            let envelope = proto::Envelope::decode(body).map_err(|e| WireError::Syntax(e.to_string()))?;
            convert::from_proto(envelope)?
        };
        self.at += prefix + length;
        Ok(Some(message))
    }
}

fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let mut value = 0u64;
    for (i, &b) in bytes.iter().enumerate().take(MAX_PREFIX) {
        value |= u64::from(b & 0x7F) << (7 * i);
        if b < 0x80 {
            return match usize::try_from(value) {
                Ok(length) if length <= MAX_MESSAGE => Ok(Some((length, i + 1))),
                _ => Err(WireError::TooLarge { got: value }),
            };
        }
    }
    if bytes.len() >= MAX_PREFIX { Err(WireError::Length) } else { Ok(None) }
}

/// Appends a message with its length prefix.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    if let Message::Thin(bundle) = message {
        let mut body = Vec::with_capacity(bundle.payload.len() + MAX_PREFIX);
        thin::encode(bundle, &mut body);
        prost::encode_length_delimiter(body.len(), out).expect("a Vec grows as needed");
        out.extend_from_slice(&body);
        return;
    }
    let envelope = convert::to_proto(message);
    out.reserve(envelope.encoded_len() + MAX_PREFIX);
    envelope.encode_length_delimited(out).expect("a Vec grows as needed");
}

/// Appends a message of exactly `bytes` bytes, length prefix and padding included; None, and nothing is appended, if it is longer than
/// that, or by one byte too short to be padded. Gives its length without the padding.
pub fn encode_padded(message: &Message, bytes: usize, out: &mut Vec<u8>) -> Option<usize> {
    let body = (1..=MAX_PREFIX).map(|prefix| bytes.checked_sub(prefix)).find(|&body| {
        body.is_some_and(|body| prost::length_delimiter_len(body) + body == bytes && body <= MAX_MESSAGE)
    })??;
    if let Message::Thin(bundle) = message {
        let before = out.len();
        prost::encode_length_delimiter(body, out).expect("a Vec grows as needed");
        if thin::encode_padded(bundle, body, out).is_none() {
            out.truncate(before);
            return None;
        }
        let mut plain = Vec::new();
        encode(message, &mut plain);
        return Some(plain.len());
    }
    let mut envelope = convert::to_proto(message);
    let plain = envelope.encoded_len();
    envelope.padding = padding(body.checked_sub(plain)?)?;
    debug_assert_eq!(envelope.encoded_len(), body);
    envelope.encode_length_delimited(out).expect("a Vec grows as needed");
    Some(plain + prost::length_delimiter_len(plain))
}

/// Fields of padding that take `bytes` bytes in all.
fn padding(bytes: usize) -> Option<Vec<Vec<u8>>> {
    let field = |bytes: usize| {
        let lengths = [bytes.checked_sub(2), bytes.checked_sub(3)].into_iter().flatten();
        lengths.filter(|&n| 1 + prost::length_delimiter_len(n) + n == bytes).map(|n| vec![0; n]).next()
    };
    match bytes {
        0 => Some(Vec::new()),
        // Where the length of the length grows, one field leaves a hole.
        _ => field(bytes).map(|f| vec![f]).or_else(|| Some(vec![Vec::new(), field(bytes.checked_sub(2)?)?])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bitstream::{Bundle, CodedBundle, Form};
    use crate::session::{
        Close, Continuation, Control, Hello, PackedBundle, Reason, Role, StreamName, Thin, TokenTag, Wire,
    };
    use crate::units::{MessageRate, ModelId, StageCount};

    fn samples() -> Vec<Message> {
        let stages = StageCount::new(12).unwrap();
        let hello = Hello {
            version: 1,
            role: Role::Publish,
            stream: StreamName::new("radio-1").unwrap(),
            model_id: ModelId([7; 8]),
            stages: Some(stages),
            frames_per_bundle: 5,
            token: "secret".to_owned(),
            coding: Some(TokenTag { id: [3; 8], check: [4; 8] }),
            continuation: Some(Continuation { frames: 100, temperature_percent: 80, seed: 5 }),
            pace: crate::jitter::Pace::Live,
            wire: Wire::ALL,
            latency: None,
            constant: Some(MessageRate::new(3_100).unwrap()),
        };
        let coded = |packed: bool, restart| CodedBundle {
            first_frame: 1 << 40,
            frames: 5,
            stages,
            graded: false,
            restart,
            packed,
            payload: vec![0x5A; if packed { 77 } else { 50 }],
        };
        let bundle =
            PackedBundle { first_frame: 1 << 40, frames: 5, stages, form: Form::Plain, payload: vec![0xA5; 75] };
        vec![
            Message::Hello(hello.clone()),
            Message::Hello(Hello { role: Role::Subscribe, stages: None, frames_per_bundle: 0, ..hello }),
            Message::HelloAck { version: 1, model_id: ModelId([9; 8]), stages, coding: Some([3; 8]), wire: Wire::ALL },
            Message::Coded { sequence: 8, bundle: coded(false, true), checked: true },
            Message::Coded { sequence: 9, bundle: coded(true, false), checked: true },
            Message::Bundle { sequence: 3, bundle },
            Message::Thin(thin(0, None, true)),
            Message::Thin(thin(1 << 40, Some(50), true)),
            Message::Thin(thin(0, None, false)),
            Message::Thin(Thin {
                gap: 15,
                stages: StageCount::new(4).unwrap(),
                background: true,
                payload: vec![7; 5],
                ..Thin::default()
            }),
            Message::Thin(Thin {
                frames: Some(3),
                stages: StageCount::ONE,
                background: true,
                payload: vec![7; 2],
                ..Thin::default()
            }),
            Message::Control(Control { stages: Some(stages), ..Control::default() }),
            Message::Control(Control::default()),
            Message::Close(Close::new(Reason::SlowConsumer, "too slow")),
        ]
    }

    fn thin(gap: u64, frames: Option<u8>, checked: bool) -> Thin {
        let stages = StageCount::new(12).unwrap();
        Thin {
            gap,
            frames,
            stages,
            restart: checked,
            plain: gap > 0,
            graded: checked,
            background: false,
            checked,
            payload: vec![0x5A; 71],
        }
    }

    #[test]
    fn messages_read_back_in_any_chunking() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|m| encode(m, &mut bytes));
        for size in [1, 2, 7, 1_000] {
            let (mut framer, mut found) = (Framer::default(), Vec::new());
            for chunk in bytes.chunks(size) {
                framer.push(chunk);
                while let Some(m) = framer.next().unwrap() {
                    found.push(m);
                }
            }
            assert_eq!(found, samples());
            assert_eq!(framer.buffered(), 0);
        }
    }

    #[test]
    fn the_hot_message_is_small() {
        let mut bytes = Vec::new();
        let stages = StageCount::new(6).unwrap();
        let bundle = PackedBundle { first_frame: 30_000, frames: 5, stages, form: Form::Plain, payload: vec![1; 38] };
        encode(&Message::Bundle { sequence: 6_000, bundle }, &mut bytes);
        assert!(bytes.len() <= 38 + 18, "{} bytes for a payload of 38", bytes.len());
        // And thin, up to the longest bundle.
        for payload in [1, 38, 126, 127, 1_500] {
            bytes.clear();
            encode(&Message::Thin(Thin { payload: vec![1; payload], ..thin(0, None, false) }), &mut bytes);
            assert!(bytes.len() <= payload + 3, "{} bytes for a payload of {payload}", bytes.len());
        }
    }

    #[test]
    fn lengths_are_refused_before_they_are_waited_for() {
        let mut framer = Framer::default();
        framer.push(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]);
        assert_eq!(framer.next(), Err(WireError::TooLarge { got: u64::from(u32::MAX) }));
        let mut framer = Framer::default();
        framer.push(&[0xFF; 5]);
        assert_eq!(framer.next(), Err(WireError::Length));
    }

    proptest! {
        #[test]
        fn foreign_bytes_give_messages_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut framer = Framer::default();
            framer.push(&bytes);
            while let Ok(Some(_)) = framer.next() {}
            prop_assert!(framer.buffered() <= bytes.len());
        }

        #[test]
        fn flipped_bits_never_panic(at in 0usize..2_000, bit in 0u8..8) {
            let mut bytes = Vec::new();
            samples().iter().for_each(|m| encode(m, &mut bytes));
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let mut framer = Framer::default();
            framer.push(&bytes);
            while let Ok(Some(_)) = framer.next() {}
        }
    }

    #[test]
    fn padded_messages_have_the_length_that_was_asked_for() {
        let bundle = PackedBundle::pack(&Bundle::new(7, 2, StageCount::new(3).unwrap(), vec![5; 6]).unwrap());
        for message in [Message::Bundle { sequence: 3, bundle }, Message::Thin(thin(3, None, true))] {
            padded(&message);
        }
    }

    fn padded(message: &Message) {
        let mut plain = Vec::new();
        encode(message, &mut plain);
        let mut refused = Vec::new();
        for bytes in 1..700 {
            let mut out = Vec::new();
            match encode_padded(message, bytes, &mut out) {
                Some(length) => {
                    assert_eq!((out.len(), length), (bytes, plain.len()));
                    let mut framer = Framer::default();
                    framer.push(&out);
                    assert_eq!(framer.next().unwrap(), Some(message.clone()));
                }
                None => refused.push(bytes),
            }
        }
        // Shorter than it is, one byte longer, and the length that a longer prefix skips.
        assert!(refused.iter().all(|&b| b <= plain.len() + 1 || b == 129), "{refused:?}");
    }
}
