//! Sound of a microphone to the codes of a stream.

use std::sync::Arc;

use codec::codec::{Bucket, Encoder, Processor};
use codec::dsp::{Downmix, Intake};
use codec::jitter::Pace;
use codec::session::{Hello, StreamName};
use codec::{Bundle, Model, Profile, SampleRate};

use crate::dialog::{Dialog, End, Heard, failed};

/// Frames of a bundle until the daemon says that its listeners want others.
const BUNDLE: u8 = 5;

/// Bytes that a message takes beside its codes, and bits of a stage of a frame, coded and packed, before it is known better.
const HEAD: usize = 2;
const CODED_BITS: f64 = 7.5;
const PACKED_BITS: f64 = 10.0;

/// The allowed rates, kbit/s.
const KBPS: std::ops::RangeInclusive<f64> = 0.5..=12.0;

/// A publisher of one stream.
#[derive(Debug)]
pub struct Publishing {
    dialog: Dialog,
    processor: Processor,
    encoder: Encoder,
    intake: Intake,
    kbps: f64,
    /// The daemon has agreed.
    open: bool,
    frames: u64,
}

impl Publishing {
    /// Offers a stream of `rate_hz` samples a second, which is to take `kbps` kbit/s. `token` may be empty.
    ///
    /// # Errors
    /// [`End::Failed`] for a name that no stream can have, or a value that is out of range.
    pub fn new(model: &Model, stream: &str, token: &str, kbps: f64, rate_hz: u32) -> Result<Self, End> {
        if !KBPS.contains(&kbps) {
            return Err(failed(format!("{kbps} kbit/s out of range, allowed 0.5 to 12")));
        }
        let (stream, rate) = (StreamName::new(stream).map_err(failed)?, SampleRate::new(rate_hz).map_err(failed)?);
        let profile = model.profile();
        let most = Profile::MAX_FRAMES_PER_BUNDLE;
        let hello = Hello {
            token: token.to_owned(),
            pace: Pace::Live,
            ..Hello::publish(stream, profile.model_id, profile.stages, most)
        };
        let mut encoder = Encoder::new(Arc::clone(profile), profile.stages, BUNDLE).map_err(failed)?;
        encoder.set_job_frames(usize::from(BUNDLE));
        Ok(Self {
            dialog: Dialog::new(hello, model.tokens()),
            processor: model.processor(),
            encoder,
            intake: Intake::new(rate, Downmix::mean(1)),
            kbps,
            open: false,
            frames: 0,
        })
    }

    /// The session.
    pub fn dialog(&mut self) -> &mut Dialog {
        &mut self.dialog
    }

    /// Frames that were encoded.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Whether the daemon takes the stream.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Takes bytes of the daemon.
    ///
    /// # Errors
    /// [`End`].
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), End> {
        self.dialog.push(bytes);
        while let Some(heard) = self.dialog.said()? {
            match heard {
                Heard::Opened => {
                    self.open = true;
                    let session = self.dialog.session();
                    let bits = if session.is_coded() { CODED_BITS } else { PACKED_BITS };
                    let by_frame = session.is_coded() && session.is_graded();
                    self.encoder.hold_rate(Bucket::new(self.kbps, HEAD, bits), by_frame);
                    if self.dialog.session().wire().silence {
                        self.encoder.leave_out_silence();
                    }
                }
                Heard::Frames(frames) => self.encoder.set_bundle_frames(frames),
                Heard::Bundle(_) | Heard::Skipped(_) => {}
            }
        }
        Ok(())
    }

    /// Takes samples; they are left out until the daemon takes the stream.
    ///
    /// # Errors
    /// [`End`].
    pub fn sound(&mut self, pcm: &[f32]) -> Result<(), End> {
        if !self.open {
            return Ok(());
        }
        let mut taken = Vec::new();
        self.intake.push(pcm.iter().copied(), &mut taken);
        self.encoder.push(&taken);
        self.send()
    }

    /// Sends what is left, and that nothing more will come.
    ///
    /// # Errors
    /// [`End`].
    pub fn finish(&mut self) -> Result<(), End> {
        if self.open {
            let mut taken = Vec::new();
            self.intake.finish(&mut taken);
            self.encoder.push(&taken);
            self.encoder.finish();
            self.send()?;
        }
        self.dialog.finish();
        Ok(())
    }

    fn send(&mut self) -> Result<(), End> {
        while let Some(bundle) = self.processor.encode(&mut self.encoder).map_err(failed)? {
            self.frames += u64::from(bundle.frames);
            let Some(packed) = self.encoder.pack(&bundle) else {
                self.encoder.spent(bundle.frames, 0, 0);
                continue;
            };
            let codes = if packed.is_background() { 0 } else { codes(&bundle) };
            let bytes = self.dialog.publish(packed)?;
            self.encoder.spent(bundle.frames, codes, 8 * bytes as u64);
        }
        Ok(())
    }
}

fn codes(bundle: &Bundle) -> u32 {
    bundle.by_frame().map(|frame| frame.len() as u32).sum()
}
