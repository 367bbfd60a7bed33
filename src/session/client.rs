//! The client's side of a session: what was agreed on, bundles to messages, and messages to bundles.

use std::sync::Arc;

use super::{CodingError, Hello, Message, SessionDecoder, SessionEncoder, ThinReader, ThinWriter, TokenTag, Wire};
use crate::bitstream::{BitstreamError, PackedBundle};
use crate::token::TokenModel;
use crate::units::OutOfRange;

/// Why a bundle cannot be sent, or what came is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The coder.
    #[error(transparent)]
    Coding(#[from] CodingError),
    /// A thin bundle that cannot be.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// Codes that do not fit their bundle.
    #[error(transparent)]
    Bitstream(#[from] BitstreamError),
    /// A coded bundle where packed ones were agreed on.
    #[error("a coded bundle, but no token model was agreed on")]
    NotAgreed,
}

/// Bundles to messages. A copy can be tried, and taken only if its message is sent.
#[derive(Debug, Clone)]
pub struct BundleWriter {
    wire: Wire,
    coder: Option<SessionEncoder>,
    thin: ThinWriter,
    sequence: u64,
}

impl BundleWriter {
    /// The message of a bundle, whose frames must be of one kind unless [`ClientSession::is_graded`].
    ///
    /// # Errors
    /// [`BundleError::Coding`].
    pub fn message(&mut self, bundle: PackedBundle) -> Result<Message, BundleError> {
        let sequence = self.sequence;
        let message = match &mut self.coder {
            Some(coder) if bundle.is_background() => {
                coder.silence();
                Message::Bundle { sequence, bundle }
            }
            Some(coder) => {
                let (bundle, checked) = coder.encode(&bundle)?;
                Message::Coded { sequence, bundle, checked }
            }
            None => Message::Bundle { sequence, bundle },
        };
        self.sequence += 1;
        Ok(if self.wire.thin { self.thin.thin(message) } else { message })
    }
}

/// One session, from Hello on.
#[derive(Debug)]
pub struct ClientSession {
    offered: Wire,
    tokens: Option<Arc<TokenModel>>,
    writer: BundleWriter,
    reader: ThinReader,
    decoder: Option<SessionDecoder>,
}

impl ClientSession {
    /// Before anything was agreed on; with `tokens` bundles are coded if the server agrees.
    pub fn new(tokens: Option<Arc<TokenModel>>, offered: Wire) -> Self {
        let wire = Wire::default();
        let writer = BundleWriter { wire, coder: None, thin: ThinWriter::default(), sequence: 0 };
        Self { offered, tokens, writer, reader: ThinReader::new(false, wire), decoder: None }
    }

    /// The first message.
    pub fn greet(&self, mut hello: Hello) -> Message {
        hello.coding = self.tokens.as_ref().map(TokenTag::of);
        hello.wire = self.offered;
        Message::Hello(hello)
    }

    /// Takes what the server's `HelloAck` says of token model and forms.
    pub fn agree(&mut self, coding: Option<[u8; 8]>, wire: Wire) {
        let wire = wire.common(self.offered);
        let tokens = self.tokens.as_ref().filter(|t| coding == Some(t.id()));
        self.reader = ThinReader::new(tokens.is_some(), wire);
        self.writer.wire = wire;
        self.writer.coder = tokens.map(|t| SessionEncoder::new(Arc::clone(t)).on(wire));
        self.decoder = tokens.map(|t| SessionDecoder::new(Arc::clone(t)).on(wire));
    }

    /// Newer forms of messages that are used.
    pub fn wire(&self) -> Wire {
        self.writer.wire
    }

    /// Whether bundles are coded.
    pub fn is_coded(&self) -> bool {
        self.decoder.is_some()
    }

    /// Whether frames of a bundle may have stage counts of their own; otherwise graded bundles are sent in parts.
    pub fn is_graded(&self) -> bool {
        if self.is_coded() { self.wire().is_graded_when_coded() } else { self.wire().graded }
    }

    /// What makes messages of bundles.
    pub fn writer(&mut self) -> &mut BundleWriter {
        &mut self.writer
    }

    /// A bundle as it is sent: in parts if its frames must not differ.
    ///
    /// # Errors
    /// [`BundleError::Bitstream`].
    pub fn parts(&self, bundle: PackedBundle) -> Result<Vec<PackedBundle>, BundleError> {
        if self.is_graded() { Ok(vec![bundle]) } else { Ok(bundle.plain_runs()?) }
    }

    /// The bundle in a message, or the message if it is another.
    ///
    /// # Errors
    /// [`BundleError`]; nothing sensible can follow in this session.
    pub fn bundle(&mut self, message: Message) -> Result<Result<PackedBundle, Message>, BundleError> {
        match self.reader.whole(message)? {
            Message::Bundle { bundle, .. } => {
                if let Some(decoder) = self.decoder.as_mut().filter(|_| bundle.is_background()) {
                    decoder.silence();
                }
                Ok(Ok(bundle))
            }
            Message::Coded { bundle, checked, .. } => {
                let decoder = self.decoder.as_mut().ok_or(BundleError::NotAgreed)?;
                Ok(Ok(decoder.decode(&bundle, checked)?))
            }
            other => Ok(Err(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::StreamName;
    use super::*;
    use crate::bitstream::Bundle;
    use crate::fake;
    use crate::units::{ModelId, StageCount};

    #[test]
    fn both_ends_understand_each_other_as_they_agreed() {
        let tokens = crate::token::fake::model(&fake::codebooks(16, 7), 1);
        let tag = TokenTag::of(&tokens);
        for (coding, wire) in
            [(Some(tag.id), Wire::ALL), (Some(tag.id), Wire::default()), (None, Wire::ALL), (Some([0; 8]), Wire::ALL)]
        {
            let mut here = ClientSession::new(Some(Arc::clone(&tokens)), Wire::ALL);
            let mut there = ClientSession::new(Some(Arc::clone(&tokens)), Wire::ALL);
            let hello = here.greet(Hello::subscribe(StreamName::new("a").unwrap(), ModelId(*b"fakefake")));
            assert!(matches!(hello, Message::Hello(h) if h.coding == Some(tag) && h.wire == Wire::ALL));
            here.agree(coding, wire);
            there.agree(coding, wire);
            assert_eq!((here.is_coded(), here.wire()), (coding == Some(tag.id), wire));
            for n in 0..6u64 {
                let codes = (0..20).map(|k| (n * 37 + k * 11) as u16 % 256).collect();
                let bundle = PackedBundle::pack(&Bundle::new(5 * n, 5, StageCount::new(4).unwrap(), codes).unwrap());
                // What was only tried changes nothing.
                here.writer().clone().message(bundle.clone()).unwrap();
                let message = here.writer().message(bundle.clone()).unwrap();
                assert_eq!(matches!(message, Message::Thin(_)), wire.thin);
                assert_eq!(there.bundle(message).unwrap().unwrap(), bundle);
            }
        }
        let mut packed = ClientSession::new(None, Wire::default());
        let mut coder = SessionEncoder::new(tokens);
        let bundle = PackedBundle::pack(&Bundle::new(0, 1, StageCount::ONE, vec![3]).unwrap());
        let (bundle, checked) = coder.encode(&bundle).unwrap();
        let coded = Message::Coded { sequence: 0, bundle, checked };
        assert_eq!(packed.bundle(coded).unwrap_err(), BundleError::NotAgreed);
    }
}
