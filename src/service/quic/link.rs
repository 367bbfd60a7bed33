//! One connection as both ends use it: messages on a stream, the rest in datagrams.

use std::sync::Arc;
use std::time::Duration;

use quinn::{
    Connection, ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, ReadError, RecvStream,
    SendStream, TransportConfig,
};
use tokio::time::timeout;

use super::congestion::Open;
use crate::service::outbox::Outbox;
use crate::session::Message;
use crate::wire::{Datagram, Framer, MAX_DATAGRAM, MAX_MESSAGE, WireError};

/// Datagrams that may wait, in either direction; the oldest are dropped, as a network would.
const WAITING: usize = 64;

/// Bytes of messages that may wait, in either direction.
const MESSAGES: u32 = 2 * MAX_MESSAGE as u32;

/// Either end says something every second.
const DEAD: Duration = Duration::from_secs(60);

/// What the way there and back is taken to be before it is known: a first packet that is lost is sent again after three of it.
const FIRST_WAY: Duration = Duration::from_millis(100);

/// How long the other end may take to make room for a message.
const ROOM: Duration = Duration::from_secs(5);

/// Bytes of messages that are read at a time.
const CHUNK: usize = 1 << 10;

/// How both ends carry packets. Packets have 1200 bytes, which every network that QUIC crosses carries: larger ones need not be
/// searched for.
pub(super) fn transport(streams: u8) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u8.into())
        .max_idle_timeout(DEAD.try_into().ok())
        .stream_receive_window(MESSAGES.into())
        .receive_window(MESSAGES.into())
        .send_window(MESSAGES.into())
        .datagram_receive_buffer_size(Some(WAITING * MAX_DATAGRAM))
        .datagram_send_buffer_size(WAITING * MAX_DATAGRAM)
        .mtu_discovery_config(None)
        .initial_rtt(FIRST_WAY)
        .congestion_controller_factory(Arc::new(Open));
    Arc::new(config)
}

/// An endpoint with one connection: packets to it need not say which.
pub(super) fn single() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.cid_generator(|| Box::new(Unnamed));
    config
}

struct Unnamed;

impl ConnectionIdGenerator for Unnamed {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&[])
    }

    fn cid_len(&self) -> usize {
        0
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// What came.
pub(super) enum Received {
    Datagram(Datagram),
    Message(Message),
}

/// Why nothing more comes or goes.
#[derive(Debug)]
pub(super) enum LinkError {
    /// What no peer of ours writes.
    Wire(WireError),
    /// The connection is gone.
    Lost(ConnectionError),
    /// The other end has said its last word.
    Over,
    /// The other end makes no room for messages.
    Full,
}

impl From<WireError> for LinkError {
    fn from(e: WireError) -> Self {
        Self::Wire(e)
    }
}

/// A connection with its stream of messages.
pub(super) struct Link {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
    framer: Framer,
    out: Outbox,
    chunk: Vec<u8>,
}

impl Link {
    pub(super) fn new(connection: Connection, (send, recv): (SendStream, RecvStream)) -> Self {
        let (framer, out) = (Framer::default(), Outbox::default());
        Self { connection, send, recv, framer, out, chunk: vec![0; CHUNK] }
    }

    /// What came next; what came before the connection was lost is still given. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Result<Received, LinkError> {
        loop {
            if let Some(message) = self.framer.next()? {
                return Ok(Received::Message(message));
            }
            tokio::select! {
                biased;
                Ok(bytes) = self.connection.read_datagram() => return Ok(Received::Datagram(Datagram::decode(&bytes)?)),
                read = self.recv.read(&mut self.chunk) => match read {
                    Ok(Some(n)) => self.framer.push(&self.chunk[..n]),
                    Ok(None) => return Err(LinkError::Over),
                    Err(ReadError::ConnectionLost(e)) => return Err(LinkError::Lost(e)),
                    Err(_) => return Err(LinkError::Over),
                }
            }
        }
    }

    /// Sends a message. Cancel-safe: the rest goes with the next one.
    pub(super) async fn tell(&mut self, message: &Message) -> Result<(), LinkError> {
        self.out.put(message);
        match timeout(ROOM, self.out.flush(&mut self.send)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.connection.close_reason().map_or(LinkError::Over, LinkError::Lost)),
            Err(_) => Err(LinkError::Full),
        }
    }

    /// Sends a datagram, which may be lost. False: it surely is.
    pub(super) fn send(&self, bytes: Vec<u8>) -> bool {
        let has_room = self.connection.datagram_send_buffer_space() >= bytes.len();
        self.connection.send_datagram(bytes.into()).is_ok() && has_room
    }

    /// Says that no message follows, waits at most `patience` until the other end has them all, and hangs up.
    pub(super) async fn close(mut self, patience: Duration) {
        let _ = self.send.finish();
        let _ = timeout(patience, self.send.stopped()).await;
        self.connection.close(0u8.into(), b"");
    }
}
