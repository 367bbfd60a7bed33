//! `undertone batch`: hand recordings to the workers, and see how far they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use super::encode::{parse_rate, parse_stages};
use crate::bus::Bus;
use crate::bus::jobs::{Job, Wanted};
use crate::profile::Profile;
use crate::units::StageCount;

/// Recordings that workers can read, by the ends of their names.
const RECORDINGS: &[&str] = &["wav", "flac", "ogg", "mp3"];

/// Jobs given up that are shown.
const MOST_DEAD: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put all recordings of a folder into the queue
    Submit(Submit),
    /// Show how far batches are
    Status(Status),
}

#[derive(Debug, clap::Args)]
struct Submit {
    /// Folder of recordings (WAV, FLAC, Ogg Vorbis, MP3), with the folders in it
    input: PathBuf,
    /// Folder for the files of codes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The folder that all workers share, as it is called here; both folders are below it
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// Name of the batch [default: made from the time]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Rate in kbit/s, 0.5 to 12, as in `undertone encode`: a coded file gets as many stages as fit into it
    #[arg(long, default_value = "6", value_parser = parse_rate)]
    kbps: f64,
    /// Use so many stages, 1 to 24, whatever rate that gives
    #[arg(long, value_name = "N", value_parser = parse_stages, conflicts_with = "kbps")]
    stages: Option<StageCount>,
    /// Give every frame the same number of stages
    #[arg(long, conflicts_with_all = ["packed", "stages"])]
    even: bool,
    /// Frames of 20 ms that travel together, 1 to 50 [default: 50, packed 25]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(Profile::MAX_FRAMES_PER_BUNDLE)))]
    bundle: Option<u8>,
    /// Write 10 bits an index instead of coding them with the token model
    #[arg(long)]
    packed: bool,
    /// Steps of analysis by synthesis, 0 to 200; each takes about 2 % of a recording's length on one core [default: 20 if the worker's
    /// model can]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=200))]
    refine: Option<u32>,
    #[command(flatten)]
    nats: super::nats::Args,
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Name of a batch: show what was given up, and why
    name: Option<String>,
    #[command(flatten)]
    nats: super::nats::Args,
}

pub(super) fn run(args: Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.command {
        Command::Submit(args) => runtime.block_on(submit(args)),
        Command::Status(args) => runtime.block_on(status(args)),
    }
}

/// All recordings below a folder, in the order of their names.
fn recordings(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let name = || folder.display().to_string();
    let mut entries = fs::read_dir(folder).with_context(name)?.collect::<Result<Vec<_>, _>>().with_context(name)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        // Links to folders may form a ring: only real ones are entered.
        if entry.file_type().with_context(name)?.is_dir() {
            recordings(&path, found)?;
        } else if path.extension().is_some_and(|e| RECORDINGS.iter().any(|r| e.eq_ignore_ascii_case(r))) {
            found.push(path);
        }
    }
    Ok(())
}

fn jobs(args: &Submit) -> Result<Vec<Job>> {
    let real = |path: &Path| fs::canonicalize(path).with_context(|| path.display().to_string());
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let (root, input, out) = (real(&args.root)?, real(&args.input)?, real(&args.out)?);
    let mut found = Vec::new();
    recordings(&input, &mut found)?;
    let below = |path: &Path| -> Result<String> {
        let inside = path.strip_prefix(&root).ok().and_then(Path::to_str);
        let root = root.display();
        Ok(inside.with_context(|| format!("{} is not below --root {root}", path.display()))?.to_owned())
    };
    let rate = Wanted::BitsPerSecond((args.kbps * 1e3).round() as u32);
    let wanted = args.stages.map_or(rate, |stages| Wanted::Stages(stages.value()));
    let mut outputs = BTreeMap::new();
    let mut jobs = Vec::with_capacity(found.len());
    for path in found {
        let inside = path.strip_prefix(&input).with_context(|| path.display().to_string())?;
        let output = out.join(inside).with_extension("utn");
        if let Some(other) = outputs.insert(output.clone(), path.clone()) {
            bail!("{} and {} would both become {}", other.display(), path.display(), output.display());
        }
        let mut job = Job::new(below(&path)?, below(&output)?, wanted, !args.packed);
        (job.even, job.refine) = (args.even, args.refine);
        job.bundle = args.bundle.unwrap_or(job.bundle);
        jobs.push(job);
    }
    Ok(jobs)
}

async fn submit(args: Submit) -> Result<()> {
    let jobs = jobs(&args)?;
    if jobs.is_empty() {
        bail!("{}: no recordings (WAV, FLAC, Ogg Vorbis, MP3)", args.input.display());
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let name = args.name.unwrap_or_else(|| format!("batch-{now}"));
    let queue = Bus::connect(&args.nats.options()).await?.jobs().await?;
    queue.submit(&name, &jobs).await?;
    println!("{name}: {} jobs", jobs.len());
    Ok(())
}

async fn status(args: Status) -> Result<()> {
    let queue = Bus::connect(&args.nats.options()).await?.jobs().await?;
    let status = queue.status().await?;
    println!("{:<32} {:>9} {:>9} {:>9}", "batch", "open", "done", "given up");
    for (name, p) in status.batches.iter().filter(|(n, _)| args.name.as_ref().is_none_or(|wanted| wanted == *n)) {
        println!("{name:<32} {:>9} {:>9} {:>9}", p.open, p.done, p.dead);
    }
    println!("{} jobs are worked on now", status.running);
    if let Some(name) = &args.name {
        for record in queue.dead(name, MOST_DEAD).await? {
            let line = format!("given up: {}: {}", record.input, record.error.unwrap_or_default());
            println!("{}", crate::session::printable(&line));
        }
    }
    Ok(())
}
