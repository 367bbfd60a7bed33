//! Moves latents until what the decoder makes of them sounds like the original.

use super::loudness::{LoudnessDistance, active_power};
use super::onset;
use super::spectral::{LONGEST, SpectralDistance};
use crate::model::{DecodeRow, DecoderGradient, DecoderNet, GradientRow, NetworkError, decoder_noise};

/// Size of the first step as a share of the latents' root mean square; it falls linearly to nothing.
const STEP: f32 = 0.08;

/// Weight of the way gone, measured in the same unit: what is far from where the encoder put it is badly quantised.
const LEASH: f32 = 8.0;

/// Decay of Adam's two moments. Short memories, because there are few steps.
const MOMENTS: (f32, f32) = (0.5, 0.9);

/// Sound below this mean power (-70 dBFS) is left as the encoder made it.
const SILENCE: f32 = 1e-7;

/// A part this far below the loudest before it is judged as if it were no quieter, -20 dB.
const LEAST_OF_LOUDEST: f32 = 0.01;

/// Numbers of the model that a refiner needs.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Samples of a frame.
    pub frame_samples: usize,
    /// Samples by which decoded sound lags the original.
    pub overlap_samples: usize,
    /// Width of a latent.
    pub latent_dim: usize,
    /// Random numbers the decoder takes for one frame.
    pub noise_dim: usize,
    /// Root mean square of the latents.
    pub latent_rms: f32,
}

/// Analysis by synthesis (Atal 1982, there by trying codes) with gradients: Adam (Kingma 2015) on the latents of some frames, through
/// the decoder, towards the least spectral and loudness distance.
pub struct Refiner {
    shape: Shape,
    steps: u32,
    decoder: Box<dyn DecoderNet>,
    gradient: Box<dyn DecoderGradient>,
    spectral: SpectralDistance,
    loudness: LoudnessDistance,
    track: Track,
}

/// How far the search of one recording has come. With [`Refiner::exchange`] one refiner serves several.
#[derive(Debug, Clone)]
pub struct Track {
    /// Decoder's state before the next frame.
    state: Vec<f32>,
    next_frame: u64,
    /// The last samples of the original and of what was decoded, so that windows reach back.
    before: (Vec<f32>, Vec<f32>),
    /// Samples of the original that are decoded with the next frame.
    overlap: Vec<f32>,
    loudest: f32,
}

impl Track {
    fn new(shape: &Shape, state_size: usize, next_frame: u64) -> Self {
        Self {
            state: vec![0.0; state_size],
            next_frame,
            before: (vec![0.0; LONGEST], vec![0.0; LONGEST]),
            overlap: vec![0.0; shape.overlap_samples],
            loudest: 0.0,
        }
    }
}

impl std::fmt::Debug for Refiner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refiner").field("shape", &self.shape).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// Distance before the first step and before the last.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// With the encoder's latents.
    pub first: f32,
    /// With those moved.
    pub last: f32,
}

impl Refiner {
    /// A refiner of a recording from its first frame on, `steps` steps for each part of it.
    pub fn new(shape: Shape, steps: u32, decoder: Box<dyn DecoderNet>, gradient: Box<dyn DecoderGradient>) -> Self {
        Self {
            shape,
            steps,
            track: Track::new(&shape, decoder.state_size(), 0),
            decoder,
            gradient,
            spectral: SpectralDistance::new(),
            loudness: LoudnessDistance::new(),
        }
    }

    /// The track of a recording whose search begins with that frame.
    pub fn track(&self, first_frame: u64) -> Track {
        Track::new(&self.shape, self.decoder.state_size(), first_frame)
    }

    /// Goes on with another recording's track, and gives back the one of this.
    pub fn exchange(&mut self, track: &mut Track) {
        std::mem::swap(&mut self.track, track);
    }

    /// Whole frames in so many samples.
    pub fn frames(&self, pcm: &[f32]) -> usize {
        pcm.len() / self.shape.frame_samples
    }

    /// Takes so many steps from the next part on.
    pub fn set_steps(&mut self, steps: u32) {
        self.steps = steps;
    }

    /// Starts again, at the first frame of another recording.
    pub fn restart(&mut self) {
        self.track = self.track(0);
    }

    /// Moves latents `[T * latent_dim]` of the next frames, whose samples are `pcm` `[T * frame_samples]`. The first `keep` frames
    /// count as done afterwards; those after them are there so that the end of a part is judged with what follows.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn refine(&mut self, pcm: &[f32], latents: &mut [f32], keep: usize) -> Result<Progress, NetworkError> {
        self.refine_while(pcm, latents, keep, &mut || true)
    }

    /// As [`Refiner::refine`], with no more steps once `go_on` says so, which is asked before each.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn refine_while(
        &mut self,
        pcm: &[f32],
        latents: &mut [f32],
        keep: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Progress, NetworkError> {
        let shape = self.shape;
        let frames = self.frames(pcm);
        let mut noise = vec![0.0; frames * shape.noise_dim];
        for (frame, out) in (self.track.next_frame..).zip(noise.chunks_exact_mut(shape.noise_dim)) {
            decoder_noise(frame, out);
        }
        let mut original = self.track.before.0.clone();
        original.extend_from_slice(&self.track.overlap);
        original.extend_from_slice(&pcm[..pcm.len() - shape.overlap_samples]);
        let part = &original[LONGEST..];
        let power = part.iter().map(|x| x * x).sum::<f32>() / part.len().max(1) as f32;
        let mut progress = Progress { first: 0.0, last: 0.0 };
        if power > SILENCE && self.steps > 0 {
            let active = active_power(part);
            self.track.loudest = self.track.loudest.max(active);
            let active = active.max(LEAST_OF_LOUDEST * self.track.loudest);
            let kept = self.kept_frames(&original, &pcm[pcm.len() - shape.overlap_samples..]);
            progress = self.descend(&original, &noise, latents, active, &kept, go_on)?;
        }
        let keep = keep.min(frames);
        let mut decoded = vec![0.0; keep * shape.frame_samples];
        self.decoder.decode(
            &mut [DecodeRow {
                latents: &latents[..keep * shape.latent_dim],
                noise: &noise[..keep * shape.noise_dim],
                state: &mut self.track.state,
                pcm: &mut decoded,
            }],
            keep,
        )?;
        let track = &mut self.track;
        track.next_frame += keep as u64;
        let end = LONGEST + keep * shape.frame_samples;
        track.before.0 = original[end - LONGEST..end].to_vec();
        track.before.1.extend_from_slice(&decoded);
        track.before.1.drain(..track.before.1.len() - LONGEST);
        let at = keep * shape.frame_samples;
        track.overlap = pcm[at - shape.overlap_samples..at].to_vec();
        Ok(progress)
    }

    /// Frames that stay as they are, because a sound begins in one of their blocks. A block spans two hops: what begins in a hop is in
    /// the one that ends with it and in the next, so the hop before a frame counts as well. The original, which is `rest` short of its
    /// last frame, begins with what was before.
    fn kept_frames(&self, original: &[f32], rest: &[f32]) -> Vec<usize> {
        let (frame, hop) = (self.shape.frame_samples, self.shape.frame_samples / 2);
        let sound = [&original[LONGEST + self.shape.overlap_samples - hop - frame..], rest].concat();
        let begins = onset::beginnings(&sound[..frame], &sound[frame..], hop);
        begins.windows(3).step_by(2).enumerate().filter(|(_, hops)| hops.contains(&true)).map(|(at, _)| at).collect()
    }

    fn descend(
        &mut self,
        original: &[f32],
        noise: &[f32],
        latents: &mut [f32],
        active: f32,
        kept: &[usize],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Progress, NetworkError> {
        let frames = latents.len() / self.shape.latent_dim;
        let spectral = self.spectral.target(original);
        let loudness = self.loudness.target(original, active);
        let start = latents.to_vec();
        let rms = self.shape.latent_rms;
        let leash = 2.0 * LEASH / (rms * rms * latents.len() as f32);
        let mut decoded = self.track.before.1.clone();
        decoded.resize(original.len(), 0.0);
        let (mut pcm_slope, mut slope) = (vec![0.0; original.len()], vec![0.0; latents.len()]);
        let mut moments = vec![(0.0f32, 0.0f32); latents.len()];
        let mut progress = Progress { first: 0.0, last: 0.0 };
        for step in 0..self.steps {
            if !go_on() {
                break;
            }
            let mut state = self.track.state.clone();
            let pcm = &mut decoded[LONGEST..];
            self.decoder.decode(&mut [DecodeRow { latents, noise, state: &mut state, pcm }], frames)?;
            progress.last = self.spectral.measure(&decoded, &spectral, &mut pcm_slope)
                + self.loudness.measure(&decoded, &loudness, &mut pcm_slope);
            if step == 0 {
                progress.first = progress.last;
            }
            let row = GradientRow { latents, noise, state: &self.track.state, pcm_slope: &pcm_slope[LONGEST..] };
            self.gradient.pull_back(&row, frames, &mut slope)?;
            for frame in kept {
                slope[frame * self.shape.latent_dim..][..self.shape.latent_dim].fill(0.0);
            }
            let size = STEP * rms * (1.0 - step as f32 / self.steps as f32);
            let bias = (1.0 - MOMENTS.0.powi(step as i32 + 1), 1.0 - MOMENTS.1.powi(step as i32 + 1));
            for ((z, start), (slope, m)) in latents.iter_mut().zip(&start).zip(slope.iter().zip(&mut moments)) {
                let slope = slope + leash * (*z - start);
                m.0 = MOMENTS.0 * m.0 + (1.0 - MOMENTS.0) * slope;
                m.1 = MOMENTS.1 * m.1 + (1.0 - MOMENTS.1) * slope * slope;
                let moved = size * (m.0 / bias.0) / ((m.1 / bias.1).sqrt() + 1e-8);
                // A network that went wrong must not spoil the codes.
                if moved.is_finite() {
                    *z -= moved;
                }
            }
        }
        Ok(progress)
    }
}
