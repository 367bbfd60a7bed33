//! A model for the networks of this module, from the contents of its files.

use std::sync::Arc;

use super::error::GraphError;
use super::net::{PortableDecoder, PortableEncoder};
use crate::codec::{Processor, Profile};
use crate::model::{DigestError, Digests, Manifest, ManifestError, TOKENS};
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

/// A model whose files were read and checked. Clones share it.
#[derive(Debug, Clone)]
pub struct PortableModel {
    profile: Arc<Profile>,
    codebooks: Arc<Codebooks>,
    encoder: PortableEncoder,
    decoder: PortableDecoder,
    tokens: Option<Arc<TokenModel>>,
}

impl PortableModel {
    /// Reads `manifest.toml`, checks the hashes of the files that it names, and makes the networks ready; the token model is read if
    /// `files.toml` names one.
    ///
    /// Errors: [`PortableError`].
    pub fn new(files: &impl Files) -> Result<Self, PortableError> {
        let content = |name: &str| files.content(name).ok_or_else(|| PortableError::Missing(name.to_owned()));
        let manifest = Manifest::parse(&content("manifest.toml")?)?;
        let part = |name: &str| {
            let content = content(name)?;
            manifest.check_file(name, &content)?;
            Ok::<_, PortableError>(content)
        };
        let level = SimdLevel::detect();
        let graph = |network| move |reason| PortableError::Graph { network, reason };
        let encoder = PortableEncoder::new(&part(&manifest.encoder.path)?, &manifest, level);
        let decoder = PortableDecoder::new(&part(&manifest.decoder.path)?, &manifest, level);
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
        Ok(Self {
            profile: Arc::new(manifest.profile()),
            codebooks,
            encoder: encoder.map_err(graph("encoder"))?,
            decoder: decoder.map_err(graph("decoder"))?,
            tokens,
        })
    }

    /// Numbers of the model.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// The token model of these codes, if there is one.
    pub fn tokens(&self) -> Option<&Arc<TokenModel>> {
        self.tokens.as_ref()
    }

    /// Networks and codebooks for one thread, with the given beam of the codebook search.
    pub fn processor(&self, beam: BeamWidth) -> Processor {
        Processor::new(
            Arc::clone(&self.profile),
            Box::new(self.encoder.clone()),
            Box::new(self.decoder.clone()),
            Arc::clone(&self.codebooks),
            Searcher::new(Arc::clone(&self.codebooks), beam, SimdLevel::detect()),
        )
    }
}
