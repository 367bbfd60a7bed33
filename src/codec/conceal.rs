//! Concealment: what is played when frames are missing.
//!
//! The token model continues the last frames for at most [`SAMPLED_FRAMES`], the cooler the longer it lasts; over the last
//! of them the sound fades into comfort noise at the level and colour of the quietest frames heard lately.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::bitstream::Bundle;
use crate::sampling::Params;
use crate::token::{Generator, TokenModel};
use crate::units::StageCount;

/// Frames that are continued by sampling: 120 ms.
pub const SAMPLED_FRAMES: usize = 6;

/// Frames at full level before the fade.
const FULL_FRAMES: usize = 2;

/// Frames remembered to continue from: 0.64 s.
const HISTORY: usize = 32;

/// Frames over which the quietest one is sought: 2 s.
const FLOOR_FRAMES: usize = 100;

/// Comfort noise is never louder, RMS of full scale.
const LOUDEST_NOISE: f32 = 0.004;

/// Temperature of the first concealed frame, and what each further one multiplies it by.
const TEMPERATURE: f32 = 0.6;
const COOLING: f32 = 0.8;

/// Level and colour of a frame: RMS, and correlation of neighbouring samples.
#[derive(Debug, Clone, Copy)]
struct Floor {
    rms: f32,
    correlation: f32,
}

/// Codes for frames that are missing, to be made by whoever has time: milliseconds of the token model.
///
/// It owns all that it needs, so it may run on any thread while its decoder stays where it is.
#[derive(Debug)]
pub struct Guess {
    source: CodeSource,
    stages: StageCount,
    /// Frames since the last real one, before these.
    age: usize,
    first_frame: u64,
    frames: usize,
    /// Result: `[frames * stages]`.
    codes: Vec<u16>,
}

/// Where guessed codes come from.
#[derive(Debug)]
enum CodeSource {
    /// A token model that has to hear the last frames first.
    Fresh { tokens: Arc<TokenModel>, history: Vec<Vec<u16>>, seed: u64 },
    /// One that already continues them.
    Running(Box<Generator>),
    /// The last frame again and again.
    Repeat(Vec<u16>),
}

impl Guess {
    /// Makes the codes.
    pub fn run(&mut self) {
        self.codes.clear();
        if let CodeSource::Fresh { tokens, history, seed } = &self.source {
            let frames = history.iter().map(Vec::as_slice);
            let generator = Generator::new(Arc::clone(tokens), frames, self.stages, Params::greedy(), *seed);
            self.source = CodeSource::Running(Box::new(generator));
        }
        match &mut self.source {
            CodeSource::Running(generator) => {
                for frame in 0..self.frames {
                    let temperature = TEMPERATURE * COOLING.powi((self.age + frame) as i32);
                    generator.set_params(Params::default().temperature(temperature).unwrap_or(Params::greedy()));
                    generator.frame(&mut self.codes);
                }
            }
            CodeSource::Repeat(frame) => (0..self.frames).for_each(|_| self.codes.extend_from_slice(frame)),
            CodeSource::Fresh { .. } => {}
        }
    }

    /// Leaves the token model out: the last frame is repeated, which costs nothing.
    pub fn run_cheaply(&mut self) {
        if let CodeSource::Fresh { history, .. } = &mut self.source {
            let mut last = history.pop().unwrap_or_default();
            last.truncate(self.stages.index());
            self.source = CodeSource::Repeat(last);
        }
        self.run();
    }

    pub(super) fn first_frame(&self) -> u64 {
        self.first_frame
    }

    pub(super) fn stages(&self) -> StageCount {
        self.stages
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    pub(super) fn codes(&self) -> &[u16] {
        &self.codes
    }
}

/// One stream's concealment.
#[derive(Debug)]
pub struct Concealer {
    tokens: Option<Arc<TokenModel>>,
    history: VecDeque<(StageCount, Vec<u16>)>,
    /// What guesses while a loss lasts.
    guessing: Option<Box<Generator>>,
    floors: VecDeque<Floor>,
    /// Frames since the last real one.
    age: usize,
    noise_state: u64,
    noise_last: f32,
    concealed: u64,
}

impl Concealer {
    /// Without a token model the last frame is repeated instead of continued.
    pub fn new(tokens: Option<Arc<TokenModel>>) -> Self {
        Self {
            tokens,
            history: VecDeque::new(),
            guessing: None,
            floors: VecDeque::new(),
            age: 0,
            noise_state: 0,
            noise_last: 0.0,
            concealed: 0,
        }
    }

    /// Frames that were concealed so far, by sampling or by noise.
    pub fn concealed_frames(&self) -> u64 {
        self.concealed
    }

    /// Notes a bundle that came.
    pub(super) fn heard(&mut self, bundle: &Bundle) {
        for frame in bundle.by_frame().rev().take(HISTORY).rev() {
            let Ok(stages) = StageCount::new(frame.len() as u8) else { continue };
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back((stages, frame.to_vec()));
        }
        self.guessing = None;
        self.age = 0;
    }

    /// Notes decoded samples `[frames * frame_samples]` of real frames.
    pub(super) fn listen(&mut self, pcm: &[f32], frame_samples: usize) {
        for frame in pcm.chunks_exact(frame_samples) {
            let power: f32 = frame.iter().map(|v| v * v).sum();
            let lag: f32 = frame.windows(2).map(|w| w[0] * w[1]).sum();
            if self.floors.len() == FLOOR_FRAMES {
                self.floors.pop_front();
            }
            let correlation = if power > 0.0 { (lag / power).clamp(-0.95, 0.95) } else { 0.0 };
            self.floors.push_back(Floor { rms: (power / frame_samples as f32).sqrt(), correlation });
        }
    }

    /// How many of `frames` missing ones are to be sampled; the rest is noise.
    pub(super) fn sampled(&self, frames: usize) -> usize {
        if self.history.is_empty() { 0 } else { SAMPLED_FRAMES.saturating_sub(self.age).min(frames) }
    }

    /// The work of continuing the stream by `frames` frames; the seed is the number of the first. None before the first
    /// frame.
    pub(super) fn guess(&mut self, first_frame: u64, frames: usize) -> Option<Guess> {
        let (stages, last) = self.history.back()?;
        let source = match (self.guessing.take(), &self.tokens) {
            (Some(generator), _) => CodeSource::Running(generator),
            (None, Some(tokens)) => {
                let history = self.history.iter().map(|(_, codes)| codes.clone()).collect();
                CodeSource::Fresh { tokens: Arc::clone(tokens), history, seed: first_frame }
            }
            (None, None) => CodeSource::Repeat(last[..stages.index()].to_vec()),
        };
        Some(Guess { source, stages: *stages, age: self.age, first_frame, frames, codes: Vec::new() })
    }

    /// Keeps what can go on guessing, should the loss last.
    pub(super) fn take_back(&mut self, guess: Guess) {
        if let CodeSource::Running(generator) = guess.source {
            self.guessing = Some(generator);
        }
    }

    /// Turns decoded guesses into what is played: fades them and adds comfort noise.
    pub(super) fn fade(&mut self, pcm: &mut [f32], frame_samples: usize) {
        let floor = self.floor();
        let (start, length) = (FULL_FRAMES * frame_samples, (SAMPLED_FRAMES - FULL_FRAMES) * frame_samples);
        let first = self.age * frame_samples;
        for (i, sample) in pcm.iter_mut().enumerate() {
            let along = (first + i).saturating_sub(start).min(length) as f32 / length as f32;
            let keep = 0.5 + 0.5 * libm::cosf(std::f32::consts::PI * along);
            *sample = *sample * keep + self.noise(floor) * (1.0 - keep * keep).max(0.0).sqrt();
        }
        self.pass(pcm.len() / frame_samples);
    }

    /// Appends comfort noise alone.
    pub(super) fn comfort(&mut self, frames: usize, frame_samples: usize, out: &mut Vec<f32>) {
        let floor = self.floor();
        out.extend((0..frames * frame_samples).map(|_| self.noise(floor)));
        self.pass(frames);
    }

    fn pass(&mut self, frames: usize) {
        self.age = self.age.saturating_add(frames);
        self.concealed += frames as u64;
    }

    fn floor(&self) -> Floor {
        let quietest = self.floors.iter().copied().min_by(|a, b| a.rms.total_cmp(&b.rms));
        let floor = quietest.unwrap_or(Floor { rms: 0.0, correlation: 0.0 });
        Floor { rms: floor.rms.min(LOUDEST_NOISE), ..floor }
    }

    /// The next sample of noise with this level and neighbour correlation (a first-order autoregression).
    fn noise(&mut self, floor: Floor) -> f32 {
        self.noise_state =
            self.noise_state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let white = ((self.noise_state >> 40) as f32 / 8_388_608.0 - 1.0) * 3f32.sqrt();
        let c = floor.correlation;
        self.noise_last = c * self.noise_last + (1.0 - c * c).sqrt() * white;
        self.noise_last * floor.rms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(frames: u8) -> Bundle {
        let stages = StageCount::new(2).unwrap();
        Bundle::new(0, frames, stages, (0..u16::from(frames) * 2).collect()).unwrap()
    }

    #[test]
    fn sound_fades_into_noise_of_the_floor() {
        let mut c = Concealer::new(None);
        assert_eq!(c.sampled(3), 0, "nothing was heard yet");
        c.heard(&bundle(3));
        let loud: Vec<f32> = (0..480).map(|i| if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
        let quiet: Vec<f32> = loud.iter().map(|v| v * 0.004).collect();
        c.listen(&[loud.clone(), quiet].concat(), 480);
        assert_eq!((c.sampled(3), c.sampled(50)), (3, SAMPLED_FRAMES));
        let mut guess = c.guess(3, 4).unwrap();
        guess.run();
        assert_eq!((guess.first_frame(), guess.stages().value()), (3, 2));
        assert_eq!(guess.codes(), [4, 5, 4, 5, 4, 5, 4, 5]);
        let mut pcm = vec![0.5; 4 * 480];
        c.fade(&mut pcm, 480);
        assert!(pcm[..960].iter().all(|&v| v == 0.5), "full level at first");
        assert_eq!(c.sampled(50), 2);
        let mut rest = vec![0.5; 2 * 480];
        c.fade(&mut rest, 480);
        assert_eq!(c.sampled(50), 0);
        pcm.extend(rest);
        assert!(pcm.windows(2).skip(960).all(|w| (w[0] - w[1]).abs() < 0.02), "no step");
        let mut noise = Vec::new();
        c.comfort(20, 480, &mut noise);
        let rms = (noise.iter().map(|v| v * v).sum::<f32>() / noise.len() as f32).sqrt();
        assert!((rms / 0.002 - 1.0).abs() < 0.15, "{rms}");
        // The floor alternated in sign, and so does the noise.
        assert!(noise.windows(2).map(|w| w[0] * w[1]).sum::<f32>() < 0.0);
        assert_eq!(c.concealed_frames(), 26);
        c.heard(&bundle(1));
        assert_eq!(c.sampled(50), SAMPLED_FRAMES);
    }

    #[test]
    fn silence_stays_silent() {
        let mut c = Concealer::new(None);
        c.heard(&bundle(1));
        c.listen(&[0.0; 480], 480);
        let mut noise = Vec::new();
        c.comfort(5, 480, &mut noise);
        assert!(noise.iter().all(|&v| v == 0.0));
    }
}
