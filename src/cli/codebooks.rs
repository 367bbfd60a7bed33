//! `undertone model codebooks`: how well the quantiser's stages are used.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::capture::AudioInput;
use crate::cli::loading::ModelFolder;
use crate::codec::{EncodeJob, Encoder};
use crate::profile::Profile;
use crate::referee::write_codebook_map;
use crate::rvq::{BeamWidth, Codebooks, StageHealth, neighbours, stage_health, standing_apart};
use crate::table;

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
    #[command(flatten)]
    model: ModelFolder,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let loaded = args.model.load()?;
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
    let row = |(stage, h): (usize, &StageHealth)| {
        let mark = match (h.collapsed(), apart[stage]) {
            (_, true) => "the pitch",
            (true, false) => "collapsed",
            _ => "",
        };
        let (used, left) = (format!("{:.0} %", h.used * 100.0), format!("{:.2} %", h.left * 100.0));
        [(stage + 1).to_string(), used, format!("{:.0}", h.perplexity), left, mark.to_owned()]
    };
    let head = ["stage", "used", &format!("perplexity of {}", books.entries()), "energy left", ""];
    out!("{}", table::lines(&head, &health.iter().enumerate().map(row).collect::<Vec<_>>()));
    if let Some(entry) = args.neighbours {
        outln!("\nnearest to entry {entry} by cosine");
        out!("{}", super::tokens::nearest(stages, |stage| neighbours(books, stage, entry, 5)));
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
