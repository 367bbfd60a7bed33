//! One recording to one file of codes.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::output::{BatchError, Place, digest, hex};
use crate::bitstream::StreamHeader;
use crate::bus::jobs::Job;
use crate::capture::{AudioInput, CaptureError};
use crate::codec::{Encoder, Processor};
use crate::entropy::StreamWriter;
use crate::token::TokenModel;
use crate::units::StageCount;

/// Changes whenever the same job would make other bytes.
const RECIPE: &str = "undertone batch 1";

/// What a worker encodes with.
pub struct Coder {
    processor: Processor,
    tokens: Option<Arc<TokenModel>>,
}

impl std::fmt::Debug for Coder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coder").field("tokens", &self.tokens.is_some()).finish_non_exhaustive()
    }
}

fn hopeless(e: impl std::fmt::Display) -> BatchError {
    BatchError::Hopeless(e.to_string())
}

impl Coder {
    /// With these networks, and this token model for coded files.
    pub fn new(processor: Processor, tokens: Option<Arc<TokenModel>>) -> Self {
        Self { processor, tokens }
    }

    fn tokens(&self, job: &Job) -> Result<Option<Arc<TokenModel>>, BatchError> {
        match (job.coded, &self.tokens) {
            (false, _) => Ok(None),
            (true, Some(tokens)) => Ok(Some(Arc::clone(tokens))),
            (true, None) => Err(hopeless("the worker's model has no token model; hand the job in with --packed")),
        }
    }

    /// Names the bytes that the job makes: the digest of the recording, the settings and the models.
    pub(super) fn key(&self, job: &Job, place: &Place) -> Result<String, BatchError> {
        let (input, _) = digest(&place.input)?;
        let model = self.processor.profile().model_id;
        let tokens = self.tokens(job)?.map(|t| hex(&t.id())).unwrap_or_default();
        let made_of = format!("{RECIPE} {input} {} {} {model} {tokens}", job.stages, job.bundle);
        Ok(hex(&Sha256::digest(made_of.as_bytes())))
    }

    /// Encodes a recording.
    ///
    /// Errors: [`BatchError`]; that the file is no recording is hopeless, that it cannot be read is not.
    pub(super) fn encode(
        &mut self,
        job: &Job,
        input: &Path,
        out: &mut dyn Write,
        cancelled: &AtomicBool,
    ) -> Result<(), BatchError> {
        let capture = |e: CaptureError| match e {
            CaptureError::Io { path, source } => BatchError::Io { path, source },
            other => hopeless(other),
        };
        let stages = StageCount::new(job.stages).map_err(hopeless)?;
        let mut recording = AudioInput::open(input, None).map_err(capture)?;
        let profile = self.processor.profile();
        let mut encoder = Encoder::new(Arc::clone(&profile), stages, job.bundle).map_err(hopeless)?;
        encoder.set_job_frames(usize::from(job.bundle));
        let (mut bytes, mut pcm) = (Vec::new(), Vec::new());
        let header = StreamHeader::packed(&profile, stages, job.bundle);
        let mut writer = StreamWriter::new(header, self.tokens(job)?, &mut bytes);
        let mut more = true;
        while more {
            if cancelled.load(Ordering::Relaxed) {
                return Err(BatchError::Cancelled);
            }
            pcm.clear();
            more = recording.read(&mut pcm).map_err(capture)?;
            encoder.push(&pcm);
            if !more {
                encoder.finish();
            }
            while let Some(mut work) = encoder.next_job() {
                self.processor.run_encode(std::slice::from_mut(&mut work)).map_err(hopeless)?;
                encoder.accept(work);
                while let Some(bundle) = encoder.next_bundle() {
                    writer.write(&bundle, &mut bytes).map_err(hopeless)?;
                }
            }
            out.write_all(&bytes).map_err(|e| BatchError::io(input, e))?;
            bytes.clear();
        }
        writer.finish(Some(encoder.samples_in()), &mut bytes);
        out.write_all(&bytes).map_err(|e| BatchError::io(input, e))
    }
}
