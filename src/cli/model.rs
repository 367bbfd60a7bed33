//! `undertone model`: what a model is, and whether it is whole.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use data_encoding::HEXLOWER;
use safetensors::SafeTensors;

use crate::cli::loading::ModelFolder;
use crate::codec::{self, EncodeJob, Work};
use crate::infer::LoadedModel;
use crate::model::Digests;
use crate::rvq::{BeamWidth, collapsed_stage};
use crate::synthesis::{Progress, analyse_all};
use crate::units::StageCount;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print name, id, sizes, delay and compute of a model
    Info(Folder),
    /// Check every file's hash and run the golden example
    Verify(Folder),
    /// Print usage, perplexity and energy left by stage on recordings, and draw where the entries lie; a collapsed stage fails
    Codebooks(super::codebooks::Args),
    /// Print what the token model knows: bits by stage, perplexity, what context is worth, neighbours of an entry
    Tokens(super::tokens::Args),
}

#[derive(Debug, clap::Args)]
struct Folder {
    /// Model folder [default: the shipped model]
    model: Option<PathBuf>,
}

impl Folder {
    fn load(&self) -> Result<LoadedModel> {
        Ok(ModelFolder { path: self.model.clone() }.load()?)
    }
}

/// Largest difference allowed between the golden example and this machine, as a share of full scale.
const TOLERANCE: f32 = 2e-3;

/// Share of golden codes, up to the first that differs in each frame, that must be the same: a latent on the border between two
/// entries may fall either way.
const SAME_CODES: f64 = 0.99;

pub(super) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Info(folder) => info(&folder.load()?),
        Command::Verify(folder) => verify(&folder.load()?),
        Command::Codebooks(args) => super::codebooks::run(args),
        Command::Tokens(args) => super::tokens::run(args),
    }
}

fn info(model: &LoadedModel) -> Result<()> {
    let (m, p) = (&model.manifest, &model.profile);
    let rate = f64::from(m.sample_rate_hz);
    let ms = |samples: usize| samples as f64 * 1e3 / rate;
    let mmacs = |macs: u64| macs as f64 * rate / p.frame_samples as f64 / 1e6;
    outln!("model        {} ({})", m.name, model.path.display());
    outln!("id           {}", m.id);
    outln!(
        "audio        {} Hz mono, frames of {} samples ({} ms)",
        m.sample_rate_hz,
        p.frame_samples,
        ms(p.frame_samples)
    );
    outln!("delay        {} samples ({} ms)", p.delay_samples, ms(p.delay_samples));
    outln!("quantiser    {} stages x {} entries x {} values", m.stages, m.entries, m.latent_dim);
    outln!("rate         0.5 to {} kbit/s in steps of 0.5", p.stages.kbps());
    outln!("encoder      {:.1} MMAC/s, state of {} values", mmacs(m.encoder.macs_per_frame), m.encoder.state_size);
    outln!("decoder      {:.1} MMAC/s, state of {} values", mmacs(m.decoder.macs_per_frame), m.decoder.state_size);
    for (what, tokens) in [("tokens", model.tokens()?), ("draft", model.draft()?)] {
        if let Some(t) = tokens {
            let id = HEXLOWER.encode(&t.id());
            outln!("{what:<12} token model {id}, {:.2} million parameters", t.parameters() as f64 / 1e6);
        }
    }
    let others =
        model.digests().into_iter().flat_map(Digests::files).map(|(path, hash)| (path.as_str(), hash.as_str()));
    for (path, hash) in m.files().into_iter().chain(others) {
        outln!("sha256       {hash}  {path}");
    }
    Ok(())
}

/// Steps of the search that `verify` tries.
const SEARCH_STEPS: u32 = 10;

/// The golden example: what the training recipe computed.
struct Golden {
    pcm: Vec<f32>,
    codes: Vec<u16>,
    decoded: Vec<f32>,
}

impl Golden {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes).context("golden example")?;
        let words = |name: &str| -> Result<Vec<[u8; 4]>> {
            let t = tensors.tensor(name).with_context(|| format!("golden example: tensor \"{name}\""))?;
            Ok(t.data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect())
        };
        let floats =
            |name: &str| -> Result<Vec<f32>> { Ok(words(name)?.into_iter().map(f32::from_le_bytes).collect()) };
        let codes = words("codes")?.into_iter().map(|b| u16::try_from(i32::from_le_bytes(b)));
        Ok(Self { pcm: floats("pcm")?, codes: codes.collect::<Result<_, _>>()?, decoded: floats("decoded")? })
    }
}

fn verify(model: &LoadedModel) -> Result<()> {
    let others = model.check_files()?.unwrap_or(0);
    outln!("hashes       ok, {} files", model.manifest.files().len() + others);
    let golden = golden(model)?;
    let mut processor = model.processor(BeamWidth::GREEDY)?;
    if let Some(stage) = collapsed_stage(processor.codebooks()) {
        bail!("stage {} has collapsed: its entries are mostly copies of each other", stage + 1);
    }
    outln!("codebooks    {} stages, none collapsed", processor.codebooks().stages());
    let profile = processor.profile();
    let frames = golden.pcm.len() / profile.frame_samples;
    ensure!(
        frames > 0 && golden.codes.len() == frames * profile.stages.index(),
        "golden example: {frames} frames, {} codes",
        golden.codes.len()
    );
    let (share, compared) = golden_encode(&mut processor, &golden, frames)?;
    outln!("encoder      {:.2} % of {compared} golden codes", share * 100.0);
    let worst = golden_decode(&mut processor, &golden, frames, profile.stages)?;
    outln!("decoder      differs by at most {worst:.6} of full scale");
    golden_search(model, &mut processor, &golden, frames)?;
    if share < SAME_CODES {
        bail!(
            "codes differ from the golden example: {:.2} % agree, at least {} % must",
            share * 100.0,
            SAME_CODES * 100.0
        );
    }
    if worst.is_nan() || worst > TOLERANCE {
        bail!("samples differ from the golden example by {worst}, allowed {TOLERANCE}");
    }
    Ok(())
}

fn golden(model: &LoadedModel) -> Result<Golden> {
    let path = model.path.join(&model.manifest.golden.path);
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    model.manifest.check_file(&model.manifest.golden.path, &bytes)?;
    Golden::parse(&bytes)
}

/// Encodes the golden samples; returns the share of codes that agree, and how many were compared.
fn golden_encode(processor: &mut codec::Processor, golden: &Golden, frames: usize) -> Result<(f64, usize)> {
    let profile = processor.profile();
    let stages = profile.stages;
    let mut job = EncodeJob {
        work: Work::All,
        frames,
        stages,
        depths: Vec::new(),
        first_frame: 0,
        pcm: golden.pcm.clone(),
        state: vec![0.0; profile.encoder_state],
        latents: Vec::new(),
        codes: Vec::new(),
    };
    processor.run_encode(std::slice::from_mut(&mut job))?;
    // After the first difference of a frame its other stages have another residual to find.
    let (mut same, mut compared) = (0usize, 0usize);
    for (found, wanted) in job.codes.chunks(stages.index()).zip(golden.codes.chunks(stages.index())) {
        let alike = found.iter().zip(wanted).take_while(|(a, b)| a == b).count();
        (same, compared) = (same + alike, compared + (alike + 1).min(wanted.len()));
    }
    Ok((same as f64 / compared.max(1) as f64, compared))
}

/// Searches for the golden samples, if the model can.
fn golden_search(model: &LoadedModel, processor: &mut codec::Processor, golden: &Golden, frames: usize) -> Result<()> {
    let Some(mut refiner) = model.refiner(SEARCH_STEPS)? else {
        outln!("gradient     none: files cannot be searched for");
        return Ok(());
    };
    let mut latents = analyse_all(processor, None, &golden.pcm)?;
    latents.truncate(frames * processor.profile().latent_dim);
    let Progress { first, last } = refiner.refine(&golden.pcm, &mut latents, frames)?;
    outln!("gradient     {SEARCH_STEPS} steps of search bring the golden example from {first:.3} to {last:.3}");
    ensure!(last < first, "the search does not come closer: gradient.onnx does not fit the decoder");
    Ok(())
}

/// Decodes the golden codes; returns the largest difference to the golden samples.
fn golden_decode(processor: &mut codec::Processor, golden: &Golden, frames: usize, stages: StageCount) -> Result<f32> {
    const LONGEST: usize = codec::Profile::MAX_FRAMES_PER_BUNDLE as usize;
    let mut worst = 0.0f32;
    let mut decoder = codec::Decoder::new(processor.profile());
    let mut decoded = Vec::new();
    for (i, codes) in golden.codes.chunks(LONGEST * stages.index()).enumerate() {
        let frames = u8::try_from(codes.len() / stages.index())?;
        decoder.push(crate::bitstream::Bundle {
            first_frame: (LONGEST * i) as u64,
            frames,
            stages,
            codes: codes.to_vec(),
        })?;
        processor.decode(&mut decoder, &mut decoded)?;
    }
    ensure!(
        decoded.len() == golden.decoded.len() && frames > 0,
        "golden example: {} samples, decoded {}",
        golden.decoded.len(),
        decoded.len()
    );
    for (a, b) in decoded.iter().zip(&golden.decoded) {
        worst = worst.max((a - b.clamp(-1.0, 1.0)).abs());
    }
    Ok(worst)
}
