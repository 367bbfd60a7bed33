//! A client's side of a session with a daemon: bytes of its messages in and out, whatever carries them.

use std::sync::Arc;

use codec::session::{ClientSession, Close, Control, Hello, Message, PackedBundle, Reason, Wire};
use codec::wire::{Framer, encode};
use codec::{StageCount, TokenModel};

/// What the daemon said.
#[derive(Debug)]
pub enum Heard {
    /// The session is open.
    Opened,
    /// The next bundle of the stream.
    Bundle(PackedBundle),
    /// So many frames were left out, because we do not keep up.
    Skipped(u64),
    /// Our listeners want bundles of at most so many frames.
    Frames(u8),
}

/// Why a session is over.
#[derive(Debug)]
pub enum End {
    /// The stream ended, or we asked for the end.
    Done(String),
    /// Something went wrong; for people.
    Failed(String),
}

/// An error of the codec ends the session.
pub fn failed(error: impl std::fmt::Display) -> End {
    End::Failed(error.to_string())
}

/// One session.
#[derive(Debug)]
pub struct Dialog {
    framer: Framer,
    session: ClientSession,
    /// The daemon has agreed.
    open: bool,
    /// Bytes that are to be sent.
    out: Vec<u8>,
}

impl Dialog {
    /// Says Hello, and that bundles may be coded if the model here can.
    pub fn new(hello: Hello, tokens: Option<&Arc<TokenModel>>) -> Self {
        let session = ClientSession::new(tokens.cloned(), Wire::ALL);
        let mut out = Vec::new();
        encode(&session.greet(hello), &mut out);
        Self { framer: Framer::default(), session, open: false, out }
    }

    /// What is to be sent.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Takes bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.framer.push(bytes);
    }

    /// What they say; None if more are needed.
    ///
    /// # Errors
    /// [`End`]: the session is over.
    pub fn said(&mut self) -> Result<Option<Heard>, End> {
        while let Some(message) = self.framer.next().map_err(failed)? {
            if let Some(heard) = self.heard(message)? {
                return Ok(Some(heard));
            }
        }
        Ok(None)
    }

    fn heard(&mut self, message: Message) -> Result<Option<Heard>, End> {
        match message {
            Message::Close(Close { reason, text }) => {
                return Err(match reason {
                    Reason::StreamEnded => End::Done("The stream ended".to_owned()),
                    Reason::Done => End::Done("Done".to_owned()),
                    Reason::ShuttingDown => End::Done("The daemon is shutting down".to_owned()),
                    _ => End::Failed(text),
                });
            }
            Message::HelloAck { coding, wire, .. } => {
                self.session.agree(coding, wire);
                self.open = true;
                return Ok(Some(Heard::Opened));
            }
            Message::Control(Control { bundle_frames: Some(frames), .. }) => return Ok(Some(Heard::Frames(frames))),
            Message::Control(Control { skipped, .. }) => return Ok((skipped > 0).then_some(Heard::Skipped(skipped))),
            _ => {}
        }
        if !self.open {
            return Err(failed("the daemon's first word is no HelloAck"));
        }
        Ok(self.session.bundle(message).map_err(failed)?.ok().map(Heard::Bundle))
    }

    /// What was agreed on.
    pub fn session(&self) -> &ClientSession {
        &self.session
    }

    /// Asks for at most so many stages.
    pub fn want(&mut self, stages: StageCount) {
        encode(&Message::Control(Control { stages: Some(stages), ..Control::default() }), &mut self.out);
    }

    /// Says that we are still here.
    pub fn sign_of_life(&mut self) {
        encode(&Message::Control(Control::default()), &mut self.out);
    }

    /// Says that nothing more will come.
    pub fn finish(&mut self) {
        encode(&Message::Close(Close::new(Reason::Done, "")), &mut self.out);
    }

    /// Sends a bundle, in parts if frames must not differ; gives the bytes that it takes.
    ///
    /// # Errors
    /// [`End`] if it cannot be coded, or the session is not open.
    pub fn publish(&mut self, bundle: PackedBundle) -> Result<usize, End> {
        if !self.open {
            return Err(failed("the session is not open"));
        }
        let before = self.out.len();
        for bundle in self.session.parts(bundle).map_err(failed)? {
            encode(&self.session.writer().message(bundle).map_err(failed)?, &mut self.out);
        }
        Ok(self.out.len() - before)
    }
}
