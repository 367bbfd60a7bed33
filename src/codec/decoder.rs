//! Bundles -> jobs -> samples.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Background, CodecError, Concealer, DecodeJob, Guess, MAX_QUIET_FRAMES};
use crate::bitstream::Bundle;
use crate::model::decoder_noise;
use crate::profile::Profile;
use crate::units::StageCount;

/// Longest gap between bundles that is filled; after a longer one the stream simply goes on.
pub const MAX_GAP_FRAMES: u64 = 250;

/// Bundles and losses that may wait in a decoder.
const MAX_WAITING: usize = 64;

/// What a decoder has to do next.
#[derive(Debug)]
enum Waiting {
    Bundle(Bundle),
    /// Frames that did not come.
    Lost {
        first_frame: u64,
        frames: u64,
    },
    /// Codes of a frame that describe the background.
    Described(Vec<u16>),
    /// Frames of background that are made up.
    Quiet {
        first_frame: u64,
        frames: u64,
    },
    /// What follows does not continue what was before.
    Cut,
}

/// One stream's decoder. It starts at the first bundle it is given, whatever its number.
#[derive(Debug)]
pub struct Decoder {
    profile: Arc<Profile>,
    waiting: VecDeque<Waiting>,
    expected: Option<u64>,
    idle: Option<DecodeJob>,
    out: Vec<f32>,
    missing_frames: u64,
    /// None: what is missing is silence.
    concealer: Option<Concealer>,
    /// Codes for the next job, made up because their frames are missing.
    guessed: Option<Guess>,
    /// The job that is out holds guesses.
    guessing: bool,
    /// Most frames of a gap that are filled.
    fill: u64,
    background: Background,
    /// In silence: frames that may still be missing without being lost.
    quiet: Option<u64>,
    quiet_frames: u64,
}

impl Decoder {
    /// A decoder in the state before the first sample; it fills gaps with silence.
    pub fn new(profile: Arc<Profile>) -> Self {
        let idle = DecodeJob {
            frames: 0,
            stages: profile.stages,
            first_frame: 0,
            codes: Vec::new(),
            latents: Vec::new(),
            noise: Vec::new(),
            state: vec![0.0; profile.decoder_state],
            pcm: Vec::new(),
        };
        Self {
            profile,
            waiting: VecDeque::new(),
            expected: None,
            idle: Some(idle),
            out: Vec::new(),
            missing_frames: 0,
            concealer: None,
            guessed: None,
            guessing: false,
            fill: MAX_GAP_FRAMES,
            background: Background::default(),
            quiet: None,
            quiet_frames: 0,
        }
    }

    /// A decoder that conceals what is missing.
    pub fn concealing(profile: Arc<Profile>, concealer: Concealer) -> Self {
        Self { concealer: Some(concealer), ..Self::new(profile) }
    }

    /// Queues a bundle. Frames that were already given, or given up, are left out of it: a late duplicate is dropped, and
    /// of redundant copies only the missing frames are taken.
    ///
    /// # Errors
    /// [`CodecError`] for more stages than the model has, a code beyond its codebooks, parts that do not
    /// fit together, or more than 64 bundles waiting.
    pub fn push(&mut self, mut bundle: Bundle) -> Result<(), CodecError> {
        let first_frame = bundle.first_frame;
        let error = |reason| CodecError::Bundle { first_frame, reason };
        if bundle.stages > self.profile.stages {
            return Err(CodecError::Stages {
                got: bundle.stages.value(),
                max: self.profile.stages.value(),
                model: self.profile.model_id,
            });
        }
        if !(1..=Profile::MAX_FRAMES_PER_BUNDLE).contains(&bundle.frames)
            || bundle.codes.len() != usize::from(bundle.frames) * bundle.stages.index()
        {
            return Err(error("frames, stages and codes do not fit together"));
        }
        if bundle.by_frame().any(|f| f.is_empty() || f.iter().any(|&c| usize::from(c) >= self.profile.entries)) {
            return Err(error("a code is beyond the codebook"));
        }
        let end = first_frame.checked_add(u64::from(bundle.frames)).ok_or_else(|| error("frame number overflows"))?;
        if self.waiting.len() >= MAX_WAITING {
            return Err(error("more than 64 bundles are waiting"));
        }
        if let Some(expected) = self.expected {
            if end <= expected {
                return Ok(());
            }
            if first_frame < expected {
                let late = (expected - first_frame) as usize;
                bundle.codes.drain(..late * bundle.stages.index());
                bundle.frames -= late as u8;
                bundle.first_frame = expected;
            } else if first_frame > expected {
                self.pass_over(expected, first_frame - expected);
            }
        }
        self.expected = Some(end);
        self.quiet = None;
        self.waiting.push_back(Waiting::Bundle(bundle));
        Ok(())
    }

    /// Queues a description of the background by the codes of a frame: so many frames from `first_frame` on are made up of it and of what
    /// was described before, and so is a gap behind them, of at most a second.
    ///
    /// # Errors
    /// As [`Decoder::push`].
    pub fn push_background(&mut self, first_frame: u64, frames: u8, codes: &[u16]) -> Result<(), CodecError> {
        let error = |reason| CodecError::Bundle { first_frame, reason };
        if codes.is_empty() || codes.iter().any(|&c| usize::from(c) >= self.profile.entries) {
            return Err(error("a code is beyond the codebook"));
        }
        if codes.len() > self.profile.stages.index() {
            return Err(error("a background of more stages than the model has"));
        }
        let end = first_frame.checked_add(u64::from(frames)).ok_or_else(|| error("frame number overflows"))?;
        if self.waiting.len() + 2 >= MAX_WAITING {
            return Err(error("more than 64 bundles are waiting"));
        }
        let expected = self.expected.unwrap_or(first_frame);
        if first_frame > expected {
            self.pass_over(expected, first_frame - expected);
        }
        self.waiting.push_back(Waiting::Described(codes.to_vec()));
        self.quiet = Some(MAX_QUIET_FRAMES);
        if let Some(frames) = end.checked_sub(expected.max(first_frame)).filter(|&f| f > 0) {
            self.be_quiet(expected.max(first_frame), frames);
            self.expected = Some(end);
        }
        Ok(())
    }

    /// Makes up so many frames of background now, in silence: nothing has come to say otherwise.
    pub fn push_quiet(&mut self, frames: u8) {
        if let (Some(expected), Some(left)) = (self.expected, self.quiet)
            && self.waiting.len() < MAX_WAITING
        {
            let frames = u64::from(frames).min(left);
            self.quiet = Some(left - frames);
            self.be_quiet(expected, frames);
            self.expected = Some(expected.saturating_add(frames));
        }
    }

    fn be_quiet(&mut self, first_frame: u64, frames: u64) {
        if frames > 0 {
            self.quiet_frames = self.quiet_frames.saturating_add(frames);
            self.waiting.push_back(Waiting::Quiet { first_frame, frames });
        }
    }

    /// Notes frames that no bundle holds: silence, as far as that goes, or a gap.
    fn pass_over(&mut self, expected: u64, frames: u64) {
        match self.quiet {
            Some(left) if frames <= left => self.be_quiet(expected, frames),
            _ => self.skip(expected, frames),
        }
    }

    /// Frames in front of a bundle that are missing: those that silence does not explain.
    pub fn missing_before(&self, first_frame: u64) -> u64 {
        let gap = self.expected.map_or(0, |e| first_frame.saturating_sub(e));
        if self.quiet.is_some_and(|left| gap <= left) { 0 } else { gap }
    }

    /// Frames of background that were made up.
    pub fn quiet_frames(&self) -> u64 {
        self.quiet_frames
    }

    /// Fills at most so many frames (250 or fewer) of a gap in front of a bundle from here on; after a longer gap the stream goes
    /// on sooner. Live sound must not grow later with every gap that its sender claims: see [`crate::jitter::Gaps`].
    pub fn fill_at_most(&mut self, frames: u64) {
        self.fill = frames.min(MAX_GAP_FRAMES);
    }

    /// Notes a gap of `frames` frames in front of a bundle.
    fn skip(&mut self, expected: u64, frames: u64) {
        self.missing_frames = self.missing_frames.saturating_add(frames);
        // So long a gap is another stream of numbers rather than a loss.
        let filled = if frames > MAX_GAP_FRAMES { 0 } else { frames.min(self.fill) };
        if filled > 0 {
            self.waiting.push_back(Waiting::Lost { first_frame: expected, frames: filled });
        }
        if filled < frames {
            self.waiting.push_back(Waiting::Cut);
        }
    }

    /// Gives up on the next `frames` frames (at most 250): they are concealed now, and dropped should they still come.
    /// Nothing happens before the first bundle, or while 64 bundles wait.
    pub fn lose(&mut self, frames: u64) {
        let frames = frames.min(MAX_GAP_FRAMES);
        if let Some(expected) = self.expected
            && frames > 0
            && self.waiting.len() + 1 < MAX_WAITING
        {
            self.missing_frames += frames;
            self.waiting.push_back(Waiting::Lost { first_frame: expected, frames });
            self.expected = Some(expected.saturating_add(frames));
            self.quiet = None;
        }
    }

    /// Number of the frame that comes next; None before the first bundle.
    pub fn expected(&self) -> Option<u64> {
        self.expected
    }

    /// Frames that no bundle brought.
    pub fn missing_frames(&self) -> u64 {
        self.missing_frames
    }

    /// Work of the token model that comes before the next job, if frames are missing next: milliseconds that a server takes to
    /// a thread of its own and gives back to [`Decoder::accept_guess`]. Whoever does not ask has it done by
    /// [`Decoder::next_job`].
    pub fn next_guess(&mut self) -> Option<Guess> {
        if self.idle.is_none() || self.guessed.is_some() {
            return None;
        }
        loop {
            let (first_frame, frames) = match *self.waiting.front()? {
                Waiting::Bundle(_) | Waiting::Described(_) | Waiting::Quiet { .. } => return None,
                Waiting::Cut => {
                    self.waiting.pop_front();
                    self.forget();
                    continue;
                }
                Waiting::Lost { first_frame, frames } => (first_frame, frames),
            };
            self.waiting.pop_front();
            if let Some((guess, rest)) = self.lost(first_frame, frames) {
                if rest > 0 {
                    let first_frame = first_frame + guess.frames() as u64;
                    self.waiting.push_front(Waiting::Lost { first_frame, frames: rest });
                }
                return Some(guess);
            }
        }
    }

    /// Takes a guess back that was run: its frames are the next job.
    pub fn accept_guess(&mut self, guess: Guess) {
        self.guessed = Some(guess);
    }

    /// The next piece of work; None if nothing waits or a job is out.
    pub fn next_job(&mut self) -> Option<DecodeJob> {
        if let Some(mut guess) = self.next_guess() {
            guess.run();
            self.accept_guess(guess);
        }
        let mut job = self.idle.take()?;
        if let Some(guess) = self.guessed.take() {
            (job.frames, job.first_frame, job.stages) = (guess.frames(), guess.first_frame(), guess.stages());
            job.codes.clear();
            job.codes.extend_from_slice(guess.codes());
            self.guessing = true;
            if let Some(concealer) = &mut self.concealer {
                concealer.take_back(guess);
            }
            return Some(self.with_noise(job));
        }
        let bundle = match self.next_known() {
            Some(Waiting::Bundle(bundle)) => bundle,
            Some(Waiting::Quiet { first_frame, frames }) => return Some(self.quiet_job(job, first_frame, frames)),
            _ => {
                self.idle = Some(job);
                return None;
            }
        };
        self.background.heard(&bundle);
        if let Some(concealer) = &mut self.concealer {
            concealer.heard(&bundle);
        }
        (job.frames, job.first_frame, job.stages) = (usize::from(bundle.frames), bundle.first_frame, bundle.stages);
        job.codes.clear();
        job.codes.extend_from_slice(&bundle.codes);
        self.guessing = false;
        Some(self.with_noise(job))
    }

    /// The next thing whose codes are known; descriptions on the way are taken in.
    fn next_known(&mut self) -> Option<Waiting> {
        loop {
            match self.waiting.pop_front()? {
                Waiting::Described(codes) => self.background.describe(&codes),
                lost @ (Waiting::Lost { .. } | Waiting::Cut) => {
                    self.waiting.push_front(lost);
                    return None;
                }
                known => return Some(known),
            }
        }
    }

    /// A job that makes up background.
    fn quiet_job(&mut self, mut job: DecodeJob, first_frame: u64, frames: u64) -> DecodeJob {
        let now = frames.min(u64::from(Profile::MAX_FRAMES_PER_BUNDLE));
        if now < frames {
            self.waiting.push_front(Waiting::Quiet { first_frame: first_frame + now, frames: frames - now });
        }
        // There is a description before every silence.
        let (stages, codes) =
            self.background.frames(first_frame, now as usize).unwrap_or((StageCount::ONE, vec![0; now as usize]));
        (job.frames, job.first_frame, job.stages, job.codes) = (now as usize, first_frame, stages, codes);
        self.guessing = false;
        self.with_noise(job)
    }

    /// Fills missing frames; those that are to be guessed, if any, are handed out, with the number of the others.
    fn lost(&mut self, first_frame: u64, frames: u64) -> Option<(Guess, u64)> {
        let frames = frames.min(MAX_GAP_FRAMES);
        let Some(concealer) = &mut self.concealer else {
            self.out.resize(self.out.len() + frames as usize * self.profile.frame_samples, 0.0);
            self.forget();
            return None;
        };
        let sampled = concealer.sampled(frames as usize);
        if let Some(guess) = (sampled > 0).then(|| concealer.guess(first_frame, sampled)).flatten() {
            return Some((guess, frames - sampled as u64));
        }
        concealer.comfort(frames as usize, self.profile.frame_samples, &mut self.out);
        self.forget();
        None
    }

    /// The network's state belongs to frames that were not followed by what comes next.
    fn forget(&mut self) {
        if let Some(job) = &mut self.idle {
            job.state.fill(0.0);
        }
    }

    fn with_noise(&self, mut job: DecodeJob) -> DecodeJob {
        job.noise.resize(job.frames * self.profile.noise_dim, 0.0);
        if self.profile.noise_dim > 0 {
            for (frame, noise) in (job.first_frame..).zip(job.noise.chunks_exact_mut(self.profile.noise_dim)) {
                decoder_noise(frame, noise);
            }
        }
        job
    }

    /// Takes a finished job back.
    pub fn accept(&mut self, mut job: DecodeJob) {
        if let Some(concealer) = &mut self.concealer {
            if self.guessing {
                concealer.fade(&mut job.pcm, self.profile.frame_samples);
            } else {
                concealer.listen(&job.pcm, self.profile.frame_samples);
            }
        }
        self.out.extend_from_slice(&job.pcm);
        self.idle = Some(job);
    }

    /// Appends what has been decoded to `out`, at the codec's rate.
    ///
    /// A stream's first `overlap_samples` of [`Profile`] precede its first input sample.
    pub fn pcm(&mut self, out: &mut Vec<f32>) {
        out.append(&mut self.out);
    }
}
