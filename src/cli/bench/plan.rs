//! Which codecs run at which settings, and running them over recordings on all cores.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::machine::stem;
use super::peer::Peer;
use super::recordings::{kind, read};
use super::scorer::Scorer;
use crate::cli::encode::{FILE_BEAM, parse_beam};
use crate::cli::loading::ModelFolder;
use crate::cli::progress;
use crate::codec::Processor;
use crate::infer::LoadedModel;
use crate::referee::{
    CodedFile, Opus, OpusSettings, Outcome, Payload, Repair, Row, Summary, Undertone, measure, read_rows, write_rows,
    write_summary_csv, write_summary_json,
};
use crate::rvq::BeamWidth;
use crate::synthesis::Refiner;
use crate::token::TokenModel;
use crate::units::StageCount;

/// Folders of finished items, and of decoded recordings, in that of the results.
pub(super) const ITEMS: &str = "items";
const DECODED: &str = "decoded";

/// How recordings are run through codecs, whatever is compared.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// Take every Nth recording
    #[arg(long, default_value_t = 1, value_parser = parse_every)]
    pub(super) every: usize,
    /// Use at most this many seconds of a recording; 0 for all
    #[arg(long, default_value_t = 0)]
    pub(super) seconds: usize,
    /// Recordings at once [default: one a core]
    #[arg(long)]
    jobs: Option<usize>,
    /// Keep every decoded recording in OUT/decoded
    #[arg(long)]
    keep: bool,
    /// Width of the codebook search
    #[arg(long, default_value = "4", value_parser = parse_beam)]
    pub(super) beam: BeamWidth,
    #[command(flatten)]
    model: ModelFolder,
}

fn parse_every(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("{s} out of range, allowed 1 or more"))
}

impl How {
    pub(super) fn model(&self) -> Result<LoadedModel> {
        Ok(self.model.load()?)
    }
}

/// Writes what was measured: rows, their means, and a report in HTML.
pub(super) fn write_results(out: &Path, rows: &[Row], summary: &[Summary], report: &str) -> Result<()> {
    let (csv, json) = (write_summary_csv(summary)?, write_summary_json(summary));
    let rows = write_rows(rows)?;
    let files = [("rows.csv", &*rows), ("summary.csv", &csv), ("summary.json", &json), ("report.html", report)];
    files.into_iter().try_for_each(|(name, text)| {
        let path = out.join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    })
}

/// One codec at one setting.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Undertone {
        stages: StageCount,
        frames_per_packet: u8,
        payload: Payload,
    },
    /// A coded file, graded by level, of at most this rate, its latents searched for or not.
    File {
        kbps: f64,
        searched: bool,
    },
    Opus(OpusSettings),
    /// Another program, and the folder for its files.
    Peer(Peer, PathBuf),
}

impl Entry {
    /// Points of one curve share this.
    pub(super) fn system(&self) -> String {
        match self {
            Self::Undertone { frames_per_packet, payload, .. } => {
                let ms = u32::from(*frames_per_packet) * 20;
                match payload {
                    Payload::Packed => format!("undertone packed {ms} ms"),
                    Payload::Coded => format!("undertone coded {ms} ms"),
                    Payload::Datagrams { copies: 0 } => format!("undertone QUIC {ms} ms"),
                    Payload::Datagrams { copies } => format!("undertone QUIC {ms} ms {copies} repeated"),
                }
            }
            Self::File { searched: true, .. } => "undertone file".to_owned(),
            Self::File { searched: false, .. } => "undertone file fast".to_owned(),
            Self::Opus(s) => {
                let rate = if s.cbr { "CBR" } else { "VBR" };
                let enhancer = if s.nolace { " NoLACE" } else { "" };
                let repair = match s.repair {
                    Repair::Plc if s.expected_loss > 0 => " deep PLC",
                    Repair::Plc => "",
                    Repair::Lbrr => " LBRR",
                    Repair::Dred => " DRED",
                };
                format!("Opus {rate} {} ms{enhancer}{repair}", s.packet_ms)
            }
            Self::Peer(peer, _) => peer.name.clone(),
        }
    }

    /// Nominal rate in kbit/s; 0 where only the bytes tell.
    pub(super) fn nominal(&self) -> f64 {
        match self {
            Self::Undertone { stages, .. } => stages.kbps(),
            Self::File { kbps, .. } => *kbps,
            Self::Opus(s) => f64::from(s.bits_per_second) / 1e3,
            Self::Peer(..) => 0.0,
        }
    }

    fn measure(
        &self,
        Ours { processor, files, refiner, tokens }: &mut Ours,
        music: bool,
        pcm: &[f32],
        lost: &[bool],
    ) -> Result<Outcome> {
        let outcome = match self.clone() {
            Self::Undertone { stages, frames_per_packet, payload } => {
                let tokens = tokens.clone();
                measure(&mut Undertone::new(processor, tokens, stages, frames_per_packet, payload), pcm, lost)
            }
            Self::File { kbps, searched } => {
                let tokens = tokens.clone().context("a coded file needs the token model")?;
                let refiner = refiner.as_mut().filter(|_| searched);
                measure(&mut CodedFile::new(files, tokens, refiner, kbps), pcm, lost)
            }
            Self::Opus(settings) => measure(&mut Opus::new(OpusSettings { music, ..settings }), pcm, lost),
            Self::Peer(peer, folder) => measure(&mut peer.codec(&folder), pcm, lost),
        };
        outcome.with_context(|| format!("{} at {} kbit/s", self.system(), self.nominal()))
    }

    /// What tells this entry from every other.
    fn key(&self) -> String {
        match self {
            Self::Peer(peer, _) => format!("{peer:?}").replace('\n', " "),
            _ => format!("{}@{}", self.system(), self.nominal()),
        }
    }

    fn delay_ms(&self, processor: &Processor) -> f64 {
        match self {
            Self::Undertone { frames_per_packet, .. } => {
                let overlap = processor.profile().overlap_samples() as f64 / 24.0;
                f64::from(*frames_per_packet) * 20.0 + overlap
            }
            Self::File { .. } => 1_000.0 + processor.profile().overlap_samples() as f64 / 24.0,
            Self::Opus(s) => s.packet_ms as f64 + 6.5,
            Self::Peer(..) => f64::NAN,
        }
    }
}

/// What a thread runs undertone with.
pub(super) struct Ours {
    pub(super) processor: Processor,
    /// With the wider codebook search of files.
    files: Processor,
    refiner: Option<Refiner>,
    tokens: Option<Arc<TokenModel>>,
}

/// What to run over each recording: entries, each under the loss trace of its number.
pub(super) struct Plan<'a> {
    pub(super) model: &'a LoadedModel,
    pub(super) tokens: Option<Arc<TokenModel>>,
    pub(super) how: &'a How,
    /// Steps of the search in files.
    pub(super) refine: u32,
    pub(super) entries: Vec<Entry>,
    /// Label appended to the system's name, and the trace; one without a trace for no loss.
    pub(super) traces: Vec<(String, Vec<bool>)>,
    /// Folder for results; items are finished one by one, and a run goes on where the last one ended.
    pub(super) out: &'a Path,
    /// Command of another program that scores as well.
    pub(super) scorer: Option<String>,
}

impl Plan<'_> {
    /// What one thread needs.
    pub(super) fn ours(&self) -> Result<Ours> {
        let (processor, files) = (self.model.processor(self.how.beam)?, self.model.processor(FILE_BEAM)?);
        Ok(Ours { processor, files, refiner: self.model.refiner(self.refine)?, tokens: self.tokens.clone() })
    }

    /// Rows of every recording, in order of recordings.
    pub(super) fn run(&self, files: &[PathBuf]) -> Result<Vec<Row>> {
        for folder in [ITEMS, DECODED].into_iter().take(1 + usize::from(self.how.keep)) {
            let folder = self.out.join(folder);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        let key = self.key();
        let here = Path::new("");
        let bar = progress::bar(Some(files.len() as u64), "recordings", [here, here]);
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Vec<Row>>>> = Mutex::new(vec![None; files.len()]);
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let jobs = self.how.jobs.unwrap_or_else(cores);
        let work = || -> Result<()> {
            let mut ours = self.ours()?;
            let mut scorer = self.scorer.as_deref().map(Scorer::start).transpose()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = files.get(number) else { return Ok(()) };
                let rows =
                    self.item(&mut ours, scorer.as_mut(), file, &key).with_context(|| file.display().to_string())?;
                if let Some(place) = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_mut(number) {
                    *place = Some(rows);
                }
                bar.inc(1);
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..jobs.clamp(1, files.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?)
        })?;
        bar.finish_and_clear();
        let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(results.into_iter().flatten().flatten().collect())
    }

    /// What an item's file must have been made with to be used again.
    fn key(&self) -> String {
        let entries: Vec<String> = self.entries.iter().map(|e| e.key()).collect();
        let traces: Vec<String> = self
            .traces
            .iter()
            .map(|(name, t)| {
                format!("{name}:{}", t.iter().map(|&l| char::from(b'0' + u8::from(l))).collect::<String>())
            })
            .collect();
        format!(
            "# {} model {} beam {} refine {} seconds {} {} {} {}",
            env!("CARGO_PKG_VERSION"),
            self.model.profile.model_id,
            self.how.beam.value(),
            self.refine,
            self.how.seconds,
            entries.join(";"),
            traces.join(";"),
            self.scorer.as_deref().unwrap_or_default().replace('\n', " ")
        )
    }

    fn item(&self, ours: &mut Ours, mut scorer: Option<&mut Scorer>, file: &Path, key: &str) -> Result<Vec<Row>> {
        let (name, kind) = (stem(file), kind(file));
        let cache = self.out.join(ITEMS).join(format!("{name}.csv"));
        if let Ok(text) = std::fs::read_to_string(&cache)
            && let Some((head, rest)) = text.split_once('\n')
            && head == key
            && let Ok(rows) = read_rows(rest)
        {
            return Ok(rows);
        }
        let pcm = read(file, self.how.seconds)?;
        let mut rows = Vec::new();
        for entry in &self.entries {
            for (label, trace) in &self.traces {
                let o = entry.measure(ours, kind == "music", &pcm, trace)?;
                let (s, [payload, message, ip]) = (o.scores, o.kbps);
                // The processor's time of other programs is not counted.
                let is_peer = matches!(entry, Entry::Peer(..));
                let [encode, decode] = if is_peer { [f64::NAN; 2] } else { o.times_real };
                let system = format!("{}{label}", entry.system());
                let other = scorer.as_deref_mut().map(|s| self.ask(s, kind, &name, &pcm, &o.decoded)).transpose()?;
                if self.how.keep {
                    let wav = self.out.join(DECODED).join(format!("{name} {system} {}.wav", entry.nominal()));
                    std::fs::write(&wav, crate::referee::wav_bytes(&o.decoded))
                        .with_context(|| wav.display().to_string())?;
                }
                rows.push(Row {
                    item: name.clone(),
                    kind: kind.to_owned(),
                    system,
                    nominal: entry.nominal(),
                    values: [
                        payload,
                        message,
                        ip,
                        s.pesq,
                        s.estoi,
                        s.lsd_db,
                        encode,
                        decode,
                        entry.delay_ms(&ours.processor),
                        o.lag as f64,
                        o.lost,
                        other.unwrap_or(f64::NAN),
                    ],
                });
            }
        }
        // Whole or not at all: a run that is stopped must not leave half an item.
        let part = cache.with_extension("part");
        std::fs::write(&part, format!("{key}\n{}", write_rows(&rows)?))?;
        std::fs::rename(&part, &cache)?;
        Ok(rows)
    }

    /// What another program says.
    fn ask(&self, scorer: &mut Scorer, kind: &str, name: &str, pcm: &[f32], decoded: &[f32]) -> Result<f64> {
        let files = [("original", pcm), ("decoded", decoded)].map(|(what, pcm)| {
            let path = self.out.join(ITEMS).join(format!("{name}.{what}.wav"));
            std::fs::write(&path, crate::referee::wav_bytes(pcm)).with_context(|| path.display().to_string())?;
            std::path::absolute(&path).with_context(|| path.display().to_string())
        });
        let [original, decoded] = files;
        let (original, decoded) = (original?, decoded?);
        let score = scorer.score(kind, &original, &decoded);
        for path in [original, decoded] {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        score
    }

    /// A recording through one entry without loss, for listening.
    pub(super) fn sound(&self, ours: &mut Ours, file: &Path, entry: &Entry, pcm: &[f32]) -> Result<Vec<f32>> {
        Ok(entry.measure(ours, kind(file) == "music", pcm, &[])?.decoded)
    }
}
