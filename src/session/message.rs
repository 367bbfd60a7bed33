//! What peers say to each other, checked.

use std::fmt;
use std::sync::Arc;

use super::{TokenTag, Wire};
use crate::bitstream::{CodedBundle, PackedBundle};
use crate::jitter::Pace;
use crate::units::{MessageRate, ModelId, OutOfRange, StageCount};

/// Name of a stream, 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName(Arc<str>);

impl StreamName {
    ///
    /// # Errors
    /// `OutOfRange` for another length or other characters.
    pub fn new(name: &str) -> Result<Self, OutOfRange> {
        let fits = (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits {
            Ok(Self(name.into()))
        } else {
            let got = name.chars().take(80).flat_map(char::escape_default).collect();
            Err(OutOfRange { what: "stream name", got, allowed: "1 to 64 characters of A-Z a-z 0-9 . _ -" })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a client wants to do with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Send bundles.
    Publish,
    /// Receive bundles.
    Subscribe,
}

/// First message of a client.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    /// Version of the protocol.
    pub version: u32,
    /// What the client wants.
    pub role: Role,
    /// Which stream.
    pub stream: StreamName,
    /// Model of the codes.
    pub model_id: ModelId,
    /// Publisher: most stages of its bundles. Subscriber: most stages it wants; None is all there are.
    pub stages: Option<StageCount>,
    /// Publisher: most frames in its bundles.
    pub frames_per_bundle: u8,
    /// Bearer token; empty if there is none.
    pub token: String,
    /// Token model of coded bundles; None asks for packed ones.
    pub coding: Option<TokenTag>,
    /// Subscriber: what to send when the publisher ends the stream.
    pub continuation: Option<Continuation>,
    /// Publisher: whether its sound is worth less when it is late.
    pub pace: Pace,
    /// What of the wire's newer forms the client understands.
    pub wire: Wire,
    /// Subscriber: frames that may wait for each other, 1 to 50; None: bundles as they come.
    pub latency: Option<u8>,
    /// Publisher: what each of its messages takes, padding included; None: they are as long as they get.
    pub constant: Option<MessageRate>,
}

impl Hello {
    /// A subscriber's, who wants all there is of a stream as it comes, without a token and packed.
    pub fn subscribe(stream: StreamName, model_id: ModelId) -> Self {
        Self {
            version: super::PROTOCOL_VERSION,
            role: Role::Subscribe,
            stream,
            model_id,
            stages: None,
            frames_per_bundle: 0,
            token: String::new(),
            coding: None,
            continuation: None,
            pace: Pace::Unknown,
            wire: Wire::default(),
            latency: None,
            constant: None,
        }
    }

    /// A publisher's, of packed bundles of at most so many stages and frames, without a token.
    pub fn publish(stream: StreamName, model_id: ModelId, stages: StageCount, frames_per_bundle: u8) -> Self {
        let stages = Some(stages);
        Self { role: Role::Publish, stages, frames_per_bundle, ..Self::subscribe(stream, model_id) }
    }
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All but the token, which is a secret.
        let mut shown = f.debug_struct("Hello");
        shown.field("version", &self.version).field("role", &self.role).field("stream", &self.stream);
        shown.field("model_id", &self.model_id).field("stages", &self.stages);
        shown.field("frames_per_bundle", &self.frames_per_bundle).field("coding", &self.coding);
        shown
            .field("continuation", &self.continuation)
            .field("pace", &self.pace)
            .field("wire", &self.wire)
            .field("latency", &self.latency);
        shown.finish_non_exhaustive()
    }
}

/// A wish to hear a stream continued by the token model when its publisher ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Continuation {
    /// Frames to add, 1 to 500.
    pub frames: u16,
    /// Temperature of the sampling in percent, 0 to 1000.
    pub temperature_percent: u16,
    /// Seed of the sampling.
    pub seed: u64,
}

/// A wish within a running session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Control {
    /// Subscriber: most stages from the next bundle on.
    pub stages: Option<StageCount>,
    /// Server: frames that were left out before the next bundle, because this subscriber takes them too slowly.
    pub skipped: u64,
    /// Server: most frames of bundles that a publisher's listeners want, 1 to 50.
    pub bundle_frames: Option<u8>,
    /// Over QUIC, from the sender of bundles when it pauses or is done: bundles sent so far.
    pub bundles_sent: Option<u64>,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The publisher ended the stream.
    StreamEnded,
    /// The client is done.
    Done,
    /// The server is shutting down.
    ShuttingDown,
    /// Bytes or messages that are not allowed here.
    Protocol,
    /// The model ids differ.
    Model,
    /// Somebody else publishes this stream.
    Busy,
    /// The subscriber does not read fast enough.
    SlowConsumer,
    /// Nothing was heard for too long.
    Timeout,
    /// The server has no room.
    Full,
    /// The token is wrong, or does not give this right.
    Denied,
}

/// Last message of a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason:?}: {}", super::printable(text))]
pub struct Close {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub text: String,
}

impl Close {
    /// A reason with words.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self { reason, text: text.into() }
    }
}

/// Anything that travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// First message of a client.
    Hello(Hello),
    /// The server's answer when it agrees.
    HelloAck {
        /// Version of the protocol.
        version: u32,
        /// Model of the codes.
        model_id: ModelId,
        /// Most stages.
        stages: StageCount,
        /// Token model with which bundles are coded from here on; None: they are packed.
        coding: Option<[u8; 8]>,
        /// Forms of messages that are used from here on.
        wire: Wire,
    },
    /// Frames of codes.
    Bundle {
        /// Number of the bundle in its connection.
        sequence: u64,
        /// The frames.
        bundle: PackedBundle,
    },
    /// Frames of codes, range-coded.
    Coded {
        /// Number of the bundle in its connection.
        sequence: u64,
        /// The frames.
        bundle: CodedBundle,
        /// The payload ends with the check sum of the codes.
        checked: bool,
    },
    /// Frames of codes that say only what does not follow from the ones before.
    Thin(Thin),
    /// A wish within a running session.
    Control(Control),
    /// Last message of a session.
    Close(Close),
}

/// A bundle as it travels; what is not said follows from the bundle before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thin {
    /// Frames left out before it.
    pub gap: u64,
    /// Frames, if they differ from the last ones that were said.
    pub frames: Option<u8>,
    /// Stages of each frame.
    pub stages: StageCount,
    /// The context of the coder starts anew.
    pub restart: bool,
    /// In a coded session: packed after all.
    pub plain: bool,
    /// In a packed session: frames have stage counts of their own. In a coded one it is agreed on whether all may.
    pub graded: bool,
    /// The codes of one frame describe the background; at most four stages.
    pub background: bool,
    /// In a coded session: the payload ends with the CRC of the packed indices.
    pub checked: bool,
    /// The indices.
    pub payload: Vec<u8>,
}

impl Default for Thin {
    fn default() -> Self {
        Self {
            gap: 0,
            frames: None,
            stages: StageCount::MAX,
            restart: false,
            plain: false,
            graded: false,
            background: false,
            checked: false,
            payload: Vec::new(),
        }
    }
}
