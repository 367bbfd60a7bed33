//! Samples to bundles and back, as they come.

use super::error::Error;
use super::model::Model;
use super::options::EncoderOptions;
use crate::bitstream::Bundle;
use crate::codec::{self, Concealer, Processor};
use crate::dsp::{Downmix, Intake};
use crate::recording::{LIVE_BUNDLE, Rate};
use crate::units::StageCount;

/// Samples to bundles of codes.
#[derive(Debug)]
pub struct Encoder {
    processor: Processor,
    encoder: codec::Encoder,
    intake: Intake,
    stages: StageCount,
}

impl Encoder {
    /// An encoder of a live stream of 24 kHz, in bundles of 100 ms, whose rate is that of packed codes.
    ///
    /// # Errors
    /// [`Error::Range`] unless the rate is 0.5 to 12 kbit/s in steps of 0.5, [`Error::Codec`] if the model has fewer stages.
    pub fn new(model: &Model, rate: Rate) -> Result<Self, Error> {
        Self::with(model, &EncoderOptions::new(rate))
    }

    /// An encoder with other options.
    ///
    /// # Errors
    /// As [`Encoder::new`].
    pub fn with(model: &Model, options: &EncoderOptions) -> Result<Self, Error> {
        let (stages, bundle) = (options.stages()?, options.bundle.unwrap_or(LIVE_BUNDLE));
        let mut encoder = codec::Encoder::new(model.profile().clone(), stages, bundle)?;
        encoder.set_job_frames(usize::from(bundle));
        let intake = Intake::new(options.sample_rate, Downmix::mean(1));
        Ok(Self { processor: model.processor(), encoder, intake, stages })
    }

    /// Stages of every frame.
    pub fn stages(&self) -> StageCount {
        self.stages
    }

    /// Takes samples, in pieces of any length, and gives the bundles that they complete.
    ///
    /// # Errors
    /// [`Error::Process`]; the stream cannot go on then.
    pub fn push(&mut self, pcm: &[f32]) -> Result<Vec<Bundle>, Error> {
        let mut taken = Vec::new();
        self.intake.push(pcm.iter().copied(), &mut taken);
        self.encoder.push(&taken);
        self.drain()
    }

    /// Ends the stream: gives what is left, the last bundle filled up with silence.
    ///
    /// # Errors
    /// As [`Encoder::push`].
    pub fn finish(&mut self) -> Result<Vec<Bundle>, Error> {
        let mut taken = Vec::new();
        self.intake.finish(&mut taken);
        self.encoder.push(&taken);
        self.encoder.finish();
        self.drain()
    }

    /// Samples pushed so far, at 24 kHz.
    pub fn samples_in(&self) -> u64 {
        self.encoder.samples_in()
    }

    fn drain(&mut self) -> Result<Vec<Bundle>, Error> {
        let mut bundles = Vec::new();
        while let Some(bundle) = self.processor.encode(&mut self.encoder)? {
            bundles.push(bundle);
        }
        Ok(bundles)
    }
}

/// Bundles of codes to samples at 24 kHz; what is lost is concealed.
#[derive(Debug)]
pub struct Decoder {
    processor: Processor,
    decoder: codec::Decoder,
}

impl Decoder {
    /// A decoder at the start of a stream. The sound comes [`Profile::overlap_samples`](crate::Profile::overlap_samples) late.
    pub fn new(model: &Model) -> Self {
        let concealer = Concealer::new(model.tokens().cloned());
        Self { processor: model.processor(), decoder: codec::Decoder::concealing(model.profile().clone(), concealer) }
    }

    /// Takes a bundle and gives its samples. Frames that are missing before it are made up; late and double ones are left out.
    ///
    /// # Errors
    /// [`Error::Codec`] for a bundle that does not fit the model, [`Error::Process`].
    pub fn push(&mut self, bundle: Bundle) -> Result<Vec<f32>, Error> {
        self.decoder.push(bundle)?;
        self.sound()
    }

    /// A description of background noise instead of a bundle, as silence is sent.
    pub(super) fn push_background(&mut self, first_frame: u64, frames: u8, codes: &[u16]) -> Result<Vec<f32>, Error> {
        self.decoder.push_background(first_frame, frames, codes)?;
        self.sound()
    }

    /// Makes up so many frames that did not come, now, because their time has come.
    ///
    /// # Errors
    /// [`Error::Process`].
    pub fn lose(&mut self, frames: u64) -> Result<Vec<f32>, Error> {
        self.decoder.lose(frames);
        self.sound()
    }

    fn sound(&mut self) -> Result<Vec<f32>, Error> {
        let mut pcm = Vec::new();
        self.processor.decode(&mut self.decoder, &mut pcm)?;
        Ok(pcm)
    }
}
