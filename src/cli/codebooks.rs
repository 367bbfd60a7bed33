//! `undertone model codebooks`: how well the quantiser's stages are used.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::capture::AudioInput;
use crate::codec::{EncodeJob, Encoder};
use crate::profile::Profile;
use crate::referee::write_codebook_map;
use crate::rvq::{BeamWidth, Codebooks, neighbours, stage_health, standing_apart};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recordings to measure on (as in `undertone encode`)
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Print the nearest neighbours of this entry of every stage
    #[arg(long, value_name = "ENTRY", value_parser = clap::value_parser!(u16).range(0..1024))]
    neighbours: Option<u16>,
    /// Write a picture of where the entries lie: one panel a stage, two principal components
    #[arg(long, value_name = "PNG")]
    map: Option<PathBuf>,
    /// Width of the codebook search
    #[arg(long, default_value = "4", value_parser = super::encode::parse_beam)]
    beam: BeamWidth,
    /// Model folder [default: the shipped model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let loaded = crate::cli::loading::load_model(args.model.as_deref())?;
    let mut processor = loaded.processor(args.beam)?;
    let profile = processor.profile();
    let stages = profile.stages.index();
    let (mut latents, mut codes) = (Vec::new(), Vec::new());
    for path in &args.inputs {
        let mut input = AudioInput::open(path, None)?;
        let mut pcm = Vec::new();
        while input.read(&mut pcm)? {}
        let mut encoder = Encoder::new(profile.clone(), profile.stages, Profile::MAX_FRAMES_PER_BUNDLE)?;
        encoder.set_job_frames(usize::from(Profile::MAX_FRAMES_PER_BUNDLE));
        encoder.push(&pcm);
        encoder.finish();
        let mut run = |job: &mut EncodeJob| -> Result<()> {
            processor.run_encode(std::slice::from_mut(job))?;
            latents.extend_from_slice(&job.latents);
            codes.extend_from_slice(&job.codes);
            Ok(())
        };
        while encoder.advance(&mut run)?.is_some() {}
    }
    let frames = codes.len() / stages;
    ensure!(frames > 0, "the recordings hold no frame of 20 ms");
    let books = processor.codebooks();
    let (health, apart) = (stage_health(books, &latents, &codes, stages)?, standing_apart(books));
    outln!("{frames} frames of {} recordings, beam {}", args.inputs.len(), args.beam.value());
    outln!("stage   used   perplexity of {:<6} energy left", books.entries());
    for (stage, h) in health.iter().enumerate() {
        let mark = match (h.collapsed(), apart[stage]) {
            (_, true) => "   the pitch",
            (true, false) => "   collapsed",
            _ => "",
        };
        let (used, left) = (h.used * 100.0, h.left * 100.0);
        outln!("{:>5}   {used:>3.0} %   {:>20.0}   {left:>9.2} %{mark}", stage + 1, h.perplexity);
    }
    if let Some(entry) = args.neighbours {
        outln!("\nstage   nearest to entry {entry} by cosine");
        for stage in 0..stages {
            let near: Vec<String> =
                neighbours(books, stage, entry, 5).into_iter().map(|(e, c)| format!("{e} ({c:.2})")).collect();
            outln!("{:>5}   {}", stage + 1, near.join("  "));
        }
    }
    if let Some(path) = &args.map {
        write_codebook_map(path, books, &uses(books, &codes, stages)).with_context(|| path.display().to_string())?;
        outln!("\nmap          {}", path.display());
    }
    if let Some(stage) = (0..stages).find(|&k| health[k].collapsed() && !apart[k]) {
        bail!("stage {} has collapsed: its codes have a perplexity of {:.0}", stage + 1, health[stage].perplexity);
    }
    Ok(())
}

/// How often each entry occurs, `[stages][entries]`.
fn uses(books: &Codebooks, codes: &[u16], stages: usize) -> Vec<Vec<u32>> {
    let mut uses = vec![vec![0; books.entries()]; stages];
    for frame in codes.chunks_exact(stages) {
        for (uses, &code) in uses.iter_mut().zip(frame) {
            uses[usize::from(code)] += 1;
        }
    }
    uses
}
