//! Recording of streams: an ordinary listener that writes files.
//!
//! A recording never keeps a publisher waiting: bundles go from the hub into a bounded queue here, and from there to
//! the disk on threads that may block. What a disk that fails or hangs does not take waits in the queue; when the queue is
//! full, what comes is dropped and counted. After a failure a recording tries again after [`PAUSE`], or when its next
//! rotation is due if that is sooner.

mod counters;
mod error;
mod file;
mod folder;
mod name;
mod queue;

pub(super) use counters::Recorded;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::Shared;
use super::hub::{Ended, Joiner, Listener};
use super::until::until;
use crate::config::Record;
use crate::session::{PackedBundle, StreamName};
use error::RecordError;
use file::Recording;
use folder::Disk;
use queue::{PAUSE, QUEUE, WriteQueue};

/// Streams recorded at once.
const MAX_RECORDINGS: usize = 1024;

/// Writes at once; a disk that hangs must not take all threads that may block.
const WRITES: usize = 8;

/// Of these, writes that begin or end a file: streams that come and go by the thousand must not keep others waiting.
const BEGINNINGS: usize = 4;

/// How long the disk may take to show at the start that the folder can be used.
const FIRST_WRITE: Duration = Duration::from_secs(5);

/// Streams to be recorded, as they are published.
pub(super) struct Recorder {
    disk: Arc<Disk>,
    joined: mpsc::Receiver<(StreamName, Listener)>,
    tell: mpsc::Sender<(StreamName, Listener)>,
    permits: Permits,
}

/// Who may write now.
#[derive(Clone)]
struct Permits {
    writes: Arc<Semaphore>,
    beginnings: Arc<Semaphore>,
}

impl Permits {
    /// Waits for a turn, which lasts as long as what is given.
    async fn turn(self, begins_or_ends: bool) -> [Option<OwnedSemaphorePermit>; 2] {
        let beginning = if begins_or_ends { self.beginnings.acquire_owned().await.ok() } else { None };
        [beginning, self.writes.acquire_owned().await.ok()]
    }
}

impl Recorder {
    /// Makes the folder if it is missing, and sees whether it can be written to.
    ///
    /// # Errors
    /// The system's reason, unless the disk is only full or slow: then the daemon serves without recording until
    /// that is over.
    pub(super) async fn open(record: Record) -> std::io::Result<Self> {
        let disk = Arc::new(Disk::new(record, Arc::default()));
        let folder = disk.record.folder.clone();
        let tried = spawn_blocking(move || {
            std::fs::create_dir_all(&folder)?;
            Disk::probe(&folder)
        });
        match timeout(FIRST_WRITE, tried).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(e))) if is_full(&e) => {
                warn!(folder = %disk.record.folder.display(), error = %e, "nothing is recorded until there is room");
                disk.counts.failed(e.to_string());
            }
            Ok(Ok(Err(e))) => return Err(e),
            Ok(Err(_)) | Err(_) => {
                warn!(folder = %disk.record.folder.display(), "the disk for recordings does not answer");
                disk.counts.failed("the disk does not answer".to_owned());
            }
        }
        let (tell, joined) = mpsc::channel(MAX_RECORDINGS);
        let permits =
            Permits { writes: Arc::new(Semaphore::new(WRITES)), beginnings: Arc::new(Semaphore::new(BEGINNINGS)) };
        Ok(Self { disk, joined, tell, permits })
    }

    /// What happens to recordings.
    pub(super) fn counts(&self) -> Arc<Recorded> {
        Arc::clone(&self.disk.counts)
    }

    /// How the hub tells it of streams.
    pub(super) fn joiner(&self) -> Joiner {
        let covered = self.disk.record.clone();
        Joiner::new(move |name| covered.covers(name).then_some(QUEUE), self.tell.clone())
    }

    /// Records until the output is to stop and everything is written.
    pub(super) async fn run(mut self, shared: Shared) {
        let room = Arc::new(Semaphore::new(MAX_RECORDINGS));
        let tasks = TaskTracker::new();
        let mut ticks = interval(PAUSE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The disk is asked one thing at a time: when it hangs, so does the question, and no more than one.
        let mut housekeeping: Option<JoinHandle<()>> = None;
        loop {
            let (stream, listener) = tokio::select! {
                biased;
                Some(joined) = self.joined.recv() => joined,
                () = shared.stop_output.cancelled() => break,
                _ = ticks.tick() => {
                    if housekeeping.as_ref().is_none_or(JoinHandle::is_finished) {
                        let disk = Arc::clone(&self.disk);
                        housekeeping = Some(spawn_blocking(move || keep_house(&disk)));
                    }
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                self.disk.counts.errors.fetch_add(1, Ordering::Relaxed);
                warn!(%stream, "{MAX_RECORDINGS} streams are recorded already: this one is not");
                continue;
            };
            let recording = Recording::new(Arc::clone(&self.disk), stream.clone(), shared.engine.profile());
            let task = Task {
                disk: Arc::clone(&self.disk),
                stream,
                permits: self.permits.clone(),
                queue: WriteQueue::new(&self.disk.record),
                recording: Some(Box::new(recording)),
            };
            let shared = shared.clone();
            tasks.spawn(async move {
                task.run(&shared, listener).await;
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

/// Whether a disk has no room, or not for us.
fn is_full(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Looks whether trouble is over that no stream would notice, and reads the folder now and then.
fn keep_house(disk: &Disk) {
    let now = Instant::now();
    if disk.counts.failing().is_some() && Disk::probe(&disk.record.folder).is_ok() {
        disk.counts.recovered(now);
    }
    if disk.is_stale(now)
        && let Err(error) = disk.read()
    {
        warn!(folder = %disk.record.folder.display(), %error, "the folder of recordings cannot be read");
    }
}

/// Whether the folder can be used, without making it.
///
/// # Errors
/// The system's reason.
pub(super) fn check(record: &Record) -> std::io::Result<()> {
    match record.folder.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Disk::probe(&record.folder),
    }
}

/// A write that is under way: the recording comes back with the bundles that are not written.
type Write = JoinHandle<(Box<Recording>, Waiting, Result<(), RecordError>)>;

type Waiting = VecDeque<Arc<PackedBundle>>;

struct Task {
    disk: Arc<Disk>,
    stream: StreamName,
    permits: Permits,
    queue: WriteQueue<Arc<PackedBundle>>,
    /// Away while it writes.
    recording: Option<Box<Recording>>,
}

impl Task {
    async fn run(mut self, shared: &Shared, mut listener: Listener) {
        self.disk.counts.running.fetch_add(1, Ordering::Relaxed);
        info!(stream = %self.stream, folder = %self.disk.record.folder.display(), "recording started");
        let mut write: Option<Write> = None;
        loop {
            if write.is_none() {
                write = self.start(false);
            }
            let wake = self.recording.as_ref().and_then(|r| self.queue.due(r.dirty()));
            tokio::select! {
                next = listener.next() => match next {
                    Ok(heard) => self.take(heard.bundle),
                    Err(Ended::Stream) => break,
                    Err(Ended::Slow) => {
                        self.failed(&"the daemon is too busy to record", "the daemon is too busy to record".to_owned());
                        // If the stream has ended meanwhile, its next publisher begins a new recording.
                        match shared.hub.rejoin(&self.stream, QUEUE) {
                            Some(again) => listener = again,
                            None => break,
                        }
                    }
                },
                done = async { match &mut write { Some(w) => w.await, None => std::future::pending().await } } => {
                    write = None;
                    let Ok((recording, left, result)) = done else { break };
                    self.back(recording, left, result);
                }
                // Nothing new came, but what came last is due.
                () = until(wake) => write = self.start(true),
                () = shared.stop_output.cancelled() => {
                    while let Some(heard) = listener.queued() {
                        self.take(heard.bundle);
                    }
                    break;
                }
            }
        }
        self.close(write).await;
        self.disk.counts.running.fetch_sub(1, Ordering::Relaxed);
    }

    fn take(&mut self, bundle: Arc<PackedBundle>) {
        let Err(overflow) = self.queue.push(bundle) else { return };
        self.disk.counts.lost.fetch_add(1, Ordering::Relaxed);
        if overflow.is_first {
            let why = "the disk does not keep up: what comes now is lost to the recording";
            warn!(stream = %self.stream, why);
            self.disk.counts.failed("the disk does not keep up".to_owned());
        }
    }

    /// Starts writing what waits; `anyway` even if nothing does.
    fn start(&mut self, anyway: bool) -> Option<Write> {
        let mut recording = self.recording.take()?;
        let Some(turn) = self.queue.start(anyway, Instant::now()) else {
            self.recording = Some(recording);
            return None;
        };
        if turn.is_retry {
            info!(stream = %self.stream, "recording tries again");
        }
        let mut bundles = turn.waiting;
        let (turn, counts) = (self.permits.clone().turn(recording.is_closed()), Arc::clone(&self.disk.counts));
        Some(tokio::spawn(async move {
            let permit = turn.await;
            let work = spawn_blocking(move || {
                let began = Instant::now();
                let result = recording.write(&mut bundles);
                if result.is_ok() {
                    counts.recovered(began);
                }
                (recording, bundles, result)
            });
            let done = work.await;
            drop(permit);
            done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
        }))
    }

    /// The write is over.
    fn back(&mut self, recording: Box<Recording>, left: Waiting, result: Result<(), RecordError>) {
        self.recording = Some(recording);
        let lost = self.queue.back(left, result.is_ok());
        self.disk.counts.lost.fetch_add(lost as u64, Ordering::Relaxed);
        if let Err(e) = result {
            self.failed(&e, e.reason());
        }
    }

    fn failed(&mut self, why: &dyn std::fmt::Display, reason: String) {
        self.disk.counts.failed(reason);
        let pause = self.queue.pause(Instant::now());
        warn!(stream = %self.stream, reason = %why, pause_s = pause.as_secs_f64(), "recording failed and pauses");
    }

    /// Writes what waits and ends the file.
    async fn close(&mut self, write: Option<Write>) {
        if let Some(Ok((recording, left, result))) = match write {
            Some(write) => Some(write.await),
            None => None,
        } {
            self.back(recording, left, result);
        }
        let Some(mut recording) = self.recording.take() else { return };
        let _turn = self.permits.clone().turn(true).await;
        let mut bundles = self.queue.take();
        let work = spawn_blocking(move || {
            let result = recording.write(&mut bundles).and_then(|()| recording.finish());
            (bundles.len() as u64, result)
        });
        if let Ok((lost, Err(e))) = work.await {
            self.disk.counts.failed(e.reason());
            self.disk.counts.lost.fetch_add(lost, Ordering::Relaxed);
            warn!(stream = %self.stream, error = %e, lost, "the last of the recording was not written");
        }
    }
}

/// How long a shutdown waits for the disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
