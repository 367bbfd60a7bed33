//! The protocol of codes in the binary messages of a WebSocket, as one stream of bytes: where messages begin means nothing.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Bytes, Message};

use crate::service::access::Flood;
use crate::service::tls::Socket;

/// Longest message of a peer, bytes; what is published in one is some hundred.
const MAX_MESSAGE: usize = 64 << 10;

/// A WebSocket that is read and written as a socket is.
pub(super) struct Channel {
    socket: WebSocketStream<Socket>,
    /// The rest of the message that is being read.
    rest: Bytes,
    /// Messages that carry nothing.
    flood: Flood,
}

impl Channel {
    /// From the end of the handshake on; `read` was read already.
    pub(super) async fn new(socket: Socket, read: Vec<u8>) -> Self {
        let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocketStream::from_partially_read(socket, read, Role::Server, Some(config)).await;
        Self { socket, rest: Bytes::new(), flood: Flood::new(Instant::now()) }
    }

    /// The bytes of a message; none of one that carries none.
    fn carried(&mut self, message: Message) -> Result<Bytes> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Ping(_) | Message::Pong(_) => Bytes::new(),
            _ => return Err(Error::new(ErrorKind::InvalidData, "binary messages only")),
        };
        if bytes.is_empty() && self.flood.message(Instant::now()).is_err() {
            return Err(Error::new(ErrorKind::InvalidData, "a flood of empty messages"));
        }
        Ok(bytes)
    }
}

fn broken(e: tungstenite::Error) -> Error {
    match e {
        tungstenite::Error::Io(e) => e,
        e => Error::new(ErrorKind::InvalidData, e),
    }
}

impl AsyncRead for Channel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        while self.rest.is_empty() {
            self.rest = match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(message)) => self.carried(message)?,
                Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(e)) => return Poll::Ready(Err(broken(e))),
            };
        }
        let taken = self.rest.len().min(to.remaining());
        to.put_slice(&self.rest.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    /// One message of all the bytes; they have left when they are flushed.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(broken)?;
        let message = Message::binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(broken)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Both ends of a connection: the peer's, and ours as a stream of bytes.
    async fn ends() -> (WebSocketStream<tokio::io::DuplexStream>, Channel) {
        let (theirs, ours) = tokio::io::duplex(64);
        let theirs = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        (theirs, Channel::new(Box::new(ours), Vec::new()).await)
    }

    #[tokio::test]
    async fn bytes_are_one_stream_whatever_the_messages() {
        let (mut theirs, mut ours) = ends().await;
        let sent: Vec<u8> = (0..=255).collect();
        let expected = sent.clone();
        let peer = tokio::spawn(async move {
            for part in sent.chunks(37) {
                theirs.send(Message::binary(Bytes::copy_from_slice(part))).await.unwrap();
                theirs.send(Message::Ping(Bytes::new())).await.unwrap();
            }
            let mut heard = Vec::new();
            while heard.len() < 200 {
                if let Message::Binary(bytes) = theirs.next().await.unwrap().unwrap() {
                    heard.extend_from_slice(&bytes);
                }
            }
            theirs.close(None).await.unwrap();
            heard
        });
        let mut got = vec![0; 256];
        for part in got.chunks_mut(50) {
            ours.read_exact(part).await.unwrap();
        }
        assert_eq!(got, expected);
        for part in expected[..200].chunks(90) {
            ours.write_all(part).await.unwrap();
            ours.flush().await.unwrap();
        }
        assert_eq!(ours.read(&mut [0; 9]).await.unwrap(), 0, "the peer has closed");
        assert_eq!(peer.await.unwrap(), expected[..200]);
    }

    #[tokio::test]
    async fn text_and_floods_of_nothing_are_errors() {
        for (message, count) in [(Message::text("{}"), 1), (Message::binary(Bytes::new()), 1_000)] {
            let (mut theirs, mut ours) = ends().await;
            let peer = tokio::spawn(async move {
                for _ in 0..count {
                    if theirs.send(message.clone()).await.is_err() {
                        break;
                    }
                }
                theirs
            });
            let error = ours.read(&mut [0; 9]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            drop(ours);
            peer.await.unwrap();
        }
    }
}
