//! One recording to one file of codes.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use tracing::warn;

use super::guard::Watched;
use super::output::{BatchError, Place, digest};
use crate::bus::jobs::{Job, Wanted};
use crate::capture::{AudioInput, CaptureError};
use crate::codec::Processor;
use crate::model::sha256_hex;
use crate::recording::{self, Ends, REFINE_STEPS, Rate, RecordingError, Settings};
use crate::synthesis::Refiner;
use crate::token::TokenModel;
use crate::units::StageCount;

/// Changes whenever the same job would make other bytes.
const RECIPE: &str = "undertone batch 2";

/// Makes what searches by so many steps; None for a model that cannot.
pub type MakeRefiner = Box<dyn Fn(u32) -> Result<Option<Refiner>, String> + Send>;

/// What a worker encodes with.
pub struct Coder {
    processor: Processor,
    tokens: Option<Arc<TokenModel>>,
    make: MakeRefiner,
    /// The last one made, and its steps.
    refiner: (u32, Option<Refiner>),
    again: Option<MakeCoder>,
    /// Folders that were looked through for what dead workers left.
    swept: HashSet<PathBuf>,
}

/// Makes a coder like another one.
pub type MakeCoder = Arc<dyn Fn() -> Result<Coder, String> + Send + Sync>;

/// Folders that are remembered.
const MAX_SWEPT: usize = 4_096;

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coder").field("tokens", &self.tokens.is_some()).finish_non_exhaustive()
    }
}

fn hopeless(e: impl std::fmt::Display) -> BatchError {
    BatchError::Hopeless(e.to_string())
}

impl From<RecordingError> for BatchError {
    fn from(e: RecordingError) -> Self {
        hopeless(e)
    }
}

impl Coder {
    /// With these networks, this token model for coded files, and this search.
    pub fn new(processor: Processor, tokens: Option<Arc<TokenModel>>, make: MakeRefiner) -> Self {
        Self { processor, tokens, make, refiner: (0, None), again: None, swept: HashSet::new() }
    }

    /// With what makes another like it, for a worker whose coder was lost to a recording that it cannot get done with.
    #[must_use]
    pub fn renewed_by(mut self, again: MakeCoder) -> Self {
        self.again = Some(again);
        self
    }

    pub(super) fn again(&self) -> Option<MakeCoder> {
        self.again.clone()
    }

    /// After a panic in the middle of a recording: what may be left of it is forgotten.
    pub(super) fn recover(&mut self) {
        self.refiner = (0, None);
    }

    /// Whether a folder is to be looked through: the first time, and whenever a job was tried before.
    pub(super) fn should_sweep(&mut self, folder: &Path, tried_before: bool) -> bool {
        if self.swept.len() >= MAX_SWEPT {
            self.swept.clear();
        }
        self.swept.insert(folder.to_owned()) || tried_before
    }

    fn tokens(&self, job: &Job) -> Result<Option<Arc<TokenModel>>, BatchError> {
        match (job.coded, &self.tokens) {
            (false, _) => Ok(None),
            (true, Some(tokens)) => Ok(Some(Arc::clone(tokens))),
            (true, None) => Err(hopeless("the worker's model has no token model; hand the job in with --packed")),
        }
    }

    /// Makes the search that the job wants ready; gives its steps, 0 for none.
    fn prepare(&mut self, job: &Job) -> Result<u32, BatchError> {
        let steps = job.refine.unwrap_or(REFINE_STEPS);
        if steps != self.refiner.0 {
            let made = if steps > 0 { (self.make)(steps).map_err(hopeless)? } else { None };
            self.refiner = (steps, made);
        }
        match (&self.refiner.1, job.refine) {
            (Some(_), _) => Ok(steps),
            (None, Some(1..)) => Err(hopeless("the worker's model cannot search; hand the job in without --refine")),
            (None, _) => Ok(0),
        }
    }

    /// Names the bytes that the job makes: the digest of the recording, the settings and the models.
    pub(super) fn key(&mut self, job: &Job, place: &Place) -> Result<String, BatchError> {
        let (input, _) = digest(&place.input)?;
        let (model, steps) = (self.processor.profile().model_id, self.prepare(job)?);
        let tokens = self.tokens(job)?.map(|t| HEXLOWER.encode(&t.id())).unwrap_or_default();
        let Job { wanted, even, bundle, .. } = job;
        let made_of = format!("{RECIPE} {input} {wanted:?} {even} {bundle} {steps} {model} {tokens}");
        Ok(sha256_hex(made_of.as_bytes()))
    }

    /// Encodes a recording.
    ///
    /// # Errors
    /// [`BatchError`]; that the file is no recording is hopeless, that it cannot be read is not.
    pub(super) fn encode(
        &mut self,
        job: &Job,
        input: &Path,
        out: &mut dyn Write,
        watched: &Watched,
    ) -> Result<(), BatchError> {
        let rate = match job.wanted {
            Wanted::BitsPerSecond(rate) => Rate::Kbps(f64::from(rate) / 1e3),
            Wanted::Stages(stages) => Rate::Stages(StageCount::new(stages).map_err(hopeless)?),
        };
        let (tokens, searched) = (self.tokens(job)?, self.prepare(job)? > 0);
        let settings = Settings { rate, even: job.even, bundle: job.bundle, live: false, tokens };
        let recording = AudioInput::open(input, None).map_err(unreadable)?;
        let refiner = self.refiner.1.as_mut().filter(|_| searched);
        let mut ends = Files { recording, input, out, watched };
        let encoded = recording::encode(&mut self.processor, refiner, &settings, &mut ends);
        for remark in ends.recording.remarks() {
            warn!(input = %input.display(), "{remark}");
        }
        encoded
    }
}

fn unreadable(e: CaptureError) -> BatchError {
    match e {
        CaptureError::Io { path, source } => BatchError::Io { path, source },
        other => hopeless(other),
    }
}

struct Files<'a> {
    recording: AudioInput,
    input: &'a Path,
    out: &'a mut dyn Write,
    watched: &'a Watched,
}

impl Ends for Files<'_> {
    type Error = BatchError;

    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool, BatchError> {
        self.watched.alive();
        self.recording.read(pcm).map_err(unreadable)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        self.out.write_all(bytes).map_err(|e| BatchError::io(self.input, e))
    }

    fn done(&mut self, _: u64) -> Result<(), BatchError> {
        self.watched.alive();
        if self.watched.is_cancelled() { Err(BatchError::Cancelled) } else { Ok(()) }
    }
}
