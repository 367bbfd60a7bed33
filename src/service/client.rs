//! The other end: publishing to a daemon and subscribing from one.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::session::{
    Close, CodingError, Control, Hello, Message, PackedBundle, Reason, SessionDecoder, SessionEncoder, TokenTag,
};
use crate::token::TokenModel;
use crate::units::StageCount;
use crate::wire::{Framer, WireError, encode};

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a session with a server failed.
#[derive(Debug, thiserror::Error)]
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
    /// The server closed the session.
    #[error("the server closed the session: {0}")]
    Closed(Close),
    /// The server hung up without a word.
    #[error("{0}: the connection was cut")]
    Cut(String),
    /// The server does not answer.
    #[error("{address}: no answer within {patience:?}")]
    Silent {
        /// The server.
        address: String,
        /// How long we waited.
        patience: Duration,
    },
}

/// A session with a server.
#[derive(Debug)]
pub struct Client {
    socket: TcpStream,
    address: String,
    framer: Framer,
    bytes: Vec<u8>,
    sequence: u64,
    received: u64,
    coder: Option<Coder>,
}

/// Both directions of a coded session.
#[derive(Debug)]
struct Coder {
    out: SessionEncoder,
    back: SessionDecoder,
}

impl Client {
    /// Connects and shakes hands.
    ///
    /// Errors: [`ClientError`], with the server's reason if it refused.
    pub async fn connect(address: &str, hello: Hello) -> Result<Self, ClientError> {
        Self::connect_coded(address, hello, None).await
    }

    /// The same; bundles are coded with `tokens` if the server agrees, else packed: see [`Client::is_coded`].
    ///
    /// Errors: [`ClientError`], with the server's reason if it refused.
    pub async fn connect_coded(
        address: &str,
        mut hello: Hello,
        tokens: Option<Arc<TokenModel>>,
    ) -> Result<Self, ClientError> {
        hello.coding = tokens.as_ref().map(TokenTag::of);
        let io = |source| ClientError::Io { address: address.to_owned(), source };
        let silent = |_| ClientError::Silent { address: address.to_owned(), patience: ANSWER };
        let socket = timeout(ANSWER, TcpStream::connect(address)).await.map_err(silent)?.map_err(io)?;
        socket.set_nodelay(true).map_err(io)?;
        let mut client = Self {
            socket,
            address: address.to_owned(),
            framer: Framer::default(),
            bytes: vec![0; 4 << 10],
            sequence: 0,
            received: 0,
            coder: None,
        };
        client.send(&Message::Hello(hello)).await?;
        match timeout(ANSWER, client.receive()).await.map_err(silent)?? {
            Message::HelloAck { coding, .. } => {
                let agreed = tokens.filter(|t| coding == Some(t.id()));
                client.coder =
                    agreed.map(|t| Coder { out: SessionEncoder::new(Arc::clone(&t)), back: SessionDecoder::new(t) });
                Ok(client)
            }
            Message::Close(close) => Err(ClientError::Closed(close)),
            _ => Err(WireError::Missing("HelloAck").into()),
        }
    }

    async fn send(&mut self, message: &Message) -> Result<(), ClientError> {
        let mut out = Vec::new();
        encode(message, &mut out);
        let sent = self.socket.write_all(&out).await;
        sent.map_err(|source| ClientError::Io { address: self.address.clone(), source })
    }

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
                    self.received += n as u64;
                    self.framer.push(&self.bytes[..n]);
                }
            }
        }
    }

    /// Whether the server agreed to coded bundles.
    pub fn is_coded(&self) -> bool {
        self.coder.is_some()
    }

    /// Bytes of messages received so far, length prefixes included.
    pub fn bytes_received(&self) -> u64 {
        self.received
    }

    /// Sends any message as it is, right or wrong; for tests of servers.
    ///
    /// Errors: [`ClientError::Io`].
    pub async fn send_raw(&mut self, message: &Message) -> Result<(), ClientError> {
        self.send(message).await
    }

    /// Publishes a bundle. Waits while the server holds us to real time.
    ///
    /// Errors: [`ClientError`], with the server's reason if it closed the session.
    pub async fn publish(&mut self, bundle: PackedBundle) -> Result<(), ClientError> {
        let sequence = self.sequence;
        let message = match &mut self.coder {
            Some(coder) => Message::Coded { sequence, bundle: coder.out.encode(&bundle)? },
            None => Message::Bundle { sequence, bundle },
        };
        self.sequence += 1;
        self.tell(&message).await
    }

    /// Sends; if that fails, the server's last words are the error.
    async fn tell(&mut self, message: &Message) -> Result<(), ClientError> {
        match self.send(message).await {
            Ok(()) => Ok(()),
            // The server's last words say more than the broken pipe.
            Err(e) => match timeout(Duration::from_secs(1), self.receive()).await {
                Ok(Ok(Message::Close(close))) => Err(ClientError::Closed(close)),
                _ => Err(e),
            },
        }
    }

    /// Tells the server that we are still here, when there is nothing else to say.
    ///
    /// Errors: [`ClientError`], with the server's reason if it closed the session.
    pub async fn sign_of_life(&mut self) -> Result<(), ClientError> {
        self.tell(&Message::Control(Control { stages: None })).await
    }

    /// The next bundle; None when the stream ended.
    ///
    /// Errors: [`ClientError`].
    pub async fn next(&mut self) -> Result<Option<PackedBundle>, ClientError> {
        loop {
            match self.receive().await? {
                Message::Bundle { bundle, .. } => return Ok(Some(bundle)),
                Message::Coded { bundle, .. } => {
                    let coder = self.coder.as_mut().ok_or(WireError::Missing("a token model that was agreed on"))?;
                    return Ok(Some(coder.back.decode(&bundle)?));
                }
                Message::Close(c) if matches!(c.reason, Reason::StreamEnded | Reason::ShuttingDown | Reason::Done) => {
                    return Ok(None);
                }
                Message::Close(close) => return Err(ClientError::Closed(close)),
                Message::Control(_) | Message::Hello(_) | Message::HelloAck { .. } => {}
            }
        }
    }

    /// Asks for at most this many stages from the next bundle on.
    ///
    /// Errors: [`ClientError::Io`].
    pub async fn set_stages(&mut self, stages: StageCount) -> Result<(), ClientError> {
        self.send(&Message::Control(Control { stages: Some(stages) })).await
    }

    /// Ends the session and waits until the server has taken everything.
    ///
    /// Errors: [`ClientError`]; a server that shut down or hung up before it said so may have taken less.
    pub async fn finish(mut self) -> Result<(), ClientError> {
        self.send(&Message::Close(Close::new(Reason::Done, ""))).await?;
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
