//! Recordings to files of codes: rate, search and grading in one place, for the command line and for workers.

mod fit;
mod packets;
mod steering;

pub use fit::{Fit, FitError, Fitted, guess_stages};
pub use packets::{PacketError, PacketOptions, open_packet, packets};

use std::sync::Arc;

use crate::bitstream::StreamHeader;
use crate::codec::{CodecError, Encoder, ProcessError, Processor};
use crate::entropy::{StreamError, StreamWriter};
use crate::profile::Profile;
use crate::synthesis::{Analyser, Refiner};
use crate::token::TokenModel;
use crate::units::{OutOfRange, StageCount};
use steering::{Steering, TRIAL_SAMPLES};

/// Frames of a bundle in a file, in a coded one, and on a pipe where somebody waits.
pub const FILE_BUNDLE: u8 = 25;
/// See [`FILE_BUNDLE`].
pub const CODED_BUNDLE: u8 = Profile::MAX_FRAMES_PER_BUNDLE;
/// See [`FILE_BUNDLE`].
pub const LIVE_BUNDLE: u8 = 5;

/// Steps of the search in files: more give little (docs/synthesis.md).
pub const REFINE_STEPS: u32 = 20;

/// Why a recording could not be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordingError {
    /// The networks or the codebook search.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The stream.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The search for stages that fit the rate.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Writing codes.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A rate that no number of stages has.
    #[error(transparent)]
    Rate(#[from] OutOfRange),
}

/// How much a recording may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// kbit/s, 0.5 to 12. Coded, as many stages as fit, every byte counted; packed, a stage for every 0.5.
    Kbps(f64),
    /// So many stages in every frame, whatever rate that gives.
    Stages(StageCount),
}

impl Rate {
    /// So many kbit/s, 0.5 to 12; checked where it is used.
    pub const fn kbps(kbps: f64) -> Self {
        Self::Kbps(kbps)
    }
}

/// How a recording is to be encoded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How much it may take.
    pub rate: Rate,
    /// Whether every frame has the same number of stages.
    pub even: bool,
    /// Frames that travel together, 1 to 50.
    pub bundle: u8,
    /// Whether somebody waits for the bytes: nothing is tried first, and bundles leave as they come.
    pub live: bool,
    /// Codes the indices; None packs them.
    pub tokens: Option<Arc<TokenModel>>,
}

/// Where samples come from and bytes go to.
pub trait Ends {
    /// Why it does not go on.
    type Error: From<RecordingError>;

    /// Appends samples at 24 kHz; false when there are no more.
    ///
    /// # Errors
    /// Of the source; the recording is then not encoded.
    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool, Self::Error>;

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// Of the sink.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Is told how many samples are done; parts of some seconds are searched for at a time.
    ///
    /// # Errors
    /// To end it here.
    fn done(&mut self, samples: u64) -> Result<(), Self::Error>;

    /// Whether to end with what is done, although there is more. What is read ends then too.
    fn stopped(&self) -> bool {
        false
    }
}

/// Encodes a recording: reads it to its end and writes the whole file.
///
/// # Errors
/// Of the ends, and [`RecordingError`].
pub fn encode<E: Ends>(
    processor: &mut Processor,
    refiner: Option<&mut Refiner>,
    settings: &Settings,
    ends: &mut E,
) -> Result<(), E::Error> {
    // Latents are searched for, or made ahead of time in large parts; otherwise the encoder makes them as it goes.
    let ahead = !settings.live || refiner.is_some();
    let mut analyser = Analyser::new(processor.profile(), refiner);
    if settings.live {
        analyser.set_part(usize::from(settings.bundle));
    }
    match begin(processor, &mut analyser, settings, ends)? {
        Some(start) => go_on(processor, ahead.then_some(&mut analyser), settings, start, ends),
        None => Ok(()),
    }
}

/// What a recording is encoded with, and what of it was read to find that out.
struct Start {
    stages: StageCount,
    /// None: every frame has `stages` stages.
    steering: Option<Steering>,
    heard: Heard,
}

/// Decides how a recording is encoded; None if it is written already, or there is nothing to write.
fn begin<E: Ends>(
    processor: &mut Processor,
    analyser: &mut Analyser<'_>,
    settings: &Settings,
    ends: &mut E,
) -> Result<Option<Start>, E::Error> {
    let profile = processor.profile();
    let untried = |stages, steering| Ok(Some(Start { stages, steering, heard: Heard::nothing() }));
    let (kbps, tokens) = match (settings.rate, &settings.tokens) {
        (Rate::Stages(stages), _) => return untried(stages, None),
        (Rate::Kbps(kbps), None) => {
            let stages = StageCount::from_kbps(kbps).map_err(RecordingError::from)?;
            return untried(stages.min(profile.stages), None);
        }
        (Rate::Kbps(kbps), Some(_)) if settings.live => return untried(profile.stages, Some(Steering::live(kbps))),
        (Rate::Kbps(kbps), Some(tokens)) => (kbps, tokens),
    };
    let heard = hear(processor, analyser, ends)?;
    if heard.stopped && heard.pcm.is_empty() {
        return Ok(None);
    }
    let pcm = if heard.more { &heard.pcm[..heard.done] } else { &heard.pcm[..] };
    let ladder = processor.ladder(&heard.latents).map_err(RecordingError::from)?;
    let trial = Fit { tokens, pcm, ladder: &ladder, kbps, bundle: settings.bundle };
    if settings.even {
        let stages = trial.even(&profile).map_err(RecordingError::from)?;
        return Ok(Some(Start { stages, steering: None, heard }));
    }
    let fitted = trial.graded(&profile).map_err(RecordingError::from)?;
    if !heard.more {
        return ends.write(&fitted.bytes).map(|()| None);
    }
    let frames = pcm.len() / profile.frame_samples + usize::from(settings.bundle);
    let steering = Some(Steering::after(fitted.grading, kbps, frames as u32));
    Ok(Some(Start { stages: profile.stages, steering, heard }))
}

/// Encodes and writes all of a recording.
fn go_on<E: Ends>(
    processor: &mut Processor,
    mut analyser: Option<&mut Analyser<'_>>,
    settings: &Settings,
    Start { stages, mut steering, heard }: Start,
    ends: &mut E,
) -> Result<(), E::Error> {
    let profile = processor.profile();
    let mut encoder = Encoder::new(Arc::clone(&profile), stages, settings.bundle).map_err(RecordingError::from)?;
    // Whole bundles at a time: the first bundle can leave no earlier than its last frame anyway.
    encoder.set_job_frames(usize::from(settings.bundle));
    let mut bytes = Vec::new();
    let header = StreamHeader { graded: steering.is_some(), ..StreamHeader::packed(&profile, stages, settings.bundle) };
    let mut writer = StreamWriter::new(header, settings.tokens.clone(), &mut bytes);
    let (mut more, mut latents, mut pcm) = (heard.more, heard.latents, Vec::new());
    encoder.push(&heard.pcm);
    loop {
        pcm.clear();
        if more {
            more = ends.read(&mut pcm)?;
            encoder.push(&pcm);
        }
        if !more {
            encoder.finish();
        }
        if heard.stopped {
            encoder.push_latents(&latents);
        } else if let Some(analyser) = &mut analyser {
            analyser.push(&pcm);
            if !more {
                analyser.finish();
            }
            while analyser.next_part(processor, &mut latents).map_err(RecordingError::from)? {}
            encoder.push_latents(&latents);
            latents.clear();
        }
        drain(&mut encoder, processor, &mut writer, steering.as_mut(), &mut bytes, ends)?;
        ends.done(encoder.samples_in())?;
        if !more {
            break;
        }
    }
    writer.finish(Some(encoder.samples_in()), &mut bytes);
    ends.write(&bytes)
}

/// The start of a recording.
struct Heard {
    pcm: Vec<f32>,
    latents: Vec<f32>,
    /// Samples that the latents are of, the silence after them not counted.
    done: usize,
    /// Whether there is more of it.
    more: bool,
    /// Whether it was told to end here.
    stopped: bool,
}

impl Heard {
    /// Before anything was read.
    fn nothing() -> Self {
        Self { pcm: Vec::new(), latents: Vec::new(), done: 0, more: true, stopped: false }
    }
}

/// Reads and analyses as much as is encoded on trial, or up to where it is told to end.
fn hear<E: Ends>(processor: &mut Processor, analyser: &mut Analyser<'_>, ends: &mut E) -> Result<Heard, E::Error> {
    let profile = processor.profile();
    let samples = |latents: &[f32]| latents.len() / profile.latent_dim * profile.frame_samples;
    let (mut pcm, mut latents, mut more) = (Vec::new(), Vec::new(), true);
    while pcm.len() < TRIAL_SAMPLES && more && !ends.stopped() {
        let before = pcm.len();
        more = ends.read(&mut pcm)?;
        analyser.push(&pcm[before..]);
        if !more {
            analyser.finish();
        }
        while !ends.stopped() && analyser.next_part(processor, &mut latents).map_err(RecordingError::from)? {
            ends.done(samples(&latents) as u64)?;
        }
    }
    // Of a longer recording the frames that are done, so that the silence at its end does not come into it.
    let done = samples(&latents).saturating_sub(profile.overlap_samples());
    let stopped = ends.stopped();
    if stopped {
        pcm.truncate(done);
        more = false;
    }
    Ok(Heard { pcm, latents, done, more, stopped })
}

/// Encodes and writes what is ready.
fn drain<E: Ends>(
    encoder: &mut Encoder,
    processor: &mut Processor,
    writer: &mut StreamWriter,
    mut steering: Option<&mut Steering>,
    bytes: &mut Vec<u8>,
    ends: &mut E,
) -> Result<(), E::Error> {
    loop {
        if let Some(steering) = steering.as_deref_mut() {
            steering.hear(encoder.upcoming(), processor.profile().frame_samples);
            encoder.set_grading(steering.grading());
        }
        // A job is a whole bundle here, so every bundle is graded by what was spent before it.
        let Some(bundle) = processor.encode(encoder).map_err(RecordingError::from)? else { return Ok(()) };
        let before = bytes.len();
        writer.write(&bundle, bytes).map_err(RecordingError::from)?;
        if let Some(steering) = steering.as_deref_mut() {
            steering.spent(bundle.frames, bytes.len() - before);
        }
        ends.write(bytes)?;
        bytes.clear();
    }
}
