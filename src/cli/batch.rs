//! `undertone batch`: hand recordings to the workers, and see how far they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use super::encode::{parse_rate, parse_stages};
use crate::bus::Bus;
use crate::bus::jobs::{Job, Progress, Wanted};
use crate::profile::Profile;
use crate::table;
use crate::units::StageCount;

/// Recordings that workers can read, by the ends of their names.
const RECORDINGS: &[&str] = &[
    "wav", "wave", "rf64", "flac", "ogg", "oga", "opus", "mp3", "mp2", "aac", "m4a", "mp4", "aif", "aiff", "aifc",
    "caf",
];

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
    /// Folder of recordings (WAV, FLAC, Ogg, MP3, AAC, M4A, AIFF, CAF), with the folders in it
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

/// What a folder holds.
#[derive(Default)]
struct Found {
    recordings: Vec<PathBuf>,
    /// What cannot be handed in, and why.
    refused: Vec<String>,
}

impl Found {
    /// All recordings below a folder, in the order of their names. What cannot be read is refused alone.
    fn look(&mut self, folder: &Path) {
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(e) => return self.refused.push(format!("{}: {e}", folder.display())),
        };
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let is_recording = path.extension().is_some_and(|e| RECORDINGS.iter().any(|r| e.eq_ignore_ascii_case(r)));
            match entry.file_type() {
                // Links to folders may form a ring: only real ones are entered.
                Ok(kind) if kind.is_dir() => self.look(&path),
                Ok(_) if !is_recording => {}
                Ok(kind) if kind.is_file() || path.is_file() => self.recordings.push(path),
                Ok(_) => {
                    self.refused.push(format!("{}: not a file but a pipe, a device or a broken link", path.display()))
                }
                Err(e) => self.refused.push(format!("{}: {e}", path.display())),
            }
        }
    }
}

/// The jobs, and what is refused.
fn jobs(args: &Submit) -> Result<(Vec<Job>, Vec<String>)> {
    let real = |path: &Path| fs::canonicalize(path).with_context(|| path.display().to_string());
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let (root, input, out) = (real(&args.root)?, real(&args.input)?, real(&args.out)?);
    for folder in [&input, &out] {
        if !folder.starts_with(&root) {
            bail!("{} is not below --root {}", folder.display(), root.display());
        }
    }
    let mut found = Found::default();
    found.look(&input);
    let below = |path: &Path| path.strip_prefix(&root).ok().and_then(Path::to_str).map(str::to_owned);
    let rate = Wanted::BitsPerSecond((args.kbps * 1e3).round() as u32);
    let wanted = args.stages.map_or(rate, |stages| Wanted::Stages(stages.value()));
    let mut outputs = BTreeMap::new();
    let (mut jobs, mut refused) = (Vec::with_capacity(found.recordings.len()), found.refused);
    for path in found.recordings {
        let inside = path.strip_prefix(&input).with_context(|| path.display().to_string())?;
        let output = out.join(inside).with_extension("utn");
        if let Some(other) = outputs.insert(output.clone(), path.clone()) {
            bail!("{} and {} would both become {}", other.display(), path.display(), output.display());
        }
        let (Some(from), Some(to)) = (below(&path), below(&output)) else {
            refused.push(format!("{}: its name is not UTF-8, which jobs are written in", path.display()));
            continue;
        };
        let mut job = Job::new(from, to, wanted, !args.packed);
        (job.even, job.refine) = (args.even, args.refine);
        job.bundle = args.bundle.unwrap_or(job.bundle);
        if job.fits() {
            jobs.push(job);
        } else {
            refused.push(format!(
                "{}: its path of {} bytes is too long for a job",
                path.display(),
                path.as_os_str().len()
            ));
        }
    }
    Ok((jobs, refused))
}

async fn submit(args: Submit) -> Result<()> {
    let (jobs, refused) = jobs(&args)?;
    for reason in &refused {
        errln!("undertone: not handed in: {reason}");
    }
    if jobs.is_empty() {
        bail!("{}: no recordings (WAV, FLAC, Ogg, MP3, AAC, M4A, AIFF, CAF)", args.input.display());
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let name = args.name.unwrap_or_else(|| format!("batch-{now}"));
    let queue = Bus::connect(&args.nats.options()).await?.jobs().await?;
    queue.submit(&name, &jobs).await?;
    outln!("{name}: {} jobs", jobs.len());
    if !refused.is_empty() {
        bail!("{} recordings or folders were not handed in", refused.len());
    }
    Ok(())
}

async fn status(args: Status) -> Result<()> {
    let queue = Bus::connect(&args.nats.options()).await?.jobs().await?;
    let status = queue.status().await?;
    let wanted = status.batches.iter().filter(|(n, _)| args.name.as_ref().is_none_or(|wanted| wanted == *n));
    let row =
        |(name, p): (&String, &Progress)| [name.clone(), p.open.to_string(), p.done.to_string(), p.dead.to_string()];
    out!("{}", table::lines(&["batch", "open", "done", "given up"], &wanted.map(row).collect::<Vec<_>>()));
    outln!("{} jobs are worked on now", status.running);
    if let Some(name) = &args.name {
        for record in queue.dead(name, MOST_DEAD).await? {
            let line = format!("given up: {}: {}", record.input, record.error.unwrap_or_default());
            outln!("{}", crate::session::printable(&line));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_that_cannot_be_handed_in_fail_alone() {
        use clap::Parser;
        use std::os::unix::ffi::OsStringExt;

        #[derive(Parser)]
        struct Call {
            #[command(flatten)]
            submit: Submit,
        }
        let dir = tempfile::tempdir().unwrap();
        let talks = dir.path().join("talks");
        fs::create_dir(&talks).unwrap();
        fs::write(talks.join("good.WAV"), "sound").unwrap();
        fs::write(talks.join("notes.txt"), "no sound").unwrap();
        fs::write(talks.join(std::ffi::OsString::from_vec(b"caf\xe9.wav".to_vec())), "sound").unwrap();
        assert!(std::process::Command::new("mkfifo").arg(talks.join("pipe.wav")).status().unwrap().success());
        let (root, input) = (dir.path().display().to_string(), talks.display().to_string());
        let out = dir.path().join("codes").display().to_string();
        let call = Call::try_parse_from(["x", &input, "--out", &out, "--root", &root, "--nats", "x"]).unwrap();
        let (jobs, refused) = jobs(&call.submit).unwrap();
        let inputs: Vec<_> = jobs.iter().map(|j| (j.input.as_str(), j.output.as_str())).collect();
        assert_eq!(inputs, [("talks/good.WAV", "codes/good.utn")]);
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(
            refused.iter().any(|r| r.contains("UTF-8")) && refused.iter().any(|r| r.contains("a pipe")),
            "{refused:?}"
        );
        assert!(!Job::new("x".repeat(15_000), "y".repeat(15_000), Wanted::Stages(4), true).fits());
        let other = Call::try_parse_from(["x", "/", "--out", &out, "--root", &root, "--nats", "x"]).unwrap();
        assert!(super::jobs(&other.submit).unwrap_err().to_string().contains("not below"));
    }
}
