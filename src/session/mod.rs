//! Both sides of a session, without a connection. The server's is a state machine: messages and time come in, events and answers come
//! out. The client's makes messages of bundles and bundles of messages.

mod client;
mod coding;
mod forms;
mod joiner;
mod message;
mod server;
mod thin;
mod words;

pub use crate::bitstream::PackedBundle;
pub use client::{BundleError, BundleWriter, ClientSession};
pub use coding::{CodingError, SessionDecoder, SessionEncoder, TokenTag};
pub use forms::Wire;
pub use joiner::Joiner;
pub use message::{Close, Continuation, Control, Hello, Message, Reason, Role, StreamName, Thin};
pub use server::{Event, ServerSession, Timeouts};
pub use thin::{ThinReader, ThinWriter};
pub use words::printable;

/// Version of the protocol that is spoken.
pub const PROTOCOL_VERSION: u32 = 1;
