//! Samples of a recording -> latents, searched for or not.

use std::sync::Arc;

use super::Refiner;
use crate::codec::{ProcessError, Processor};
use crate::dsp::usable;
use crate::profile::Profile;

/// Frames of a file that are searched together (5 s), and those after them that are looked at.
const PART_FRAMES: usize = 250;
const AHEAD_FRAMES: usize = 10;

/// Turns one recording into latents, part by part. Give them to [`crate::codec::Encoder::push_latents`].
#[derive(Debug)]
pub struct Analyser<'a> {
    profile: Arc<Profile>,
    refiner: Option<&'a mut Refiner>,
    part: usize,
    ahead: usize,
    state: Vec<f32>,
    /// Samples from the first frame that is not done on.
    pcm: Vec<f32>,
    /// Latents of the first of these frames, as the encoder makes them.
    latents: Vec<f32>,
    samples_in: u64,
    finished: bool,
}

impl<'a> Analyser<'a> {
    /// An analyser of one recording; without a refiner the latents are the encoder's own.
    pub fn new(profile: Arc<Profile>, mut refiner: Option<&'a mut Refiner>) -> Self {
        if let Some(refiner) = &mut refiner {
            refiner.restart();
        }
        let (part, ahead) = (PART_FRAMES, AHEAD_FRAMES);
        let state = vec![0.0; profile.encoder_state];
        Self {
            profile,
            refiner,
            part,
            ahead,
            state,
            pcm: Vec::new(),
            latents: Vec::new(),
            samples_in: 0,
            finished: false,
        }
    }

    /// Makes parts of so many frames and looks at none after them, so that latents come as soon as the samples of a part are there.
    pub fn set_part(&mut self, frames: usize) {
        self.set_part_ahead(frames, 0);
    }

    /// Makes parts of so many frames and looks at `ahead` frames after them, which must be there before latents come.
    pub fn set_part_ahead(&mut self, frames: usize, ahead: usize) {
        (self.part, self.ahead) = (frames.max(1), ahead);
    }

    /// Takes so many steps of the search from the next part on.
    pub fn set_steps(&mut self, steps: u32) {
        if let Some(refiner) = &mut self.refiner {
            refiner.set_steps(steps);
        }
    }

    /// Samples at the codec's rate, treated as [`crate::codec::Encoder::push`] treats them.
    pub fn push(&mut self, pcm: &[f32]) {
        self.samples_in += pcm.len() as u64;
        self.pcm.extend(pcm.iter().map(|&x| usable(x)));
    }

    /// Ends the recording, with the silence that an encoder puts after it.
    pub fn finish(&mut self) {
        if !self.finished && self.samples_in > 0 {
            let missing = self.profile.padding(self.samples_in);
            self.pcm.resize(self.pcm.len() + missing, 0.0);
        }
        self.finished = true;
    }

    /// Appends the latents of the next part to `out`; false if samples are missing or all is done.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn next_part(&mut self, processor: &mut Processor, out: &mut Vec<f32>) -> Result<bool, ProcessError> {
        let (frame, dim) = (self.profile.frame_samples, self.profile.latent_dim);
        let ready = self.pcm.len() / frame;
        let frames = ready.min(self.part + self.ahead);
        if frames == 0 || (frames < self.part + self.ahead && !self.finished) {
            return Ok(false);
        }
        let known = self.latents.len() / dim;
        self.latents.resize(frames * dim, 0.0);
        processor.analyse(
            &self.pcm[known * frame..frames * frame],
            &mut self.state,
            &mut self.latents[known * dim..],
        )?;
        let keep = frames.min(self.part);
        // The frames ahead are looked at again, from where the encoder put them.
        let ahead = self.latents[keep * dim..].to_vec();
        if let Some(refiner) = &mut self.refiner {
            refiner.refine(&self.pcm[..frames * frame], &mut self.latents, keep)?;
        }
        out.extend_from_slice(&self.latents[..keep * dim]);
        self.latents = ahead;
        self.pcm.drain(..keep * frame);
        Ok(true)
    }
}

/// Latents of a whole recording at the codec's rate, the silence after it included.
///
/// # Errors
/// [`ProcessError`].
pub fn analyse_all(
    processor: &mut Processor,
    refiner: Option<&mut Refiner>,
    pcm: &[f32],
) -> Result<Vec<f32>, ProcessError> {
    let mut analyser = Analyser::new(processor.profile(), refiner);
    analyser.push(pcm);
    analyser.finish();
    let mut latents = Vec::new();
    while analyser.next_part(processor, &mut latents)? {}
    Ok(latents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, Encoder};
    use crate::fake;
    use crate::units::StageCount;

    fn sound(samples: usize) -> Vec<f32> {
        (0..samples).map(|n| ((n as f32 * 0.03).sin() + (n as f32 * 0.011).sin()) * 0.3).collect()
    }

    #[test]
    fn latents_given_make_the_bundles_that_the_encoder_would_make() {
        let (mut processor, stages) = (fake::processor(16, 7), StageCount::new(6).unwrap());
        for samples in [1, 479, 24_000, 300_000] {
            let pcm = sound(samples);
            let wanted = codec::encode_all(&mut processor, &pcm, stages, 5).unwrap();
            let latents = analyse_all(&mut processor, None, &pcm).unwrap();
            let mut encoder = Encoder::new(processor.profile(), stages, 5).unwrap();
            encoder.push(&pcm);
            encoder.finish();
            // However they are cut up.
            let mut bundles = Vec::new();
            for piece in latents.chunks(7 * processor.profile().latent_dim) {
                encoder.push_latents(piece);
                bundles.extend(std::iter::from_fn(|| processor.encode(&mut encoder).unwrap()));
            }
            assert_eq!(bundles, wanted, "{samples}");
        }
    }

    #[test]
    fn any_chunking_gives_the_same_latents() {
        let (mut processor, pcm) = (fake::processor(16, 7), sound(600_000));
        let whole = analyse_all(&mut processor, Some(&mut fake::refiner(3)), &pcm).unwrap();
        assert_eq!(whole.len(), 1_251 * 48);
        let mut refiner = fake::refiner(3);
        let mut analyser = Analyser::new(processor.profile(), Some(&mut refiner));
        let mut latents = Vec::new();
        for piece in pcm.chunks(7_001) {
            analyser.push(piece);
            while analyser.next_part(&mut processor, &mut latents).unwrap() {}
        }
        analyser.finish();
        while analyser.next_part(&mut processor, &mut latents).unwrap() {}
        assert!(latents == whole && !whole.is_empty());
    }

    #[test]
    fn a_search_comes_closer_and_a_refiner_can_be_used_again() {
        // Something that the fake decoder can make.
        let mut noise = vec![0.0; 4_800];
        crate::model::decoder_noise(1, &mut noise);
        let pcm: Vec<f32> = noise.iter().flat_map(|x| [0.3 * x; 10]).collect();
        let (mut processor, mut refiner) = (fake::processor(16, 7), fake::refiner(30));
        let first = analyse_all(&mut processor, Some(&mut refiner), &pcm).unwrap();
        let again = analyse_all(&mut processor, Some(&mut refiner), &pcm).unwrap();
        assert_eq!(first, again);
        let (plain, frames) = (analyse_all(&mut processor, None, &pcm).unwrap(), pcm.len() / 480);
        // As if the encoder had made everything too soft.
        let mut moved: Vec<f32> = plain.iter().map(|z| 0.5 * z).collect();
        refiner.restart();
        let padded = [pcm.clone(), vec![0.0; plain.len() / 48 * 480 - pcm.len()]].concat();
        let progress = refiner.refine(&padded, &mut moved, frames).unwrap();
        assert!(progress.last < 0.8 * progress.first, "{progress:?}");
    }

    #[test]
    fn a_live_part_needs_nothing_after_it() {
        let (mut processor, mut refiner) = (fake::processor(16, 7), fake::refiner(3));
        let mut analyser = Analyser::new(processor.profile(), Some(&mut refiner));
        analyser.set_part(5);
        let mut latents = Vec::new();
        analyser.push(&sound(5 * 480 - 1));
        assert!(!analyser.next_part(&mut processor, &mut latents).unwrap());
        analyser.push(&[0.1]);
        assert!(analyser.next_part(&mut processor, &mut latents).unwrap());
        assert_eq!(latents.len(), 5 * 48);
        assert!(!analyser.next_part(&mut processor, &mut latents).unwrap());
    }

    #[test]
    fn silence_is_left_alone() {
        let mut processor = fake::processor(16, 7);
        let silence = vec![0.0; 12_000];
        let latents = analyse_all(&mut processor, Some(&mut fake::refiner(5)), &silence).unwrap();
        assert!(latents.iter().all(|&z| z == 0.0) && latents.len() == 26 * 48);
        assert!(analyse_all(&mut processor, None, &[]).unwrap().is_empty());
    }
}
