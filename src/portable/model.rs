//! A model for the networks of this module, from the contents of its files.

use std::sync::Arc;

use super::error::GraphError;
use super::net::{PortableDecoder, PortableEncoder};
use crate::codec::{Processor, Profile};
use crate::model::{
    DecodeRow, DecoderNet, DigestError, Digests, EncodeRow, EncoderNet, Manifest, ManifestError, NetworkError, TOKENS,
};
use crate::rvq::{BeamWidth, Codebooks, RvqError, Searcher, SimdLevel};
use crate::token::{TokenError, TokenModel};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortableError {
    /// A file of the model is not there.
    #[error("the model has no file \"{0}\"")]
    Missing(String),
    /// The manifest, or a file that is not the one it names.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file that is not the one that `files.toml` names.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A network.
    #[error("{network}: {reason}")]
    Graph {
        /// Which one.
        network: &'static str,
        /// What is wrong.
        reason: GraphError,
    },
    /// The codebooks.
    #[error(transparent)]
    Codebooks(#[from] RvqError),
    /// The token model.
    #[error(transparent)]
    Tokens(#[from] TokenError),
}

/// Contents of a model's files by name; None for a file that is not there.
pub trait Files {
    /// The whole content of a file.
    fn content(&self, name: &str) -> Option<Vec<u8>>;
}

impl<F: Fn(&str) -> Option<Vec<u8>>> Files for F {
    fn content(&self, name: &str) -> Option<Vec<u8>> {
        self(name)
    }
}

/// Which networks are loaded: a page that listens need not fetch what it would encode with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Networks {
    /// Encoder and decoder.
    Both,
    /// Only what encodes.
    Encoder,
    /// Only what decodes.
    Decoder,
}

/// In place of a network that was not loaded.
struct Absent {
    network: &'static str,
    state: usize,
}

impl Absent {
    fn error(&self) -> NetworkError {
        NetworkError { network: self.network, reason: "the model was loaded without it".to_owned() }
    }
}

impl EncoderNet for Absent {
    fn state_size(&self) -> usize {
        self.state
    }

    fn encode(&mut self, _: &mut [EncodeRow<'_>], _: usize) -> Result<(), NetworkError> {
        Err(self.error())
    }
}

impl DecoderNet for Absent {
    fn state_size(&self) -> usize {
        self.state
    }

    fn decode(&mut self, _: &mut [DecodeRow<'_>], _: usize) -> Result<(), NetworkError> {
        Err(self.error())
    }
}

/// A model whose files were read and checked. Clones share it.
#[derive(Debug, Clone)]
pub struct PortableModel {
    profile: Arc<Profile>,
    codebooks: Arc<Codebooks>,
    /// None if it was not asked for.
    encoder: Option<PortableEncoder>,
    decoder: Option<PortableDecoder>,
    tokens: Option<Arc<TokenModel>>,
}

impl PortableModel {
    /// Reads `manifest.toml`, checks the hashes of the files that it names, and makes the networks ready; the token model is read if
    /// `files.toml` names one.
    ///
    /// # Errors
    /// [`PortableError`].
    pub fn new(files: &impl Files) -> Result<Self, PortableError> {
        Self::with(files, Networks::Both)
    }

    /// As [`PortableModel::new`], with only these networks; files of others are not asked for.
    ///
    /// # Errors
    /// [`PortableError`].
    pub fn with(files: &impl Files, networks: Networks) -> Result<Self, PortableError> {
        let content = |name: &str| files.content(name).ok_or_else(|| PortableError::Missing(name.to_owned()));
        let manifest = Manifest::parse(&content("manifest.toml")?)?;
        let part = |name: &str| {
            let content = content(name)?;
            manifest.check_file(name, &content)?;
            Ok::<_, PortableError>(content)
        };
        let level = SimdLevel::detect();
        let graph = |network| move |reason| PortableError::Graph { network, reason };
        let encoder = if networks == Networks::Decoder {
            None
        } else {
            let network = PortableEncoder::new(&part(&manifest.encoder.path)?, &manifest, level);
            Some(network.map_err(graph("encoder"))?)
        };
        let decoder = if networks == Networks::Encoder {
            None
        } else {
            let network = PortableDecoder::new(&part(&manifest.decoder.path)?, &manifest, level);
            Some(network.map_err(graph("decoder"))?)
        };
        let codebooks = Arc::new(manifest.read_codebooks(&part(&manifest.codebooks.path)?)?);
        let digests = files.content(Digests::NAME).map(|text| Digests::parse(&text)).transpose()?;
        let tokens = match digests.filter(|digests| digests.names().any(|name| name == TOKENS)) {
            Some(digests) => {
                let bytes = content(TOKENS)?;
                digests.check(TOKENS, &bytes)?;
                Some(TokenModel::parse(&bytes, manifest.id, &codebooks)?)
            }
            None => None,
        };
        Ok(Self { profile: Arc::new(manifest.profile()), codebooks, encoder, decoder, tokens })
    }

    /// Numbers of the model.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// The token model of these codes, if there is one.
    pub fn tokens(&self) -> Option<&Arc<TokenModel>> {
        self.tokens.as_ref()
    }

    /// Networks and codebooks for one thread, with the given beam of the codebook search. What needs a network that was not loaded
    /// fails.
    pub fn processor(&self, beam: BeamWidth) -> Processor {
        let encoder: Box<dyn EncoderNet> = match &self.encoder {
            Some(network) => Box::new(network.clone()),
            None => Box::new(Absent { network: "encoder", state: self.profile.encoder_state }),
        };
        let decoder: Box<dyn DecoderNet> = match &self.decoder {
            Some(network) => Box::new(network.clone()),
            None => Box::new(Absent { network: "decoder", state: self.profile.decoder_state }),
        };
        Processor::new(
            Arc::clone(&self.profile),
            encoder,
            decoder,
            Arc::clone(&self.codebooks),
            Searcher::new(Arc::clone(&self.codebooks), beam, SimdLevel::detect()),
        )
    }
}
