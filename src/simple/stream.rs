//! Samples to the bytes of a `.utn` stream and back, as they come.

use super::error::Error;
use super::live::{Decoder, Encoder};
use super::model::Model;
use super::options::EncoderOptions;
use crate::bitstream::{Item, ReaderOptions, StreamHeader, Tail};
use crate::entropy::{StreamReader, StreamWriter};
use crate::recording::LIVE_BUNDLE;

/// Samples to the bytes of a `.utn` stream, packed: for a pipe, a socket, a file that grows.
///
/// # Examples
/// ```no_run
/// use undertone::{EncoderOptions, Model, Rate, StreamDecoder, StreamEncoder};
///
/// let model = Model::open("models/undertone-24k-v2")?;
/// let mut encoder = StreamEncoder::new(&model, &EncoderOptions::new(Rate::kbps(6.0)))?;
/// let mut decoder = StreamDecoder::new(&model);
/// let (mut bytes, mut sound) = (Vec::new(), Vec::new());
/// for chunk in [0.0; 24_000].chunks(480) {
///     encoder.push(chunk, &mut bytes)?;
///     decoder.push(&std::mem::take(&mut bytes), &mut sound)?;
/// }
/// # Ok::<(), undertone::Error>(())
/// ```
#[derive(Debug)]
pub struct StreamEncoder {
    encoder: Encoder,
    /// None once the stream has ended.
    writer: Option<StreamWriter>,
    /// The header, until it was given.
    head: Vec<u8>,
}

impl StreamEncoder {
    /// A stream with these options.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn new(model: &Model, options: &EncoderOptions) -> Result<Self, Error> {
        let encoder = Encoder::with(model, options)?;
        let header = StreamHeader::packed(model.profile(), encoder.stages(), options.bundle.unwrap_or(LIVE_BUNDLE));
        let mut head = Vec::new();
        let writer = StreamWriter::new(header, None, &mut head);
        Ok(Self { encoder, writer: Some(writer), head })
    }

    /// Takes samples and appends the bytes that they complete, the header before the first.
    ///
    /// # Errors
    /// [`Error::Process`]; the stream cannot go on then.
    pub fn push(&mut self, pcm: &[f32], bytes: &mut Vec<u8>) -> Result<(), Error> {
        bytes.append(&mut self.head);
        let bundles = if self.writer.is_some() { self.encoder.push(pcm)? } else { Vec::new() };
        self.write(&bundles, bytes)
    }

    /// Appends what is left and the end of the stream; what is pushed after it is left out.
    ///
    /// # Errors
    /// As [`StreamEncoder::push`].
    pub fn finish(&mut self, bytes: &mut Vec<u8>) -> Result<(), Error> {
        bytes.append(&mut self.head);
        if self.writer.is_none() {
            return Ok(());
        }
        let bundles = self.encoder.finish()?;
        self.write(&bundles, bytes)?;
        if let Some(writer) = self.writer.take() {
            writer.finish(Some(self.encoder.samples_in()), bytes);
        }
        Ok(())
    }

    fn write(&mut self, bundles: &[crate::bitstream::Bundle], bytes: &mut Vec<u8>) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        bundles.iter().try_for_each(|bundle| Ok(writer.write(bundle, bytes)?))
    }
}

/// Bytes of a `.utn` stream, packed or coded, to samples at 24 kHz that begin where the recording did.
#[derive(Debug)]
pub struct StreamDecoder {
    model: Model,
    decoder: Decoder,
    reader: StreamReader,
    /// Samples of the codec's delay that are still to be left out in front.
    skip: usize,
    /// Samples held back, because the end may say that they are padding.
    held: Vec<f32>,
    /// Samples given.
    given: u64,
    started: bool,
    ended: bool,
}

impl StreamDecoder {
    /// A decoder at the start of a stream.
    pub fn new(model: &Model) -> Self {
        Self {
            decoder: Decoder::new(model),
            reader: StreamReader::new(ReaderOptions::default(), model.tokens().cloned()),
            skip: model.profile().overlap_samples(),
            model: model.clone(),
            held: Vec::new(),
            given: 0,
            started: false,
            ended: false,
        }
    }

    /// Takes bytes, in pieces of any length, and appends the samples that they complete.
    ///
    /// # Errors
    /// [`Error::Stream`] for bytes that are no such stream, [`Error::OtherModel`].
    pub fn push(&mut self, bytes: &[u8], pcm: &mut Vec<f32>) -> Result<(), Error> {
        self.reader.push(bytes);
        while let Some(item) = self.reader.next()? {
            match item {
                Item::Header(header) => {
                    self.model.check(header.model_id)?;
                    self.started = true;
                }
                Item::Bundle(bundle) => {
                    let sound = self.decoder.push(bundle)?;
                    self.take(&sound, pcm);
                }
                Item::Background(silent) => {
                    let codes = silent.unpack()?.codes;
                    let sound = self.decoder.push_background(silent.first_frame, silent.frames, &codes)?;
                    self.take(&sound, pcm);
                }
                Item::End { total_samples } => {
                    self.ended = true;
                    let left = total_samples.map_or(self.held.len() as u64, |total| total.saturating_sub(self.given));
                    self.give(usize::try_from(left).unwrap_or(usize::MAX).min(self.held.len()), pcm);
                    self.held.clear();
                }
                // The reader has decoded these.
                Item::Coded(_) => {}
            }
        }
        Ok(())
    }

    /// Appends what was held back of a stream that ends here.
    ///
    /// # Errors
    /// [`Error::Cut`] if its end record has not come.
    pub fn finish(&mut self, pcm: &mut Vec<f32>) -> Result<(), Error> {
        self.give(self.held.len(), pcm);
        match self.reader.finish() {
            Tail::Complete if self.started => Ok(()),
            Tail::Complete => Err(Error::Cut { frames: 0 }),
            Tail::CutAt { frames, .. } => Err(Error::Cut { frames }),
        }
    }

    /// Whether the end record has come.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    fn take(&mut self, sound: &[f32], pcm: &mut Vec<f32>) {
        let skipped = self.skip.min(sound.len());
        self.skip -= skipped;
        self.held.extend_from_slice(&sound[skipped..]);
        self.give(self.held.len().saturating_sub(self.model.profile().frame_samples), pcm);
    }

    fn give(&mut self, samples: usize, pcm: &mut Vec<f32>) {
        pcm.extend(self.held.drain(..samples));
        self.given += samples as u64;
    }
}
