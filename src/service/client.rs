//! The other end: publishing to a daemon and subscribing from one.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::foreign::Foreign;
use super::outbox::Outbox;
use super::tls::{ClientTls, Socket};
use crate::session::{
    BundleError, ClientSession, Close, CodingError, Control, Hello, Message, PackedBundle, Reason, Wire,
};
use crate::token::TokenModel;
use crate::units::StageCount;
use crate::wire::{Framer, WireError};

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a server may be silent by default. It says something every 15 s or more often.
const PATIENCE: Duration = Duration::from_secs(45);

/// Why a session with a server failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The connection failed.
    #[error("{address}: {source}")]
    Io {
        /// The server.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The server said what we do not understand.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A coded bundle that cannot be taken.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// A message of a fixed size that cannot hold a bundle.
    #[error(
        "a message of {bytes} bytes cannot hold one stage of {frames} frames: a higher rate or longer bundles are needed"
    )]
    Small {
        /// The size.
        bytes: usize,
        /// Frames of the bundle.
        frames: u8,
    },
    /// The server closed the session.
    #[error("the server closed the session: {0}")]
    Closed(Close),
    /// The server hung up without a word.
    #[error("{0}: the connection was cut")]
    Cut(String),
    /// The server does not answer, or vanished.
    #[error("{address}: no answer within {patience:?}")]
    Silent {
        /// The server.
        address: String,
        /// How long we waited.
        patience: Duration,
    },
}

/// How a client reaches a server.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// TLS; None is plain TCP.
    pub tls: Option<ClientTls>,
    /// How long the server may be silent before it is given up.
    pub patience: Duration,
    /// Code bundles with this token model if the server agrees, else they are packed: see [`Client::is_coded`].
    pub tokens: Option<Arc<TokenModel>>,
    /// Newer forms of messages, used if the server has them as well.
    pub wire: Wire,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { tls: None, patience: PATIENCE, tokens: None, wire: Wire::ALL }
    }
}

/// A session with a server.
///
/// A server that vanishes is noticed: it is given up when it said nothing for as long as the options allow. It answers a
/// publisher that speaks, so a publisher should say something (see [`Client::sign_of_life`]) every few seconds.
pub struct Client {
    reader: Inbound,
    writer: WriteHalf<Socket>,
    out: Outbox,
    patience: Duration,
    /// The oldest thing we said that the server said nothing after.
    unanswered: Option<Instant>,
    session: ClientSession,
    skipped: u64,
    sent: u64,
    /// Frames of a bundle that the server says our listeners want.
    bundle_frames: Option<u8>,
}

struct Inbound {
    socket: ReadHalf<Socket>,
    address: String,
    framer: Framer,
    bytes: Vec<u8>,
    received: u64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.reader.address).finish_non_exhaustive()
    }
}

impl Inbound {
    /// The next message. Cancel-safe.
    async fn receive(&mut self) -> Result<Message, ClientError> {
        loop {
            if let Some(message) = self.framer.next()? {
                return Ok(message);
            }
            let read = self.socket.read(&mut self.bytes).await;
            match read.map_err(|source| ClientError::Io { address: self.address.clone(), source })? {
                0 => return Err(ClientError::Cut(self.address.clone())),
                n => {
                    if self.received == 0
                        && let Some(foreign) = Foreign::of_messages(&self.bytes[..n])
                    {
                        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, foreign.to_server());
                        return Err(ClientError::Io { address: self.address.clone(), source });
                    }
                    self.received += n as u64;
                    self.framer.push(&self.bytes[..n]);
                }
            }
        }
    }

    /// A message that has arrived already.
    async fn arrived(&mut self) -> Option<Result<Message, ClientError>> {
        tokio::select! {
            biased;
            message = self.receive() => Some(message),
            () = std::future::ready(()) => None,
        }
    }
}

impl From<BundleError> for ClientError {
    fn from(e: BundleError) -> Self {
        match e {
            BundleError::Coding(e) => e.into(),
            BundleError::Range(e) => WireError::from(e).into(),
            BundleError::Bitstream(_) => WireError::Missing("codes").into(),
            BundleError::NotAgreed => WireError::Missing("a token model that was agreed on").into(),
        }
    }
}

impl Client {
    /// Connects by plain TCP and shakes hands.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it refused.
    pub async fn connect(address: &str, hello: Hello) -> Result<Self, ClientError> {
        Self::connect_with(address, hello, &ClientOptions::default()).await
    }

    /// Connects and shakes hands.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it refused.
    pub async fn connect_with(address: &str, hello: Hello, options: &ClientOptions) -> Result<Self, ClientError> {
        let io = |source| ClientError::Io { address: address.to_owned(), source };
        let answer = ANSWER.min(options.patience);
        let silent = |_| ClientError::Silent { address: address.to_owned(), patience: answer };
        let socket = timeout(answer, TcpStream::connect(address)).await.map_err(silent)?.map_err(io)?;
        socket.set_nodelay(true).map_err(io)?;
        let socket = match &options.tls {
            None => Box::new(socket),
            Some(tls) => timeout(answer, tls.connect(address, socket)).await.map_err(silent)?.map_err(io)?,
        };
        let (socket, writer) = tokio::io::split(socket);
        let (address, framer, bytes) = (address.to_owned(), Framer::default(), vec![0; 4 << 10]);
        let mut client = Self {
            reader: Inbound { socket, address, framer, bytes, received: 0 },
            writer,
            out: Outbox::default(),
            patience: options.patience,
            unanswered: None,
            session: ClientSession::new(options.tokens.clone(), options.wire),
            skipped: 0,
            sent: 0,
            bundle_frames: None,
        };
        client.tell(&client.session.greet(hello)).await?;
        match timeout(answer, client.reader.receive()).await.map_err(silent)?? {
            Message::HelloAck { coding, wire, .. } => {
                client.unanswered = None;
                client.session.agree(coding, wire);
                Ok(client)
            }
            Message::Close(close) => Err(ClientError::Closed(close)),
            _ => Err(WireError::Missing("HelloAck").into()),
        }
    }

    fn silent(&self) -> ClientError {
        ClientError::Silent { address: self.reader.address.clone(), patience: self.patience }
    }

    /// The next message, if it comes in time. Cancel-safe.
    async fn receive(&mut self) -> Result<Message, ClientError> {
        match timeout(self.patience, self.reader.receive()).await {
            Ok(message) => message,
            Err(_) => Err(self.silent()),
        }
    }

    /// Whether the server agreed to coded bundles.
    pub fn is_coded(&self) -> bool {
        self.session.is_coded()
    }

    /// Newer forms of messages that are used.
    pub fn wire(&self) -> Wire {
        self.session.wire()
    }

    /// Most frames of bundles that all who listen want, as the server said last; None if it has not.
    pub fn bundle_frames(&self) -> Option<u8> {
        self.bundle_frames
    }

    /// Bytes of messages sent so far, length prefixes and padding included.
    pub fn bytes_sent(&self) -> u64 {
        self.sent
    }

    /// Frames that the server left out so far because we took what it sent too slowly.
    pub fn frames_skipped(&self) -> u64 {
        self.skipped
    }

    /// Bytes of messages received so far, length prefixes included.
    pub fn bytes_received(&self) -> u64 {
        self.reader.received
    }

    /// Sends any message as it is, right or wrong; for tests of servers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn send_raw(&mut self, message: &Message) -> Result<(), ClientError> {
        self.tell(message).await
    }

    /// Publishes a bundle. Waits while the server holds us to real time.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it closed the session.
    pub async fn publish(&mut self, bundle: PackedBundle) -> Result<(), ClientError> {
        for bundle in self.session.parts(bundle)? {
            let message = self.session.writer().message(bundle)?;
            self.tell(&message).await?;
        }
        Ok(())
    }

    /// Whether frames of a bundle may have stage counts of their own; otherwise graded bundles are published in parts.
    pub fn is_graded(&self) -> bool {
        self.session.is_graded()
    }

    /// Publishes a bundle as a message of exactly `bytes` bytes: stages that do not fit are left out, and what is then missing is
    /// padded. Gives the stages that were sent, and the bytes without the padding.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Small`] if not even one stage fits.
    pub async fn publish_padded(
        &mut self,
        bundle: &PackedBundle,
        bytes: usize,
    ) -> Result<(StageCount, usize), ClientError> {
        while let Some(said) = self.reader.arrived().await {
            self.heard(said)?;
        }
        for stages in (1..=bundle.stages.value()).rev().filter_map(|n| StageCount::new(n).ok()) {
            let bundle = bundle.limited(stages).map_err(BundleError::from)?;
            // The context goes on only from what was really sent.
            let mut tried = self.session.writer().clone();
            let message = tried.message(bundle)?;
            if let Some(length) = self.out.put_padded(&message, bytes) {
                *self.session.writer() = tried;
                self.send_out().await?;
                return Ok((stages, length));
            }
        }
        Err(ClientError::Small { bytes, frames: bundle.frames })
    }

    /// Sends, and meanwhile hears what the server says: its last words say more than a broken pipe.
    async fn tell(&mut self, message: &Message) -> Result<(), ClientError> {
        // Before judging its silence: what has it said?
        while let Some(said) = self.reader.arrived().await {
            self.heard(said)?;
        }
        self.out.put(message);
        self.send_out().await
    }

    /// Sends what is in the outbox, and hears what the server says meanwhile.
    async fn send_out(&mut self) -> Result<(), ClientError> {
        self.sent += self.out.waiting() as u64;
        loop {
            let deadline = *self.unanswered.get_or_insert_with(Instant::now) + self.patience;
            let said = tokio::select! {
                biased;
                // A server that vanished still lets us fill what the system holds for it.
                () = sleep_until(deadline) => return Err(self.silent()),
                sent = self.out.flush(&mut self.writer) => match sent {
                    Ok(()) => return Ok(()),
                    Err(source) => {
                        let last = timeout(Duration::from_secs(1), self.reader.receive()).await;
                        return Err(match last {
                            Ok(Ok(Message::Close(close))) => ClientError::Closed(close),
                            _ => ClientError::Io { address: self.reader.address.clone(), source },
                        });
                    }
                },
                said = self.reader.receive() => said,
            };
            self.heard(said)?;
        }
    }

    fn heard(&mut self, said: Result<Message, ClientError>) -> Result<(), ClientError> {
        match said? {
            Message::Close(close) => Err(ClientError::Closed(close)),
            said => {
                if let Message::Control(Control { bundle_frames: Some(frames), .. }) = said {
                    self.bundle_frames = Some(frames);
                }
                self.unanswered = None;
                Ok(())
            }
        }
    }

    /// Tells the server that we are still here, when there is nothing else to say.
    ///
    /// # Errors
    /// [`ClientError`], with the server's reason if it closed the session.
    pub async fn sign_of_life(&mut self) -> Result<(), ClientError> {
        self.tell(&Message::Control(Control::default())).await
    }

    /// The next bundle; None when the stream ended.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<PackedBundle>, ClientError> {
        loop {
            let message = self.receive().await?;
            let other = match self.session.bundle(message)? {
                Ok(bundle) => return Ok(Some(bundle)),
                Err(other) => other,
            };
            match other {
                Message::Close(c) if matches!(c.reason, Reason::StreamEnded | Reason::ShuttingDown | Reason::Done) => {
                    return Ok(None);
                }
                Message::Close(close) => return Err(ClientError::Closed(close)),
                Message::Control(control) => self.skipped = self.skipped.saturating_add(control.skipped),
                _ => {}
            }
        }
    }

    /// Asks for at most this many stages from the next bundle on.
    ///
    /// # Errors
    /// [`ClientError::Io`].
    pub async fn set_stages(&mut self, stages: StageCount) -> Result<(), ClientError> {
        self.out.put(&Message::Control(Control { stages: Some(stages), ..Control::default() }));
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        match timeout(self.patience, self.out.flush(&mut self.writer)).await {
            Ok(sent) => sent.map_err(|source| ClientError::Io { address: self.reader.address.clone(), source }),
            Err(_) => Err(self.silent()),
        }
    }

    /// Ends the session and waits until the server has taken everything.
    ///
    /// # Errors
    /// [`ClientError`]; a server that shut down or hung up before it said so may have taken less.
    pub async fn finish(mut self) -> Result<(), ClientError> {
        self.tell(&Message::Close(Close::new(Reason::Done, ""))).await?;
        loop {
            match self.receive().await {
                Ok(Message::Close(c)) if c.reason == Reason::Done => return Ok(()),
                Ok(Message::Close(close)) => return Err(ClientError::Closed(close)),
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
    }
}
