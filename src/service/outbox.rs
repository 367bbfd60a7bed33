//! One message on its way out, of which a stalled peer may have taken a part.

use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::session::Message;
use crate::wire::{encode, encode_padded};

/// The message being sent. Bytes that follow a part of it would be taken for its rest, so the rest is remembered.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Adds a message behind what is not sent yet.
    pub(super) fn put(&mut self, message: &Message) {
        self.bytes.drain(..self.sent);
        self.sent = 0;
        encode(message, &mut self.bytes);
    }

    /// Adds a message of exactly `bytes` bytes, of which the given number is not padding; None if it does not fit.
    pub(super) fn put_padded(&mut self, message: &Message, bytes: usize) -> Option<usize> {
        self.bytes.drain(..self.sent);
        self.sent = 0;
        encode_padded(message, bytes, &mut self.bytes)
    }

    /// Bytes that are not sent yet.
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends everything. Cancel-safe: a later call goes on where this one was stopped.
    pub(super) async fn flush(&mut self, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        while self.sent < self.bytes.len() {
            match to.write(&self.bytes[self.sent..]).await? {
                0 => return Err(std::io::ErrorKind::WriteZero.into()),
                n => self.sent += n,
            }
        }
        // With TLS, what was taken may not have left yet.
        to.flush().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::*;
    use crate::bitstream::Form;
    use crate::session::{Close, PackedBundle, Reason};
    use crate::units::StageCount;
    use crate::wire::Framer;

    #[tokio::test(start_paused = true)]
    async fn last_words_follow_a_whole_message() {
        let stages = StageCount::new(6).unwrap();
        let bundle = PackedBundle { first_frame: 0, frames: 5, stages, form: Form::Plain, payload: vec![0xA5; 38] };
        let bundle = Message::Bundle { sequence: 0, bundle };
        let close = Message::Close(Close::new(Reason::SlowConsumer, "a write took more than 1s"));
        // The peer's window takes a part of the message only, wherever that ends.
        for window in 1..40 {
            let (mut ours, mut theirs) = tokio::io::duplex(window);
            let mut outbox = Outbox::default();
            outbox.put(&bundle);
            assert!(timeout(Duration::from_secs(1), outbox.flush(&mut ours)).await.is_err());
            outbox.put(&close);
            let reading = tokio::spawn(async move {
                let mut all = Vec::new();
                theirs.read_to_end(&mut all).await.unwrap();
                all
            });
            outbox.flush(&mut ours).await.unwrap();
            drop(ours);
            let mut framer = Framer::default();
            framer.push(&reading.await.unwrap());
            let got: Vec<_> = std::iter::from_fn(|| framer.next().unwrap()).collect();
            assert_eq!(got, [bundle.clone(), close.clone()]);
        }
    }
}
