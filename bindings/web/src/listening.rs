//! A stream's codes to sound, as they come.

use std::sync::Arc;
use std::time::Duration;

use codec::codec::{Concealer, Decoder, Processor};
use codec::jitter::{Gaps, Quiet};
use codec::session::{Hello, PackedBundle, StreamName};
use codec::{Model, Profile, StageCount};

use crate::dialog::{Dialog, End, Heard, failed};

/// A listener of one stream. Time is an argument: since any moment, by a clock that never goes back.
#[derive(Debug)]
pub struct Listening {
    dialog: Dialog,
    processor: Processor,
    decoder: Decoder,
    gaps: Gaps<Duration>,
    quiet: Quiet<Duration>,
    /// Samples of the codec's delay that are still to be left out in front.
    skip: usize,
    figures: Figures,
}

/// How a stream does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Stages of the last bundle.
    pub stages: u8,
    /// Frames that came.
    pub frames: u64,
    /// Frames that were made up because they did not come.
    pub missing: u64,
    /// Frames that the daemon left out because they were not taken as fast as they came.
    pub skipped: u64,
}

impl Listening {
    /// Asks for a stream. `token` may be empty.
    ///
    /// # Errors
    /// [`End::Failed`] for a name that no stream can have.
    pub fn new(model: &Model, stream: &str, token: &str, stages: StageCount) -> Result<Self, End> {
        let stream = StreamName::new(stream).map_err(failed)?;
        let hello = Hello {
            token: token.to_owned(),
            stages: Some(stages),
            ..Hello::subscribe(stream, model.profile().model_id)
        };
        let concealer = Concealer::new(model.tokens().cloned());
        Ok(Self {
            dialog: Dialog::new(hello, model.tokens()),
            processor: model.processor(),
            decoder: Decoder::concealing(Arc::clone(model.profile()), concealer),
            gaps: Gaps::live(Profile::FRAME_TIME),
            quiet: Quiet::new(Profile::FRAME_TIME),
            skip: model.profile().overlap_samples(),
            figures: Figures::default(),
        })
    }

    /// The session.
    pub fn dialog(&mut self) -> &mut Dialog {
        &mut self.dialog
    }

    /// How it does.
    pub fn figures(&self) -> Figures {
        Figures { missing: self.decoder.missing_frames(), ..self.figures }
    }

    /// Takes bytes of the daemon that came at `now` and appends the sound that they make. After an end, what came before it is there.
    ///
    /// # Errors
    /// [`End`].
    pub fn receive(&mut self, bytes: &[u8], now: Duration, pcm: &mut Vec<f32>) -> Result<(), End> {
        self.dialog.push(bytes);
        while let Some(heard) = self.dialog.said()? {
            match heard {
                Heard::Bundle(bundle) => self.bundle(bundle, now, pcm)?,
                Heard::Skipped(frames) => self.figures.skipped += frames,
                Heard::Opened | Heard::Frames(_) => {}
            }
        }
        Ok(())
    }

    fn bundle(&mut self, mut packed: PackedBundle, now: Duration, pcm: &mut Vec<f32>) -> Result<(), End> {
        self.figures.stages = packed.stages.value();
        self.figures.frames += u64::from(packed.frames);
        let placed = self.quiet.place(packed.first_frame, packed.frames, packed.is_background(), now);
        packed.first_frame = placed.first_frame;
        self.decoder.push_quiet(u8::try_from(placed.fill).unwrap_or(u8::MAX));
        let missing = self.decoder.missing_before(packed.first_frame);
        self.decoder.fill_at_most(self.gaps.fill(missing, packed.frames, now));
        let bundle = packed.unpack().map_err(failed)?;
        if packed.is_background() {
            self.decoder.push_background(packed.first_frame, packed.frames, &bundle.codes).map_err(failed)?;
        } else {
            self.decoder.push(bundle).map_err(failed)?;
        }
        self.play(pcm)
    }

    /// When [`Listening::be_quiet`] is to be called if nothing comes before.
    pub fn due(&self) -> Option<Duration> {
        self.quiet.due()
    }

    /// Silence lasts: appends background, as much as is due at `now`.
    ///
    /// # Errors
    /// [`End`].
    pub fn be_quiet(&mut self, now: Duration, pcm: &mut Vec<f32>) -> Result<(), End> {
        while let Some((_, frames)) = self.quiet.fill(now) {
            self.decoder.push_quiet(frames);
        }
        self.play(pcm)
    }

    fn play(&mut self, pcm: &mut Vec<f32>) -> Result<(), End> {
        let mut made = Vec::new();
        self.processor.decode(&mut self.decoder, &mut made).map_err(failed)?;
        let skipped = self.skip.min(made.len());
        self.skip -= skipped;
        pcm.extend_from_slice(&made[skipped..]);
        Ok(())
    }
}
