//! `undertone bench`: how many streams a daemon carries; against Opus, under loss, and where the time goes.

mod chart;
mod load;
#[cfg(feature = "referee")]
mod loss;
#[cfg(feature = "referee")]
mod plan;
#[cfg(feature = "referee")]
mod rate;
mod rig;
#[cfg(feature = "referee")]
mod scorer;
mod soak;
#[cfg(feature = "referee")]
mod speed;

use std::path::Path;
#[cfg(feature = "referee")]
use std::path::PathBuf;

use anyhow::Result;
#[cfg(feature = "referee")]
use anyhow::{Context, ensure};

#[cfg(feature = "referee")]
use crate::capture::AudioInput;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Streams against latency, up to what a daemon can carry and past it
    Load(load::Args),
    /// Minutes of streams that come and go, some of them bad: memory and missed frames
    Soak(soak::Args),
    /// Quality over rate: every recording of a folder through undertone and Opus
    #[cfg(feature = "referee")]
    Rate(rate::Args),
    /// Quality under packet loss, beside Opus with its repairs
    #[cfg(feature = "referee")]
    Loss(loss::Args),
    /// What a frame costs, stage by stage, and how cost grows
    #[cfg(feature = "referee")]
    Speed(speed::Args),
}

pub(super) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Load(args) => load::run(args),
        What::Soak(args) => soak::run(args),
        #[cfg(feature = "referee")]
        What::Rate(args) => rate::run(args),
        #[cfg(feature = "referee")]
        What::Loss(args) => loss::run(args),
        #[cfg(feature = "referee")]
        What::Speed(args) => speed::run(args),
    }
}

/// Recordings of a folder in order of their names.
#[cfg(feature = "referee")]
fn recordings(dir: &Path, every: usize) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let mut all: Vec<PathBuf> = entries.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    all.retain(|p| {
        let extension = p.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
        ["wav", "flac", "ogg", "mp3"].contains(&extension.as_str())
    });
    all.sort();
    let picked: Vec<PathBuf> = all.into_iter().step_by(every).collect();
    ensure!(!picked.is_empty(), "{}: no WAV, FLAC, Ogg or MP3 files", dir.display());
    Ok(picked)
}

/// A recording at 24 kHz, at most `seconds` of it; 0 for all.
#[cfg(feature = "referee")]
fn read(path: &Path, seconds: usize) -> Result<Vec<f32>> {
    let mut input = AudioInput::open(path, None)?;
    let mut pcm = Vec::new();
    let most = if seconds == 0 { usize::MAX } else { seconds * 24_000 };
    while input.read(&mut pcm)? && pcm.len() < most {}
    pcm.truncate(most);
    ensure!(pcm.len() >= 12_000, "{}: shorter than half a second", path.display());
    Ok(pcm)
}

/// Name of a recording without folder and extension.
fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Kind of a recording: "music" if its name starts so, else "speech".
#[cfg(feature = "referee")]
fn kind(path: &Path) -> &'static str {
    if stem(path).to_ascii_lowercase().starts_with("music") { "music" } else { "speech" }
}

/// This machine in words.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("unknown processor", |l| l.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown").to_owned();
    format!("{model}, {cores} cores, load average at the end {load}")
}

/// The command that was run.
fn command() -> String {
    let mut args: Vec<String> = std::env::args().collect();
    if let Some(first) = args.first_mut() {
        *first = stem(Path::new(first));
    }
    args.join(" ")
}

/// A line of a process' memory in /proc, such as "VmRSS:", in MiB; NaN where there is none.
fn memory_mib(process: &str, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap_or("");
    line.split_whitespace().next().and_then(|v| v.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1024.0
}
