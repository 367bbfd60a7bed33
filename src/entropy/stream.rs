//! Containers of codes whatever their payload mode: bundles in, bytes out, and back.

use std::sync::Arc;

use data_encoding::HEXLOWER;

use super::{Coded, Decoder, Encoder, EntropyError};
use crate::bitstream::{
    BitstreamError, Bundle, CodedBundle, ContainerReader, ContainerWriter, ContextRule, IndexEntry, Item, PayloadMode,
    ReaderOptions, StreamHeader, Tail,
};
use crate::rvq::SimdLevel;
use crate::token::TokenModel;

/// Frames after which the context starts anew in a file, so that one can seek in it and damage stays local: 10 s.
const RESTART_FRAMES: u64 = 500;

/// Why a container cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The container itself.
    #[error(transparent)]
    Bitstream(#[from] BitstreamError),
    /// A coded payload.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The stream was coded with a token model that is not here.
    #[error("the stream was coded with token model {wanted}, but the one here is {have}")]
    TokenModel {
        /// Id in the header.
        wanted: String,
        /// Id of the model here, or "none".
        have: String,
    },
}

fn name(id: Option<[u8; 8]>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| HEXLOWER.encode(&id))
}

/// Writes a container, packed or coded as its header says.
#[derive(Debug)]
pub struct StreamWriter {
    container: ContainerWriter,
    encoder: Option<Encoder>,
    graded: bool,
    restarted: u64,
}

impl StreamWriter {
    /// Starts a container: appends the header to `out`. With a token model the payloads are coded, and the header's mode,
    /// context rule (continuous) and token model are set; without one the stream is not graded.
    pub fn new(mut header: StreamHeader, tokens: Option<Arc<TokenModel>>, out: &mut Vec<u8>) -> Self {
        header.graded &= tokens.is_some();
        if let Some(tokens) = &tokens {
            header.payload_mode = PayloadMode::Coded;
            header.context = ContextRule::Continuous;
            header.token_model_id = Some(tokens.id());
        }
        let (rule, graded) = (header.context, header.graded);
        let encoder = tokens.map(|t| Encoder::new(t, rule, SimdLevel::detect()));
        let encoder = encoder.map(|e| if graded { e.graded() } else { e });
        Self { container: ContainerWriter::new(header, out), encoder, graded, restarted: 0 }
    }

    /// Appends a bundle to `out`.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn write(&mut self, bundle: &Bundle, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let Some(encoder) = &mut self.encoder else { return Ok(self.container.write(bundle, out)?) };
        let due = bundle.first_frame.saturating_sub(self.restarted) >= RESTART_FRAMES;
        let mut payload = Vec::new();
        let coded = encoder.encode(bundle, due, &mut payload)?;
        let (Coded::Range { restart } | Coded::Packed { restart }) = coded;
        if restart {
            self.restarted = bundle.first_frame;
        }
        let record = CodedBundle {
            first_frame: bundle.first_frame,
            frames: bundle.frames,
            stages: bundle.stages,
            graded: self.graded,
            restart,
            packed: matches!(coded, Coded::Packed { .. }),
            payload,
        };
        Ok(self.container.write_coded(&record, out)?)
    }

    /// Ends the container; `total_samples` is the true length of the audio at the codec's rate, if known.
    pub fn finish(self, total_samples: Option<u64>, out: &mut Vec<u8>) {
        self.container.finish(total_samples, out);
    }
}

/// Reads a container of either mode; every [`Item`] it gives holds plain codes.
#[derive(Debug)]
pub struct StreamReader {
    container: ContainerReader,
    options: ReaderOptions,
    tokens: Option<Arc<TokenModel>>,
    decoder: Option<Decoder>,
    damaged: u64,
}

impl StreamReader {
    /// A reader at the start of a container. `tokens` is needed for coded payloads only.
    pub fn new(options: ReaderOptions, tokens: Option<Arc<TokenModel>>) -> Self {
        Self { container: ContainerReader::new(options), options, tokens, decoder: None, damaged: 0 }
    }

    /// A reader that starts at a bundle found in the index.
    ///
    /// # Errors
    /// [`StreamError::TokenModel`].
    pub fn resume(
        options: ReaderOptions,
        header: StreamHeader,
        entry: IndexEntry,
        tokens: Option<Arc<TokenModel>>,
    ) -> Result<Self, StreamError> {
        let mut reader = Self::new(options, tokens);
        reader.open(&header)?;
        reader.container = ContainerReader::resume(options, header, entry);
        Ok(reader)
    }

    fn open(&mut self, header: &StreamHeader) -> Result<(), StreamError> {
        if header.payload_mode == PayloadMode::Packed {
            return Ok(());
        }
        let have = self.tokens.as_ref().map(|t| t.id());
        match &self.tokens {
            Some(tokens) if header.token_model_id == have => {
                let decoder = Decoder::new(Arc::clone(tokens), header.context, SimdLevel::detect());
                self.decoder = Some(if header.graded { decoder.graded() } else { decoder });
                Ok(())
            }
            _ => Err(StreamError::TokenModel { wanted: name(header.token_model_id), have: name(have) }),
        }
    }

    /// Takes more bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.container.push(bytes);
    }

    /// The next item; None if more bytes are needed, or after the end.
    ///
    /// # Errors
    /// [`StreamError`].
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Item>, StreamError> {
        while let Some(item) = self.container.next()? {
            match item {
                Item::Header(header) => {
                    self.open(&header)?;
                    return Ok(Some(Item::Header(header)));
                }
                Item::Coded(bundle) => match self.decode(bundle) {
                    Err(StreamError::Entropy(_)) if self.options.skip_damaged => self.damaged += 1,
                    made => return made.map(|b| Some(Item::Bundle(b))),
                },
                Item::Bundle(bundle) => {
                    if let Some(decoder) = &mut self.decoder {
                        decoder.observe(&bundle, false)?;
                    }
                    return Ok(Some(Item::Bundle(bundle)));
                }
                other @ (Item::Background(_) | Item::End { .. }) => return Ok(Some(other)),
            }
        }
        Ok(None)
    }

    fn decode(&mut self, b: CodedBundle) -> Result<Bundle, StreamError> {
        let Some(decoder) = &mut self.decoder else {
            return Err(StreamError::TokenModel { wanted: "not named".to_owned(), have: "none".to_owned() });
        };
        if b.packed {
            let unpack = if b.graded { Bundle::unpack_graded } else { Bundle::unpack };
            let bundle = unpack(b.first_frame, b.frames, b.stages, &b.payload)?;
            decoder.observe(&bundle, b.restart)?;
            return Ok(bundle);
        }
        Ok(decoder.decode(b.first_frame, b.frames, b.stages, b.restart, &b.payload)?)
    }

    /// Bytes that were pushed and lie behind the end of the stream; empty before its end.
    pub fn behind(&self) -> &[u8] {
        self.container.behind()
    }

    /// Bundles that were skipped because they, or ones they build on, were damaged.
    pub fn damaged(&self) -> u64 {
        self.damaged + self.container.damaged()
    }

    /// Says how the container ended, once all its bytes were pushed and taken.
    pub fn finish(&self) -> Tail {
        self.container.finish()
    }
}
