//! What a codec model is: its manifest, and the networks as traits over batches of rows.
//!
//! A row carries its own state, so rows of different streams may share a call and a row may be dropped at any time.

mod digests;
mod manifest;

pub use digests::{DigestError, Digests};
pub use manifest::{FileEntry, GraphEntry, Manifest, ManifestError, sha256_hex};

/// Name of a model's token model in its folder.
pub const TOKENS: &str = "tokens.safetensors";

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) from a seed on.
#[derive(Debug, Clone)]
pub struct SplitMix(pub u64);

impl SplitMix {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// The next number, in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Deterministic noise that the decoder network is fed, so that the same codes always give the same samples.
///
/// Fills `out` with the values of frame `frame`: [`SplitMix`] over a counter of values, scaled to -1..1.
/// The training recipe computes the same numbers.
pub fn decoder_noise(frame: u64, out: &mut [f32]) {
    let mut noise = SplitMix(frame.wrapping_mul(out.len() as u64).wrapping_mul(SplitMix::STEP));
    for value in out {
        *value = (noise.number() >> 40) as f32 / 8_388_608.0 - 1.0;
    }
}

/// A network that failed to run or gave what cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{network}: {reason}")]
pub struct NetworkError {
    /// Which network.
    pub network: &'static str,
    /// What happened.
    pub reason: String,
}

/// One stream's part of an encoder call; all rows of a call have the same number of frames T.
#[derive(Debug)]
pub struct EncodeRow<'a> {
    /// Samples in -1..1, `[T * frame_samples]`.
    pub pcm: &'a [f32],
    /// State before the call; holds the state after it when the call returns. `[state_size]`.
    pub state: &'a mut [f32],
    /// Output `[T * latent_dim]`.
    pub latents: &'a mut [f32],
}

/// One stream's part of a decoder call; all rows of a call have the same number of frames T.
#[derive(Debug)]
pub struct DecodeRow<'a> {
    /// Quantised latents `[T * latent_dim]`.
    pub latents: &'a [f32],
    /// `[T * noise_dim]`, from [`decoder_noise`].
    pub noise: &'a [f32],
    /// State before the call; holds the state after it when the call returns. `[state_size]`.
    pub state: &'a mut [f32],
    /// Output samples `[T * frame_samples]`.
    pub pcm: &'a mut [f32],
}

/// The causal encoder network.
pub trait EncoderNet: Send {
    /// Floats of one row's state.
    fn state_size(&self) -> usize;
    /// Runs `frames` frames of every row.
    ///
    /// # Errors
    /// [`NetworkError`] when the runtime fails; rows are then unusable.
    fn encode(&mut self, rows: &mut [EncodeRow<'_>], frames: usize) -> Result<(), NetworkError>;
}

/// The causal decoder network.
pub trait DecoderNet: Send {
    /// Floats of one row's state.
    fn state_size(&self) -> usize;
    /// Runs `frames` frames of every row.
    ///
    /// # Errors
    /// [`NetworkError`] when the runtime fails; rows are then unusable.
    fn decode(&mut self, rows: &mut [DecodeRow<'_>], frames: usize) -> Result<(), NetworkError>;
}

/// What a change of the decoder's samples means for its latents.
pub trait DecoderGradient: Send {
    /// For one row of `frames` frames, as given to the decoder: from the slope of something by each sample, `pcm_slope`
    /// `[T * frame_samples]`, to its slope by each latent value, `latent_slope` `[T * latent_dim]`.
    ///
    /// # Errors
    /// [`NetworkError`] when the runtime fails.
    fn pull_back(&mut self, row: &GradientRow<'_>, frames: usize, latent_slope: &mut [f32])
    -> Result<(), NetworkError>;
}

/// Input of [`DecoderGradient::pull_back`].
#[derive(Debug)]
pub struct GradientRow<'a> {
    /// Latents `[T * latent_dim]`.
    pub latents: &'a [f32],
    /// `[T * noise_dim]`, from [`decoder_noise`].
    pub noise: &'a [f32],
    /// State before the first frame `[state_size]`.
    pub state: &'a [f32],
    /// `[T * frame_samples]`.
    pub pcm_slope: &'a [f32],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_everywhere() {
        let mut a = [0.0f32; 4];
        decoder_noise(0, &mut a);
        // First outputs of SplitMix64 seeded with 0.
        assert_eq!((a[0] as f64 + 1.0) * 8_388_608.0, (0xE220_A839_7B1D_CDAFu64 >> 40) as f64);
        assert_eq!((a[1] as f64 + 1.0) * 8_388_608.0, (0x6E78_9E6A_A1B9_65F4u64 >> 40) as f64);
        let mut b = [0.0f32; 4];
        decoder_noise(1, &mut b);
        assert_ne!(a, b);
        assert!(a.iter().chain(&b).all(|v| (-1.0..1.0).contains(v)));
    }
}
