//! Encoding of many recordings by many workers that share a folder.
//!
//! A job may be handed out twice: after a crash, a lost acknowledgement, a pause that was too long. So its output is
//! written under another name, synced and renamed, with a note beside it that says what it was made from; a job whose
//! output is there, whole and made from the same bytes with the same settings, is done already.

mod encode;
mod guard;
mod output;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

pub use encode::{Coder, MakeCoder, MakeRefiner};
pub use output::BatchError;

use crate::bus::BusError;
use crate::bus::jobs::{Job, JobRecord, Jobs, Taken};
use guard::{Stall, Watched, guarded};
use output::Place;

/// How often a worker says that it is still at it: three times before it would be taken for dead.
const HEARTBEAT: Duration = Duration::from_secs(4);

/// How long a worker waits for a job before it asks again.
const ASK: Duration = Duration::from_secs(5);

/// And if it wants to be gone when there are no more.
const ASK_SOON: Duration = Duration::from_millis(500);

/// First pause after a failure; it doubles with every attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What a worker did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Recordings encoded.
    pub encoded: u64,
    /// Jobs whose output was there already.
    pub skipped: u64,
    /// Attempts that failed and will be repeated.
    pub retried: u64,
    /// Jobs given up.
    pub dead: u64,
}

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The folder that all workers share; nothing outside it is read or written.
    pub root: PathBuf,
    /// Attempts after which a job is given up.
    pub attempts: u64,
    /// End when every job is done or given up, instead of waiting for more.
    pub drain: bool,
    /// A job that does not come further for so long hangs. Its thread is left behind, and the job counts as failed.
    pub patience: Duration,
}

/// Patience with a job: longer than a disk that was spun down, or the longest part of a search on a busy machine.
pub const JOB_PATIENCE: Duration = Duration::from_secs(600);

/// Jobs that may hang before a worker ends: the threads they hold do not come back.
const MAX_HUNG: u32 = 16;

/// Takes jobs until `stop` turns true. A job that is worked on then goes back at once.
///
/// # Errors
/// [`BatchError`] if the shared folder is not there, or too many jobs hang.
pub async fn work(
    jobs: &Jobs,
    mut coder: Coder,
    options: &WorkerOptions,
    mut stop: watch::Receiver<bool>,
) -> Result<Tally, BatchError> {
    let root = std::fs::canonicalize(&options.root).map_err(|e| BatchError::io(&options.root, e))?;
    let (mut tally, mut hung, again) = (Tally::default(), 0, coder.again());
    let mut pause = FIRST_PAUSE;
    loop {
        let next = tokio::select! {
            _ = stop.wait_for(|s| *s) => return Ok(tally),
            next = jobs.next(if options.drain { ASK_SOON } else { ASK }) => next,
        };
        let taken = match next {
            Ok(Some(taken)) => taken,
            Ok(None) => match jobs.open().await {
                Ok(0) if options.drain => return Ok(tally),
                Ok(_) => continue,
                // NATS came back without its store, or is away: then the next attempt fails, too.
                Err(_) => {
                    let _ = jobs.renew().await;
                    continue;
                }
            },
            Err(e) => {
                warn!(error = %e, "no jobs to be had, trying again");
                let _ = jobs.renew().await;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(30));
                continue;
            }
        };
        pause = FIRST_PAUSE;
        let (back, outcome) = attempt(&taken, coder, &root, options, &mut stop).await;
        settle(&taken, outcome, options, &mut tally).await;
        coder = match back {
            Some(coder) => coder,
            None => {
                hung += 1;
                let again = again.as_ref().filter(|_| hung < MAX_HUNG);
                let again =
                    again.ok_or_else(|| BatchError::Hopeless(format!("{hung} jobs hang; start the worker anew")))?;
                again().map_err(BatchError::Hopeless)?
            }
        };
        if *stop.borrow() {
            return Ok(tally);
        }
    }
}

/// Does a job in a thread of its own, and meanwhile says that it is being done. The coder does not come back from a job that hangs.
async fn attempt(
    taken: &Taken,
    mut coder: Coder,
    root: &Path,
    options: &WorkerOptions,
    stop: &mut watch::Receiver<bool>,
) -> (Option<Coder>, Result<Made, BatchError>) {
    let job = match &taken.job {
        Ok(job) => job.clone(),
        Err(e) => return (Some(coder), Err(BatchError::Hopeless(e.to_string()))),
    };
    // Those who had it before did not live to say so.
    if taken.attempts > options.attempts {
        let reason =
            format!("handed out {} times before, and every worker died of it or was stopped", taken.attempts - 1);
        return (Some(coder), Err(BatchError::Hopeless(reason)));
    }
    let (root, watched, tried_before) = (root.to_owned(), Arc::new(Watched::default()), taken.attempts > 1);
    let shared = Arc::clone(&watched);
    let work = tokio::task::spawn_blocking(move || {
        let outcome = guarded(|| make(&job, &root, &mut coder, &shared, tried_before));
        let outcome = outcome.unwrap_or_else(|said| {
            coder.recover();
            Err(BatchError::Panicked(said))
        });
        (coder, outcome)
    });
    tokio::pin!(work);
    let mut stall = Stall::new(options.patience, Instant::now());
    let mut heartbeat = tokio::time::interval(HEARTBEAT.min(options.patience));
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            done = &mut work => return match done {
                Ok((coder, outcome)) => (Some(coder), outcome),
                Err(e) => (None, Err(BatchError::Panicked(e.to_string()))),
            },
            _ = heartbeat.tick() => {
                if stall.look(watched.steps(), Instant::now()) {
                    watched.cancel();
                    return (None, Err(BatchError::Hung(options.patience)));
                }
                if let Err(e) = taken.progress().await {
                    warn!(job = taken.name, error = %e, "no progress reported");
                }
            },
            _ = stop.wait_for(|s| *s), if !watched.is_cancelled() => watched.cancel(),
        }
    }
}

/// An output that is there.
struct Made {
    bytes: u64,
    skipped: bool,
}

fn make(job: &Job, root: &Path, coder: &mut Coder, watched: &Watched, tried: bool) -> Result<Made, BatchError> {
    let place = Place::find(root, job)?;
    if coder.should_sweep(place.folder(), tried) {
        place.sweep();
    }
    let key = coder.key(job, &place)?;
    if let Some(bytes) = place.finished(&key) {
        return Ok(Made { bytes, skipped: true });
    }
    let bytes = place.write(&key, |out| coder.encode(job, &place.input, out, watched))?;
    Ok(Made { bytes, skipped: false })
}

/// Tells the queue what became of a job.
async fn settle(taken: &Taken, outcome: Result<Made, BatchError>, options: &WorkerOptions, tally: &mut Tally) {
    let input = taken.job.as_ref().map_or_else(|_| "(none)".to_owned(), |j| j.input.clone());
    let record =
        |bytes, skipped, error| JobRecord { input: input.clone(), bytes, skipped, attempts: taken.attempts, error };
    let told: Result<(), BusError> = match outcome {
        Ok(made) => {
            info!(job = taken.name, input, bytes = made.bytes, skipped = made.skipped, "job done");
            let told = taken.finish(&record(made.bytes, made.skipped, None)).await;
            // Without the confirmation another worker may be given the job: it is not ours to count.
            if told.is_ok() {
                tally.skipped += u64::from(made.skipped);
                tally.encoded += u64::from(!made.skipped);
            }
            told
        }
        Err(BatchError::Cancelled) => taken.retry(Duration::ZERO).await,
        Err(e) if matches!(e, BatchError::Hopeless(_)) || taken.attempts >= options.attempts => {
            warn!(job = taken.name, input, attempts = taken.attempts, error = %e, "job given up");
            let told = taken.finish(&record(0, false, Some(e.to_string()))).await;
            tally.dead += u64::from(told.is_ok());
            told
        }
        Err(e) => {
            let doublings = u32::try_from(taken.attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
            let wait = (FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE);
            warn!(job = taken.name, input, attempts = taken.attempts, error = %e, ?wait, "job failed, trying again");
            tally.retried += 1;
            taken.retry(wait).await
        }
    };
    if let Err(e) = told {
        warn!(job = taken.name, error = %e, "the queue was not told; another worker will get the job");
    }
}
