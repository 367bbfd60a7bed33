//! A model folder -> checked networks and codebooks.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::net::{Integers, Origin, OrtDecoder, OrtEncoder, OrtGradient};
use super::{InferError, library};
use crate::codec::{Processor, Profile};
use crate::model::{Digests, Manifest, TOKENS};
use crate::rvq::{BeamWidth, Codebooks, Searcher, SimdLevel};
use crate::synthesis::{Refiner, Shape};
use crate::token::TokenModel;
use crate::units::OutOfRange;

/// Name of the folder of the shipped model.
const SHIPPED: &str = "undertone-24k-v2";

/// Largest file that is taken for a part of a model.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Beam of the codebook search in the daemon: half of what beam 4 gives for a third of its cost (benches/README.md).
const DEFAULT_BEAM: u8 = 2;

/// How the networks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Networks {
    /// In single precision, as they were trained: for files.
    #[default]
    Float,
    /// The wide layers in 8-bit integers: half the time for live streams (docs/performance.md). Falls back to floats for a model
    /// that has no such graphs.
    Int8,
}

impl std::str::FromStr for Networks {
    type Err = OutOfRange;

    fn from_str(s: &str) -> Result<Self, OutOfRange> {
        match s {
            "float" => Ok(Self::Float),
            "int8" => Ok(Self::Int8),
            _ => Err(OutOfRange { what: "networks", got: format!("\"{s}\""), allowed: "float, int8" }),
        }
    }
}

/// A model whose files were read and whose hashes were checked.
#[derive(Debug)]
pub struct LoadedModel {
    /// The folder.
    pub path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Numbers of the model.
    pub profile: Arc<Profile>,
    /// Its codebooks.
    pub codebooks: Arc<Codebooks>,
    encoder: Vec<u8>,
    decoder: Arc<[u8]>,
    /// Of the files that the manifest does not name; None if the folder does not say.
    digests: Option<Digests>,
}

/// The folder of the model: the one named, else `UNDERTONE_MODEL`, else the shipped one beside the program's checkout
/// or in `share/undertone/models` of the prefix it is installed in.
///
/// # Errors
/// [`InferError::NoModel`] with the places that were looked at.
pub fn find_model(named: Option<&Path>) -> Result<PathBuf, InferError> {
    let mut places: Vec<PathBuf> = Vec::new();
    if let Some(path) = named {
        places.push(path.to_owned());
    } else if let Some(path) = std::env::var_os("UNDERTONE_MODEL").filter(|p| !p.is_empty()) {
        places.push(PathBuf::from(path));
    } else {
        let exe = std::env::current_exe().unwrap_or_default();
        if let Some(prefix) = exe.ancestors().nth(2) {
            places.push(prefix.join("share/undertone/models").join(SHIPPED));
        }
        places.extend(exe.ancestors().skip(2).take(4).map(|dir| dir.join("models").join(SHIPPED)));
        places.push(Path::new("models").join(SHIPPED));
    }
    places
        .iter()
        .find(|p| p.join("manifest.toml").is_file())
        .cloned()
        .ok_or_else(|| InferError::NoModel { looked: library::list(&places) })
}

fn read(path: &Path) -> Result<Vec<u8>, InferError> {
    let error = |reason: String| InferError::File { path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|e| error(e.to_string()))?.len();
    if size > MAX_FILE_BYTES {
        return Err(error(format!("{size} bytes, allowed at most {MAX_FILE_BYTES}")));
    }
    std::fs::read(path).map_err(|e| error(e.to_string()))
}

/// Reads a model folder and checks every hash.
///
/// # Errors
/// [`InferError`].
pub fn load_model(named: Option<&Path>) -> Result<LoadedModel, InferError> {
    let path = find_model(named)?;
    let manifest = Manifest::parse(&read(&path.join("manifest.toml"))?).map_err(|e| InferError::manifest(&path, &e))?;
    let part = |name: &str| {
        let content = read(&path.join(name))?;
        manifest.check_file(name, &content).map_err(|e| InferError::manifest(&path, &e))?;
        Ok(content)
    };
    let (encoder, decoder) = (part(&manifest.encoder.path)?, part(&manifest.decoder.path)?);
    let codebooks = manifest.read_codebooks(&part(&manifest.codebooks.path)?);
    let codebooks = codebooks.map_err(|e| InferError::rvq(&path, &e))?;
    let profile = Arc::new(manifest.profile());
    let (decoder, codebooks) = (decoder.into(), Arc::new(codebooks));
    let digests = path.join(Digests::NAME);
    let digests = digests.exists().then(|| read(&digests)).transpose()?.map(|text| Digests::parse(&text)).transpose();
    let digests = digests.map_err(|e| InferError::Model { path: path.clone(), reason: e.to_string() })?;
    Ok(LoadedModel { path, manifest, profile, codebooks, encoder, decoder, digests })
}

/// Name of the smaller token model that drafts for the other.
const DRAFT: &str = "draft.safetensors";

/// Names of the graphs with integer products, and of those for calls of one frame.
const INT8: [&str; 2] = ["encoder-int8.onnx", "decoder-int8.onnx"];
const FRAME: [&str; 2] = ["encoder-frame.onnx", "decoder-frame.onnx"];

/// Name of the graph of a model's decoder gradient.
const GRADIENT: &str = "gradient.onnx";

impl LoadedModel {
    /// A file of the folder that the manifest does not name, its digest checked.
    fn part(&self, name: &str) -> Result<Vec<u8>, InferError> {
        let content = read(&self.path.join(name))?;
        let checked = self.digests.as_ref().map_or(Ok(()), |digests| digests.check(name, &content));
        checked.map_err(|e| InferError::Model { path: self.path.clone(), reason: e.to_string() })?;
        Ok(content)
    }

    /// Checks every file that `files.toml` names, and that no other part of a model lies beside them. Gives their number; None for a
    /// folder that has no `files.toml`, whose files are taken as they are.
    ///
    /// # Errors
    /// [`InferError`] for a file that is missing, differs, or is not named.
    pub fn check_files(&self) -> Result<Option<usize>, InferError> {
        let Some(digests) = &self.digests else { return Ok(None) };
        digests.names().try_for_each(|name| self.part(name).map(drop))?;
        let unreadable = |e: std::io::Error| InferError::File { path: self.path.clone(), reason: e.to_string() };
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
            let part = [".onnx", ".safetensors"].iter().any(|end| name.ends_with(end));
            if part && !self.manifest.files().contains_key(name.as_str()) {
                self.part(&name)?;
            }
        }
        Ok(Some(digests.names().count()))
    }

    /// What a user should be told: that nothing says what the folder's other files should be.
    pub fn remark(&self) -> Option<String> {
        let word = "has no files.toml: nobody knows whether its token models and its graphs for live streams are whole";
        self.digests.is_none().then(|| format!("model {} {word}", self.path.display()))
    }

    /// Digests of the files that the manifest does not name; None if the folder does not say.
    pub fn digests(&self) -> Option<&Digests> {
        self.digests.as_ref()
    }

    /// The token model that belongs to these codes; None if the folder has none.
    ///
    /// # Errors
    /// [`InferError`] for one that cannot be used.
    pub fn tokens(&self) -> Result<Option<Arc<TokenModel>>, InferError> {
        self.token_file(TOKENS)
    }

    /// The draft model for speculative sampling; None if the folder has none.
    ///
    /// # Errors
    /// [`InferError`] for one that cannot be used.
    pub fn draft(&self) -> Result<Option<Arc<TokenModel>>, InferError> {
        self.token_file(DRAFT)
    }

    fn token_file(&self, name: &str) -> Result<Option<Arc<TokenModel>>, InferError> {
        let path = self.path.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let made = TokenModel::parse(&self.part(name)?, self.profile.model_id, &self.codebooks);
        Ok(Some(made.map_err(|e| InferError::Model { path, reason: e.to_string() })?))
    }

    /// What searches better latents for one recording by `steps` steps; None if the folder has no gradient of its decoder.
    ///
    /// # Errors
    /// [`InferError`] when the runtime is missing or the gradient is not that of the decoder.
    pub fn refiner(&self, steps: u32) -> Result<Option<Refiner>, InferError> {
        let path = self.path.join(GRADIENT);
        if !path.exists() {
            return Ok(None);
        }
        let environment = library::environment()?;
        let model = |reason: String| InferError::Model { path: self.path.clone(), reason };
        let gradient =
            OrtGradient::new(environment, &self.part(GRADIENT)?, &self.decoder, &self.manifest).map_err(model)?;
        let decoder = OrtDecoder::new(environment, Origin::Manifest(&self.decoder), &self.manifest).map_err(model)?;
        let shape = Shape {
            frame_samples: self.profile.frame_samples,
            overlap_samples: self.profile.overlap_samples(),
            latent_dim: self.profile.latent_dim,
            noise_dim: self.profile.noise_dim,
            latent_rms: self.codebooks.scale(),
        };
        Ok(Some(Refiner::new(shape, steps, Box::new(decoder), Box::new(gradient))))
    }

    /// Networks in single precision for one thread, warmed up, with the given beam of the codebook search.
    ///
    /// # Errors
    /// [`InferError`] when the runtime is missing or the graphs are not what the manifest says.
    pub fn processor(&self, beam: BeamWidth) -> Result<Processor, InferError> {
        self.processor_of(Origin::Manifest(&self.encoder), Origin::Manifest(&self.decoder), beam)
    }

    /// As [`LoadedModel::processor`], with networks that compute as asked if the folder has them.
    ///
    /// # Errors
    /// As there, and for integer graphs that were not made from the model's own.
    pub fn processor_with(&self, networks: Networks, beam: BeamWidth) -> Result<Processor, InferError> {
        if networks == Networks::Float || !self.has_int8() {
            return self.processor(beam);
        }
        let [encoder, decoder] = [0, 1].map(|part| self.integers(INT8[part], FRAME[part]));
        self.processor_of(Origin::Integers(&encoder?), Origin::Integers(&decoder?), beam)
    }

    fn integers(&self, file: &'static str, frame: &str) -> Result<Integers, InferError> {
        let frame = self.path.join(frame).exists().then(|| self.part(frame)).transpose()?;
        Ok(Integers { file, graph: self.part(file)?.into(), frame })
    }

    /// Whether the folder has graphs with integer products.
    pub fn has_int8(&self) -> bool {
        INT8.iter().all(|name| self.path.join(name).is_file())
    }

    fn processor_of(&self, encoder: Origin<'_>, decoder: Origin<'_>, beam: BeamWidth) -> Result<Processor, InferError> {
        let environment = library::environment()?;
        let model = |reason: String| InferError::Model { path: self.path.clone(), reason };
        let encoder = OrtEncoder::new(environment, encoder, &self.manifest).map_err(model)?;
        let decoder = OrtDecoder::new(environment, decoder, &self.manifest).map_err(model)?;
        let searcher = Searcher::new(Arc::clone(&self.codebooks), beam, SimdLevel::detect());
        Ok(Processor::new(
            Arc::clone(&self.profile),
            Box::new(encoder),
            Box::new(decoder),
            Arc::clone(&self.codebooks),
            searcher,
        ))
    }
}

/// What makes a processor for a thread.
type Factory = Box<dyn Fn() -> Result<Processor, InferError> + Send + Sync>;

/// Reads the model once; gives it, and what makes a processor for each thread.
///
/// # Errors
/// [`InferError`].
pub fn load_processor_factory(
    named: Option<&Path>,
    networks: Networks,
) -> Result<(Arc<LoadedModel>, Factory), InferError> {
    let model = Arc::new(load_model(named)?);
    if let Some(remark) = model.remark() {
        tracing::warn!("{remark}");
    }
    let shared = Arc::clone(&model);
    let factory = move || shared.processor_with(networks, BeamWidth::new(DEFAULT_BEAM).unwrap_or(BeamWidth::GREEDY));
    Ok((model, Box::new(factory)))
}
