//! The recordings that are measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::machine::stem;
use crate::capture::AudioInput;
use crate::units::CODEC_RATE;

/// Recordings of a folder in order of their names.
pub(super) fn recordings(dir: &Path, every: usize) -> Result<Vec<PathBuf>> {
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
pub(super) fn read(path: &Path, seconds: usize) -> Result<Vec<f32>> {
    let mut input = AudioInput::open(path, None)?;
    let mut pcm = Vec::new();
    let most = if seconds == 0 { usize::MAX } else { seconds * CODEC_RATE.hz() as usize };
    while input.read(&mut pcm)? && pcm.len() < most {}
    pcm.truncate(most);
    ensure!(pcm.len() >= 12_000, "{}: shorter than half a second", path.display());
    Ok(pcm)
}

/// Kind of a recording: "music" if its name starts so, else "speech".
pub(super) fn kind(path: &Path) -> &'static str {
    if stem(path).to_ascii_lowercase().starts_with("music") { "music" } else { "speech" }
}
