//! A model, read from its folder.

use std::path::Path;
use std::sync::Arc;

use super::error::Error;
use crate::codec::{Processor, Profile};
use crate::portable::{Files, Networks, PortableModel};
use crate::rvq::{BeamWidth, SimdLevel};
use crate::token::{Context, Frequencies, TokenModel};
use crate::units::StageCount;

/// Beam of the codebook search.
const BEAM: u8 = 2;

/// A codec model that is ready to use. Clones share it, and so do threads.
///
/// # Examples
/// ```no_run
/// use undertone::{EncoderOptions, Model, Rate};
///
/// let model = Model::open("models/undertone-24k-v2")?;
/// let bytes = model.encode(&[0.0; 24_000], &EncoderOptions::new(Rate::kbps(3.0)))?;
/// assert_eq!(model.decode(&bytes)?.len(), 24_000);
/// # Ok::<(), undertone::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model(PortableModel);

impl Model {
    /// Reads a model folder and checks its hashes.
    ///
    /// # Errors
    /// [`Error::File`] if its manifest cannot be read, [`Error::Model`] if a part is missing, changed or unknown.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = folder.as_ref();
        let manifest = folder.join("manifest.toml");
        std::fs::metadata(&manifest).map_err(|reason| Error::File { path: manifest, reason })?;
        Self::from_files(&|name: &str| std::fs::read(folder.join(name)).ok())
    }

    /// A model whose files lie elsewhere: in the program, in a browser's cache.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn from_files(files: &impl Files) -> Result<Self, Error> {
        Ok(Self(PortableModel::new(files)?))
    }

    /// As [`Model::from_files`], with only these networks: what needs another fails, and files of others are not asked for.
    ///
    /// # Errors
    /// [`Error::Model`].
    pub fn with_networks(files: &impl Files, networks: Networks) -> Result<Self, Error> {
        Ok(Self(PortableModel::with(files, networks)?))
    }

    /// Numbers of the model.
    pub fn profile(&self) -> &Arc<Profile> {
        self.0.profile()
    }

    /// The token model, if the folder has one: probabilities of codes, better files, concealment.
    pub fn tokens(&self) -> Option<&Arc<TokenModel>> {
        self.0.tokens()
    }

    /// Networks and codebook search for a thread, for use with [`crate::codec`].
    pub fn processor(&self) -> Processor {
        self.0.processor(BeamWidth::new(BEAM).unwrap_or(BeamWidth::GREEDY))
    }

    /// Natural logarithms of the probabilities that the token model gave each code, `[frames][stages]`, knowing all before it.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::Codes`], and [`Error::Codec`] for a code beyond the codebooks.
    pub fn log_likelihoods(&self, codes: &[u16], stages: StageCount) -> Result<Vec<f64>, Error> {
        let tokens = self.tokens().ok_or(Error::NoTokens)?;
        if !codes.len().is_multiple_of(stages.index()) || stages > self.profile().stages {
            return Err(Error::Codes { codes: codes.len(), stages: stages.value() });
        }
        if codes.iter().any(|&code| usize::from(code) >= self.profile().entries) {
            let reason = "a code is beyond the codebook";
            return Err(crate::codec::CodecError::Bundle { first_frame: 0, reason }.into());
        }
        let mut context = Context::new(Arc::clone(tokens), stages, SimdLevel::detect());
        let mut frequencies = Frequencies::uniform(tokens.shape().entries);
        let likelihoods = codes.iter().map(|&code| {
            context.frequencies(&mut frequencies);
            context.push(code);
            -frequencies.bits(code) * std::f64::consts::LN_2
        });
        Ok(likelihoods.collect())
    }

    /// That a stream was made with this model.
    pub(super) fn check(&self, wanted: crate::units::ModelId) -> Result<(), Error> {
        let have = self.profile().model_id;
        if wanted == have { Ok(()) } else { Err(Error::OtherModel { wanted, have }) }
    }
}
