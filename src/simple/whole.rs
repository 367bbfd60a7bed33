//! Whole files in one call.

use super::error::Error;
use super::model::Model;
use super::options::EncoderOptions;
use super::stream::StreamDecoder;
use crate::bitstream::{ABSENT, Item, ReaderOptions};
use crate::dsp::{Downmix, Intake};
use crate::entropy::StreamReader;
use crate::recording::{self, CODED_BUNDLE, Ends, FILE_BUNDLE, RecordingError, Settings};
use crate::units::StageCount;

impl Model {
    /// A whole recording as the bytes of a `.utn` file, of at most the rate of the options; coded by the token model if there is one.
    ///
    /// # Errors
    /// [`Error::Recording`].
    pub fn encode(&self, pcm: &[f32], options: &EncoderOptions) -> Result<Vec<u8>, Error> {
        let tokens = self.tokens().cloned();
        let bundle = options.bundle.unwrap_or(if tokens.is_some() { CODED_BUNDLE } else { FILE_BUNDLE });
        let settings = Settings { rate: options.rate, even: false, bundle, live: false, tokens };
        let mut intake = Intake::new(options.sample_rate, Downmix::mean(1));
        let mut taken = Vec::new();
        intake.push(pcm.iter().copied(), &mut taken);
        intake.finish(&mut taken);
        let mut ends = Whole { pcm: taken, bytes: Vec::new() };
        recording::encode(&mut self.processor(), None, &settings, &mut ends)?;
        Ok(ends.bytes)
    }

    /// The samples of a whole `.utn` file, at 24 kHz.
    ///
    /// # Errors
    /// [`Error::Stream`] and [`Error::OtherModel`]; [`Error::Cut`] if the end is missing.
    pub fn decode(&self, bytes: &[u8]) -> Result<Vec<f32>, Error> {
        let mut decoder = StreamDecoder::new(self);
        let mut pcm = Vec::new();
        decoder.push(bytes, &mut pcm)?;
        decoder.finish(&mut pcm)?;
        Ok(pcm)
    }

    /// The codes of a whole `.utn` file, `[frames][stages]`, and the number of stages; [`ABSENT`] where a frame has fewer.
    ///
    /// # Errors
    /// As [`Model::decode`].
    pub fn codes(&self, bytes: &[u8]) -> Result<(Vec<u16>, StageCount), Error> {
        let mut reader = StreamReader::new(ReaderOptions::default(), self.tokens().cloned());
        reader.push(bytes);
        let (mut codes, mut stages) = (Vec::new(), StageCount::ONE);
        while let Some(item) = reader.next()? {
            match item {
                Item::Header(header) => {
                    self.check(header.model_id)?;
                    stages = header.stages;
                }
                Item::Bundle(bundle) => {
                    for frame in bundle.by_frame() {
                        let row = frame.iter().copied().chain(std::iter::repeat(ABSENT));
                        codes.extend(row.take(stages.index()));
                    }
                }
                Item::Background(_) | Item::Coded(_) | Item::End { .. } => {}
            }
        }
        Ok((codes, stages))
    }
}

/// A recording in memory, to bytes in memory.
struct Whole {
    pcm: Vec<f32>,
    bytes: Vec<u8>,
}

impl Ends for Whole {
    type Error = RecordingError;

    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool, RecordingError> {
        pcm.append(&mut self.pcm);
        Ok(false)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RecordingError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn done(&mut self, _: u64) -> Result<(), RecordingError> {
        Ok(())
    }
}
