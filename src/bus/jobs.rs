//! A queue of recordings to encode. A job leaves it only when somebody has acknowledged its result.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, PullConsumer, pull};
use async_nats::jetstream::message::{AckKind, PublishMessage};
use async_nats::jetstream::stream::{self, Config, DiscardPolicy, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::{ANSWER, Bus, BusError, refused, token};
use crate::model::sha256_hex;
use crate::recording::{CODED_BUNDLE, FILE_BUNDLE};

/// Version of a job's text.
const VERSION: u32 = 2;

/// A worker that says nothing for so long has died, and its job goes to another.
pub const PATIENCE: Duration = Duration::from_secs(12);

/// Jobs handed in before the first of them is acknowledged.
const IN_FLIGHT: usize = 256;

/// How long results are known.
const RESULTS_AGE: Duration = Duration::from_secs(30 * 86_400);

/// Longest text of a job or result.
const MAX_TEXT: i32 = 16 << 10;

/// Bytes of a message that its headers take.
const HEADROOM: usize = 512;

/// Jobs that may be worked on at once, over all workers.
const MAX_RUNNING: i64 = 10_000;

/// A recording to encode. Paths are relative to the folder that all workers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    version: u32,
    /// The recording.
    pub input: String,
    /// The file of codes that it becomes.
    pub output: String,
    /// How much it may take.
    pub wanted: Wanted,
    /// Whether every frame has the same number of stages.
    pub even: bool,
    /// Frames that travel together.
    pub bundle: u8,
    /// Whether the codes are coded with the token model.
    pub coded: bool,
    /// Steps of the search; None as many as files have, if the worker's model can search.
    pub refine: Option<u32>,
}

/// How much a recording may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A rate.
    BitsPerSecond(u32),
    /// So many stages in every frame.
    Stages(u8),
}

impl Job {
    /// Whether it fits into a message.
    pub fn fits(&self) -> bool {
        serde_json::to_vec(self).is_ok_and(|text| text.len() + HEADROOM <= MAX_TEXT as usize)
    }

    /// A job: packed, or coded and graded by level, in bundles of 25 frames or 50.
    pub fn new(input: String, output: String, wanted: Wanted, coded: bool) -> Self {
        let bundle = if coded { CODED_BUNDLE } else { FILE_BUNDLE };
        Self { version: VERSION, input, output, wanted, even: false, bundle, coded, refine: None }
    }
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRecord {
    /// The job.
    pub input: String,
    /// Bytes of the output; 0 if there is none.
    pub bytes: u64,
    /// The output was there already, made from the same input with the same settings.
    pub skipped: bool,
    /// Attempts, this one included.
    pub attempts: u64,
    /// Why nothing will become of it.
    pub error: Option<String>,
}

/// Characters of a name or reason in a result: with all of them escaped it still fits into a message.
const MAX_SAID: usize = 1_000;

impl JobRecord {
    /// With a name and a reason that fit into a message: a result that the server refuses would bring its job back for ever.
    fn shortened(&self) -> Self {
        let short = |text: &str| text.chars().take(MAX_SAID).collect::<String>();
        Self { input: short(&self.input), error: self.error.as_deref().map(short), ..self.clone() }
    }
}

/// How far a batch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Jobs that wait or are worked on.
    pub open: usize,
    /// Jobs whose output is there.
    pub done: usize,
    /// Jobs that were given up.
    pub dead: usize,
}

/// A batch and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// By name.
    pub batches: BTreeMap<String, Progress>,
    /// Jobs that are worked on now, of all batches.
    pub running: usize,
}

/// The queue.
pub struct Jobs {
    bus: Bus,
    context: jetstream::Context,
    jobs: Stream,
    results: Stream,
    workers: PullConsumer,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").finish_non_exhaustive()
    }
}

impl Bus {
    /// Opens the queue; the first who asks creates it.
    ///
    /// # Errors
    /// [`BusError`] if there is no JetStream.
    pub async fn jobs(&self) -> Result<Jobs, BusError> {
        let context = self.jetstream();
        let jobs = Config {
            name: self.prefix.kept("jobs"),
            subjects: vec![self.prefix.subject("job", "*.*")],
            retention: RetentionPolicy::WorkQueue,
            // A full queue refuses rather than forgets.
            discard: DiscardPolicy::New,
            max_message_size: MAX_TEXT,
            ..Config::default()
        };
        let results = Config {
            name: self.prefix.kept("results"),
            subjects: vec![self.prefix.subject("done", "*.*"), self.prefix.subject("dead", "*.*")],
            retention: RetentionPolicy::Limits,
            max_messages_per_subject: 1,
            max_age: RESULTS_AGE,
            max_message_size: MAX_TEXT,
            ..Config::default()
        };
        let jobs = context.get_or_create_stream(jobs).await.map_err(refused("open the queue"))?;
        let results = context.get_or_create_stream(results).await.map_err(refused("open the results"))?;
        let consumer = pull::Config {
            durable_name: Some("workers".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: PATIENCE,
            // Workers count the attempts themselves: NATS would drop a job without a word.
            max_deliver: -1,
            max_ack_pending: MAX_RUNNING,
            ..pull::Config::default()
        };
        let join = || jobs.get_or_create_consumer("workers", consumer.clone());
        let mut workers = join().await.map_err(refused("join the workers"))?;
        let told = workers.get_info().await.map_err(refused("count jobs"))?;
        let stored = jobs.get_info().await.map_err(refused("count jobs"))?.state;
        if went_back(&told, &stored) {
            jobs.delete_consumer("workers").await.map_err(refused("join the workers"))?;
            workers = join().await.map_err(refused("join the workers"))?;
        } else if stored.messages > 0 && stored.first_sequence <= told.ack_floor.stream_sequence {
            // What was acknowledged when the server was killed, and is there again: nobody would ever be given it.
            let gone = jobs.purge().sequence(told.ack_floor.stream_sequence + 1);
            gone.await.map_err(refused("clear the queue"))?;
        }
        Ok(Jobs { bus: self.clone(), context, jobs, results, workers })
    }
}

/// Whether the server knows of more jobs handed out than ever came in: a crash took the queue but not what is known of
/// the workers. New jobs would have numbers that were handed out before, and so never reach a worker.
fn went_back(told: &consumer::Info, stored: &stream::State) -> bool {
    told.delivered.stream_sequence > stored.last_sequence
}

impl Jobs {
    /// Makes the queue again if the server has lost it: NATS may come back without its store.
    ///
    /// # Errors
    /// [`BusError`] if the server does not answer or refuses.
    pub async fn renew(&self) -> Result<(), BusError> {
        self.bus.jobs().await.map(|_| ())
    }

    /// Puts jobs into the queue; when this returns, the server has them on disk. Handing the same in again within two
    /// minutes does nothing.
    ///
    /// # Errors
    /// [`BusError`] if the name of the batch is none, or the server did not take one.
    pub async fn submit(&self, batch: &str, jobs: &[Job]) -> Result<(), BusError> {
        if !token(batch, 64) {
            return Err(BusError::Job(format!("name of a batch {batch:?}: 1 to 64 characters of A-Z a-z 0-9 _ -")));
        }
        for (chunk, start) in jobs.chunks(IN_FLIGHT).zip((0..).step_by(IN_FLIGHT)) {
            let mut acks = Vec::with_capacity(chunk.len());
            for (job, number) in chunk.iter().zip(start..) {
                let text = serde_json::to_vec(job).map_err(refused("hand in a job"))?;
                let subject = self.bus.prefix.subject("job", &format!("{batch}.{number}"));
                let id = format!("{subject} {}", sha256_hex(&text));
                let message = PublishMessage::build().payload(text.into()).message_id(id);
                acks.push(self.context.send_publish(subject, message).await.map_err(refused("hand in a job"))?);
            }
            for ack in acks {
                ack.await.map_err(refused("hand in a job"))?;
            }
        }
        Ok(())
    }

    /// How far all batches are.
    ///
    /// # Errors
    /// [`BusError`] if the server does not say.
    pub async fn status(&self) -> Result<Status, BusError> {
        let mut status = Status::default();
        for (stream, kind) in [(&self.jobs, "job"), (&self.results, "done"), (&self.results, "dead")] {
            let filter = self.bus.prefix.subject(kind, ">");
            let mut subjects = stream.info_with_subjects(&filter).await.map_err(refused("count jobs"))?;
            while let Some(subject) = subjects.next().await {
                let (subject, count) = subject.map_err(refused("count jobs"))?;
                let Some(batch) = subject.rsplit('.').nth(1) else { continue };
                let progress = status.batches.entry(batch.to_owned()).or_default();
                match kind {
                    "job" => progress.open += count,
                    "done" => progress.done += count,
                    _ => progress.dead += count,
                }
            }
        }
        status.running = self.workers.get_info().await.map_err(refused("count jobs"))?.num_ack_pending;
        Ok(status)
    }

    /// Jobs that wait, are worked on or will be tried again, of all batches.
    ///
    /// # Errors
    /// [`BusError`] if the server does not say, or has lost the queue: [`Jobs::renew`] makes it again.
    pub async fn open(&self) -> Result<u64, BusError> {
        // By what was acknowledged: the stream's own count of messages may be wrong after the server was killed.
        let workers = self.workers.get_info().await.map_err(refused("count jobs"))?;
        if went_back(&workers, &self.jobs.get_info().await.map_err(refused("count jobs"))?.state) {
            return Err(BusError::Job("the server has lost the queue".to_owned()));
        }
        Ok(workers.num_pending + workers.num_ack_pending as u64)
    }

    /// Jobs of a batch that were given up, at most `most` of them.
    ///
    /// # Errors
    /// [`BusError`] if the server does not say.
    pub async fn dead(&self, batch: &str, most: usize) -> Result<Vec<JobRecord>, BusError> {
        let filter = self.bus.prefix.subject("dead", &format!("{batch}.*"));
        let subjects = self.results.info_with_subjects(&filter).await.map_err(refused("list jobs"))?;
        let subjects: Vec<_> = subjects.take(most).collect().await;
        let mut records = Vec::new();
        for subject in subjects {
            let (subject, _) = subject.map_err(refused("list jobs"))?;
            let last = self.results.get_last_raw_message_by_subject(&subject).await.map_err(refused("list jobs"))?;
            records.push(serde_json::from_slice(&last.payload).map_err(refused("read a result"))?);
        }
        Ok(records)
    }

    /// The next job; None if none came within `patience`.
    ///
    /// # Errors
    /// [`BusError`] if the server cannot be asked.
    pub async fn next(&self, patience: Duration) -> Result<Option<Taken>, BusError> {
        let fetch = self.workers.batch().max_messages(1).expires(patience);
        let mut batch = fetch.messages().await.map_err(refused("take a job"))?;
        // The server keeps the time; this is for one that vanished.
        let Ok(next) = tokio::time::timeout(patience + ANSWER, batch.next()).await else { return Ok(None) };
        let Some(message) = next.transpose().map_err(refused("take a job"))? else { return Ok(None) };
        let attempts = message.info().map_or(1, |i| u64::try_from(i.delivered).unwrap_or(1));
        let name = message.subject.rsplitn(3, '.').take(2).collect::<Vec<_>>();
        let name = name.iter().rev().copied().collect::<Vec<_>>().join(".");
        let job = serde_json::from_slice::<Job>(&message.payload).map_err(|e| BusError::Job(e.to_string()));
        let job = job.and_then(|job| match job.version {
            VERSION => Ok(job),
            other => Err(BusError::Job(format!("version {other}, this worker knows {VERSION}"))),
        });
        Ok(Some(Taken { bus: self.bus.clone(), context: self.context.clone(), message, name, attempts, job }))
    }
}

/// A job in the hands of a worker. Dropped without a word it goes to another worker after [`PATIENCE`].
pub struct Taken {
    bus: Bus,
    context: jetstream::Context,
    message: Message,
    /// Batch and number.
    pub name: String,
    /// Times that it was handed out, this one included.
    pub attempts: u64,
    /// The job, or why it is none.
    pub job: Result<Job, BusError>,
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taken").field("name", &self.name).field("job", &self.job).finish_non_exhaustive()
    }
}

impl Taken {
    /// Says that the job is being worked on.
    ///
    /// # Errors
    /// [`BusError`] if that could not be sent.
    pub async fn progress(&self) -> Result<(), BusError> {
        self.message.ack_with(AckKind::Progress).await.map_err(refused("report progress"))
    }

    /// Gives the job back, to be handed out again after `wait`.
    ///
    /// # Errors
    /// [`BusError`] if that could not be sent; then it happens after [`PATIENCE`].
    pub async fn retry(&self, wait: Duration) -> Result<(), BusError> {
        let wait = (!wait.is_zero()).then_some(wait);
        self.message.ack_with(AckKind::Nak(wait)).await.map_err(refused("give a job back"))
    }

    /// Writes down what became of the job, done or dead, and only then takes it out of the queue.
    ///
    /// # Errors
    /// [`BusError`] unless the server has confirmed both. Then another worker will get the job, and find its
    /// output there.
    pub async fn finish(&self, record: &JobRecord) -> Result<(), BusError> {
        let kind = if record.error.is_some() { "dead" } else { "done" };
        let text = serde_json::to_vec(&record.shortened()).map_err(refused("write a result"))?;
        let subject = self.bus.prefix.subject(kind, &self.name);
        let ack = self.context.publish(subject, text.into()).await.map_err(refused("write a result"))?;
        ack.await.map_err(refused("write a result"))?;
        let confirmed = tokio::time::timeout(ANSWER, self.message.double_ack()).await;
        confirmed.map_err(refused("acknowledge a job"))?.map_err(refused("acknowledge a job"))
    }
}
