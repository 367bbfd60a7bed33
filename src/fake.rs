//! A model without weights: deterministic networks, as honest as real ones: causal, stateful, with the declared delay.
//!
//! Everything above the networks is tested with them, and no ONNX file need be present.

use std::sync::Arc;

use crate::codec::Processor;
use crate::model::{DecodeRow, DecoderGradient, DecoderNet, EncodeRow, EncoderNet, GradientRow, NetworkError};
use crate::profile::Profile;
use crate::rvq::{BeamWidth, Codebooks, Searcher, SimdLevel};
use crate::synthesis::{Refiner, Shape};
use crate::units::{ModelId, StageCount};

const FRAME: usize = Profile::FRAME_SAMPLES;
const OVERLAP: usize = 240;
const DIM: usize = 48;
const HOP: usize = FRAME / DIM;
const ENTRIES: usize = 256;

/// Latent = mean of each of 48 pieces of the frame; the state counts the samples seen.
#[derive(Debug, Default)]
pub struct FakeEncoder;

/// Each latent value becomes a step of ten samples, delayed by the overlap; the state is the overlap.
#[derive(Debug, Default)]
pub struct FakeDecoder;

impl EncoderNet for FakeEncoder {
    fn state_size(&self) -> usize {
        1
    }

    fn encode(&mut self, rows: &mut [EncodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        for row in rows {
            if row.pcm.len() != frames * FRAME || row.latents.len() != frames * DIM || row.state.len() != 1 {
                return Err(NetworkError { network: "fake encoder", reason: "row has the wrong size".to_owned() });
            }
            for (piece, latent) in row.pcm.chunks_exact(HOP).zip(row.latents.iter_mut()) {
                *latent = piece.iter().sum::<f32>() / HOP as f32;
            }
            row.state[0] += row.pcm.len() as f32;
        }
        Ok(())
    }
}

impl DecoderNet for FakeDecoder {
    fn state_size(&self) -> usize {
        OVERLAP
    }

    fn decode(&mut self, rows: &mut [DecodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        for row in rows {
            if row.latents.len() != frames * DIM || row.pcm.len() != frames * FRAME || row.state.len() != OVERLAP {
                return Err(NetworkError { network: "fake decoder", reason: "row has the wrong size".to_owned() });
            }
            for (latents, pcm) in row.latents.chunks_exact(DIM).zip(row.pcm.chunks_exact_mut(FRAME)) {
                let step = |n: usize| latents[n / HOP];
                pcm[..OVERLAP].copy_from_slice(row.state);
                for (n, x) in pcm[OVERLAP..].iter_mut().enumerate() {
                    *x = step(n);
                }
                for (n, x) in row.state.iter_mut().enumerate() {
                    *x = step(n + OVERLAP);
                }
            }
        }
        Ok(())
    }
}

impl DecoderGradient for FakeDecoder {
    fn pull_back(
        &mut self,
        row: &GradientRow<'_>,
        frames: usize,
        latent_slope: &mut [f32],
    ) -> Result<(), NetworkError> {
        if row.pcm_slope.len() != frames * FRAME || latent_slope.len() != frames * DIM {
            return Err(NetworkError { network: "fake gradient", reason: "row has the wrong size".to_owned() });
        }
        for (i, slope) in latent_slope.iter_mut().enumerate() {
            let steps = row.pcm_slope.iter().skip(OVERLAP + i * HOP).take(HOP);
            *slope = steps.sum();
        }
        Ok(())
    }
}

/// A refiner of the fake model.
pub fn refiner(steps: u32) -> Refiner {
    let shape =
        Shape { frame_samples: FRAME, overlap_samples: OVERLAP, latent_dim: DIM, noise_dim: 4, latent_rms: 0.2 };
    Refiner::new(shape, steps, Box::new(FakeDecoder), Box::new(FakeDecoder))
}

/// Numbers of the fake model.
pub fn profile(stages: u8) -> Profile {
    Profile {
        model_id: ModelId(*b"fakefake"),
        name: "fake".to_owned(),
        frame_samples: FRAME,
        delay_samples: FRAME + OVERLAP,
        latent_dim: DIM,
        entries: ENTRIES,
        noise_dim: 4,
        stages: StageCount::new(stages).unwrap_or(StageCount::MAX),
        encoder_state: 1,
        decoder_state: OVERLAP,
    }
}

/// Pseudo-random codebooks whose entries shrink from stage to stage.
pub fn codebooks(stages: u8, seed: u64) -> Codebooks {
    let profile = profile(stages);
    let mut x = seed;
    let mut data = vec![0.0f32; profile.stages.index() * ENTRIES * DIM];
    for (stage, entries) in data.chunks_exact_mut(ENTRIES * DIM).enumerate() {
        for value in entries {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *value = ((x >> 40) as f32 / 8_388_608.0 - 1.0) * 0.5 * 0.8f32.powi(stage as i32);
        }
    }
    Codebooks::new(data, profile.stages.index(), ENTRIES, DIM).expect("the fake codebooks are well-formed")
}

/// A fake model with such codebooks.
pub fn processor(stages: u8, seed: u64) -> Processor {
    let profile = profile(stages);
    let codebooks = Arc::new(codebooks(stages, seed));
    let searcher = Searcher::new(Arc::clone(&codebooks), BeamWidth::GREEDY, SimdLevel::detect());
    Processor::new(Arc::new(profile), Box::new(FakeEncoder), Box::new(FakeDecoder), codebooks, searcher)
}
