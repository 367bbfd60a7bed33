//! `manifest.toml` of a model folder: which files, what they must contain, what they compute.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::profile::Profile;
use crate::rvq::{Codebooks, RvqError};
use crate::units::{CODEC_RATE, MAX_STAGES, ModelId, StageCount};

/// A manifest that was read and checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's format: 1.
    pub format: u32,
    /// Name of the model, as in `undertone-24k-v1`.
    pub name: String,
    /// 24000.
    pub sample_rate_hz: u32,
    /// Samples of one frame: 480.
    pub frame_samples: usize,
    /// Algorithmic delay of encoder and decoder together, the frame itself included.
    pub delay_samples: usize,
    /// Width of a latent.
    pub latent_dim: usize,
    /// Quantiser stages, 1 to 24.
    pub stages: usize,
    /// Entries of a codebook, 2 to 1024.
    pub entries: usize,
    /// Random numbers the decoder takes for one frame.
    pub noise_dim: usize,
    /// The encoder graph.
    pub encoder: GraphEntry,
    /// The decoder graph.
    pub decoder: GraphEntry,
    /// The codebooks, safetensors `codebooks` `[stages, entries, latent_dim]`.
    pub codebooks: FileEntry,
    /// A golden example, safetensors `pcm`, `latent`, `codes`, `decoded`.
    pub golden: FileEntry,
    /// Name of the codes this model makes; computed from the file, not in it.
    #[serde(skip, default = "no_id")]
    pub id: ModelId,
}

/// An ONNX graph of a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphEntry {
    /// File name in the model folder.
    pub path: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Floats of one stream's state.
    pub state_size: usize,
    /// Multiply-accumulates of one frame.
    pub macs_per_frame: u64,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// File name in the model folder.
    pub path: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not TOML, or a key is missing or unknown.
    #[error("manifest.toml: {0}")]
    Syntax(String),
    /// A value outside its range.
    #[error("manifest.toml: {key} = {got}, allowed: {allowed}")]
    Value {
        /// Key in the file.
        key: &'static str,
        /// Value as read.
        got: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A file's content is not what the manifest names.
    #[error("{path}: SHA-256 is {got}, manifest.toml says {expected}; fetch the model folder again")]
    Hash {
        /// File name.
        path: String,
        /// Hash of the file as found.
        got: String,
        /// Hash in the manifest.
        expected: String,
    },
    /// A tensor is missing or has another shape or type than the manifest says.
    #[error("{path}: {reason}")]
    Tensor {
        /// File name.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

fn no_id() -> ModelId {
    ModelId([0; 8])
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256_hex(content: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(content))
}

impl Manifest {
    /// The codebooks that are the content of the file [`Manifest::codebooks`] names, in the shape that is stated here.
    ///
    /// # Errors
    /// Of [`Codebooks::from_safetensors`].
    pub fn read_codebooks(&self, content: &[u8]) -> Result<Codebooks, RvqError> {
        Codebooks::from_safetensors(content, self.stages, self.entries, self.latent_dim)
    }

    /// Parses the bytes of `manifest.toml`.
    ///
    /// # Errors
    /// [`ManifestError::Syntax`] and [`ManifestError::Value`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let text = std::str::from_utf8(bytes).map_err(|e| ManifestError::Syntax(e.to_string()))?;
        let mut m: Self = toml::from_str(text).map_err(|e| ManifestError::Syntax(e.to_string()))?;
        m.check()?;
        let digest = Sha256::digest(bytes);
        m.id = ModelId(std::array::from_fn(|i| digest[i]));
        Ok(m)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let range = |key, got: usize, low: usize, high: usize, allowed| {
            if (low..=high).contains(&got) {
                Ok(())
            } else {
                Err(ManifestError::Value { key, got: got.to_string(), allowed })
            }
        };
        range("format", self.format as usize, 1, 1, "1")?;
        range(
            "sample_rate_hz",
            self.sample_rate_hz as usize,
            CODEC_RATE.hz() as usize,
            CODEC_RATE.hz() as usize,
            "24000",
        )?;
        let frame = Profile::FRAME_SAMPLES;
        range("frame_samples", self.frame_samples, frame, frame, "480")?;
        range("delay_samples", self.delay_samples, self.frame_samples, 24_000, "frame_samples to 24000")?;
        range("latent_dim", self.latent_dim, 8, 512, "8 to 512, a multiple of 8")?;
        range("latent_dim", self.latent_dim % 8, 0, 0, "8 to 512, a multiple of 8")?;
        range("stages", self.stages, 1, usize::from(MAX_STAGES), "1 to 24")?;
        range("entries", self.entries, 2, 1024, "2 to 1024")?;
        range("noise_dim", self.noise_dim, 0, 1024, "0 to 1024")?;
        range("encoder.state_size", self.encoder.state_size, 1, 1 << 20, "1 to 1048576")?;
        range("decoder.state_size", self.decoder.state_size, 1, 1 << 20, "1 to 1048576")?;
        for (key, path) in [
            ("encoder.path", &self.encoder.path),
            ("decoder.path", &self.decoder.path),
            ("codebooks.path", &self.codebooks.path),
            ("golden.path", &self.golden.path),
        ] {
            if path.is_empty() || path.contains(['/', '\\']) || path.starts_with('.') {
                return Err(ManifestError::Value {
                    key,
                    got: path.clone(),
                    allowed: "a file name in the model's folder",
                });
            }
        }
        Ok(())
    }

    /// The numbers that follow from it.
    pub fn profile(&self) -> Profile {
        Profile {
            model_id: self.id,
            name: self.name.clone(),
            frame_samples: self.frame_samples,
            delay_samples: self.delay_samples,
            latent_dim: self.latent_dim,
            entries: self.entries,
            noise_dim: self.noise_dim,
            stages: u8::try_from(self.stages).ok().and_then(|s| StageCount::new(s).ok()).unwrap_or(StageCount::MAX),
            encoder_state: self.encoder.state_size,
            decoder_state: self.decoder.state_size,
        }
    }

    /// Every file of the model by name, with its hash.
    pub fn files(&self) -> BTreeMap<&str, &str> {
        BTreeMap::from([
            (self.encoder.path.as_str(), self.encoder.sha256.as_str()),
            (self.decoder.path.as_str(), self.decoder.sha256.as_str()),
            (self.codebooks.path.as_str(), self.codebooks.sha256.as_str()),
            (self.golden.path.as_str(), self.golden.sha256.as_str()),
        ])
    }

    /// Checks the content of one file of the model.
    ///
    /// # Errors
    /// [`ManifestError::Hash`].
    pub fn check_file(&self, path: &str, content: &[u8]) -> Result<(), ManifestError> {
        let got = sha256_hex(content);
        match self.files().get(path) {
            Some(expected) if *expected == got => Ok(()),
            other => Err(ManifestError::Hash {
                path: path.to_owned(),
                got,
                expected: other.map_or_else(|| "nothing".to_owned(), |s| (*s).to_owned()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
format = 1
name = "m"
sample_rate_hz = 24000
frame_samples = 480
delay_samples = 720
latent_dim = 64
stages = 16
entries = 1024
noise_dim = 32
[encoder]
path = "encoder.onnx"
sha256 = "00"
state_size = 10
macs_per_frame = 5
[decoder]
path = "decoder.onnx"
sha256 = "00"
state_size = 10
macs_per_frame = 5
[codebooks]
path = "codebooks.safetensors"
sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
[golden]
path = "golden.safetensors"
sha256 = "00"
"#;

    #[test]
    fn id_is_the_hash_of_the_file() {
        let m = Manifest::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(m.id.0[..], Sha256::digest(GOOD.as_bytes())[..8]);
        m.check_file("codebooks.safetensors", b"hello").unwrap();
        let e = m.check_file("codebooks.safetensors", b"hullo").unwrap_err().to_string();
        assert!(e.contains("2cf24dba") && e.contains("codebooks"), "{e}");
    }

    #[test]
    fn errors_name_key_value_and_range() {
        for (from, to, want) in [
            ("latent_dim = 64", "latent_dim = 63", "8 to 512"),
            ("stages = 16", "stages = 25", "1 to 24"),
            ("entries = 1024", "entries = 4096", "2 to 1024"),
            ("format = 1", "format = 2", "allowed: 1"),
            ("\"encoder.onnx\"", "\"../encoder.onnx\"", "file name"),
            ("noise_dim", "nose_dim", "nose_dim"),
        ] {
            let e = Manifest::parse(GOOD.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(e.contains(want), "{e}");
        }
        assert!(Manifest::parse(&[0xff, 0xfe]).is_err());
    }
}
