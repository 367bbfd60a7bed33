//! A client's side of a session with a daemon: bytes of its messages in and out, whatever carries them.

use std::sync::Arc;

use codec::session::{
    Close, Control, Hello, Message, PackedBundle, Reason, SessionDecoder, SessionEncoder, ThinReader, ThinWriter,
    TokenTag, Wire,
};
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

/// What was agreed on.
#[derive(Debug)]
struct Agreed {
    wire: Wire,
    writer: ThinWriter,
    reader: ThinReader,
    coder: Option<(SessionEncoder, SessionDecoder)>,
}

/// One session.
#[derive(Debug)]
pub struct Dialog {
    framer: Framer,
    tokens: Option<Arc<TokenModel>>,
    agreed: Option<Agreed>,
    sequence: u64,
    /// Bytes that are to be sent.
    out: Vec<u8>,
}

impl Dialog {
    /// Says Hello, and that bundles may be coded if the model here can.
    pub fn new(mut hello: Hello, tokens: Option<&Arc<TokenModel>>) -> Self {
        hello.coding = tokens.map(TokenTag::of);
        hello.wire = Wire::ALL;
        let mut out = Vec::new();
        encode(&Message::Hello(hello), &mut out);
        Self { framer: Framer::default(), tokens: tokens.cloned(), agreed: None, sequence: 0, out }
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
                self.agree(coding, wire);
                return Ok(Some(Heard::Opened));
            }
            Message::Control(Control { bundle_frames: Some(frames), .. }) => return Ok(Some(Heard::Frames(frames))),
            Message::Control(Control { skipped, .. }) => return Ok((skipped > 0).then_some(Heard::Skipped(skipped))),
            _ => {}
        }
        let Some(agreed) = &mut self.agreed else { return Err(failed("the daemon's first word is no HelloAck")) };
        match agreed.reader.whole(message).map_err(failed)? {
            Message::Bundle { bundle, .. } => {
                if let Some((_, decoder)) = agreed.coder.as_mut().filter(|_| bundle.is_background()) {
                    decoder.silence();
                }
                Ok(Some(Heard::Bundle(bundle)))
            }
            Message::Coded { bundle, checked, .. } => {
                let (_, decoder) = agreed.coder.as_mut().ok_or_else(|| failed("a coded bundle was not agreed on"))?;
                Ok(Some(Heard::Bundle(decoder.decode(&bundle, checked).map_err(failed)?)))
            }
            _ => Ok(None),
        }
    }

    fn agree(&mut self, coding: Option<[u8; 8]>, wire: Wire) {
        let tokens = self.tokens.as_ref().filter(|t| coding == Some(t.id()));
        let wire = wire.common(Wire::ALL);
        self.agreed = Some(Agreed {
            wire,
            writer: ThinWriter::default(),
            reader: ThinReader::new(tokens.is_some(), wire),
            coder: tokens
                .map(|t| (SessionEncoder::new(Arc::clone(t)).on(wire), SessionDecoder::new(Arc::clone(t)).on(wire))),
        });
    }

    /// Newer forms of messages that were agreed on.
    pub fn wire(&self) -> Wire {
        self.agreed.as_ref().map(|a| a.wire).unwrap_or_default()
    }

    /// Whether bundles are coded.
    pub fn is_coded(&self) -> bool {
        self.agreed.as_ref().is_some_and(|a| a.coder.is_some())
    }

    /// Whether frames of a bundle may have stage counts of their own.
    pub fn is_graded(&self) -> bool {
        if self.is_coded() { self.wire().is_graded_when_coded() } else { self.wire().graded }
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
        let parts = if self.is_graded() { vec![bundle] } else { bundle.plain_runs().map_err(failed)? };
        let before = self.out.len();
        for bundle in parts {
            let Some(agreed) = &mut self.agreed else { return Err(failed("the session is not open")) };
            let sequence = self.sequence;
            self.sequence += 1;
            let message = match &mut agreed.coder {
                Some((encoder, _)) if bundle.is_background() => {
                    encoder.silence();
                    Message::Bundle { sequence, bundle }
                }
                Some((encoder, _)) => {
                    let (bundle, checked) = encoder.encode(&bundle).map_err(failed)?;
                    Message::Coded { sequence, bundle, checked }
                }
                None => Message::Bundle { sequence, bundle },
            };
            let message = if agreed.wire.thin { agreed.writer.thin(message) } else { message };
            encode(&message, &mut self.out);
        }
        Ok(self.out.len() - before)
    }
}
