//! Recording of streams: an ordinary listener that writes files.
//!
//! A recording never keeps a publisher waiting: bundles go from the hub into a bounded queue here, and from there to
//! the disk on threads that may block. When the disk fails or falls behind, that recording pauses for
//! [`PAUSE`], or until its next rotation is due if that is sooner.

mod counters;
mod file;

pub(super) use counters::Recorded;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep_until;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::Shared;
use super::hub::{Ended, Joiner, Listener};
use crate::config::{Fsync, Record};
use crate::session::{PackedBundle, StreamName};
use file::{Disk, RecordError, Recording};

/// Streams recorded at once.
const MAX_RECORDINGS: usize = 1024;

/// Bundles of a stream that may wait for the disk.
const QUEUE: usize = 256;

/// Writes at once; a disk that hangs must not take all threads that may block.
const WRITES: usize = 8;

/// How long a recording pauses after a failure.
const PAUSE: Duration = Duration::from_secs(10);

/// Streams to be recorded, as they are published.
pub(super) struct Recorder {
    record: Record,
    joined: mpsc::Receiver<(StreamName, Listener)>,
}

impl Recorder {
    /// The recorder, and how the hub tells it of streams.
    pub(super) fn new(record: Record) -> (Self, Joiner) {
        let (tell, joined) = mpsc::channel(MAX_RECORDINGS);
        let covered = record.clone();
        (Self { record, joined }, Joiner::new(move |name| covered.covers(name).then_some(QUEUE), tell))
    }

    /// Records until the output is to stop and everything is written.
    pub(super) async fn run(mut self, shared: Shared) {
        let disk = Arc::new(Disk::new(self.record, Arc::clone(&shared.counters.recorded)));
        let (room, writes) = (Arc::new(Semaphore::new(MAX_RECORDINGS)), Arc::new(Semaphore::new(WRITES)));
        let tasks = TaskTracker::new();
        loop {
            let (stream, listener) = tokio::select! {
                biased;
                Some(joined) = self.joined.recv() => joined,
                () = shared.stop_output.cancelled() => break,
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                disk.counts.errors.fetch_add(1, Ordering::Relaxed);
                warn!(%stream, "{MAX_RECORDINGS} streams are recorded already: this one is not");
                continue;
            };
            let recording = Recording::new(Arc::clone(&disk), stream.clone(), shared.engine.profile());
            let task = Task {
                disk: Arc::clone(&disk),
                stream,
                writes: Arc::clone(&writes),
                waiting: VecDeque::new(),
                recording: Some(Box::new(recording)),
                paused_until: None,
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

type Write = JoinHandle<(Box<Recording>, Result<(), RecordError>)>;

struct Task {
    disk: Arc<Disk>,
    stream: StreamName,
    writes: Arc<Semaphore>,
    waiting: VecDeque<Arc<PackedBundle>>,
    /// Away while it writes.
    recording: Option<Box<Recording>>,
    /// After a failure bundles are thrown away until then.
    paused_until: Option<Instant>,
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
            let sync_at = match self.disk.record.fsync {
                Fsync::Every(time) => self.recording.as_ref().and_then(|r| r.dirty()).map(|dirty| dirty + time),
                Fsync::Never | Fsync::Bundle => None,
            };
            tokio::select! {
                next = listener.next() => match next {
                    Ok(heard) => self.take(heard.bundle),
                    Err(Ended::Stream) => break,
                    Err(Ended::Slow) => {
                        self.failed("the daemon is too busy to record");
                        // If the stream has ended meanwhile, its next publisher begins a new recording.
                        match shared.hub.rejoin(&self.stream, QUEUE) {
                            Some(again) => listener = again,
                            None => break,
                        }
                    }
                },
                done = async { match &mut write { Some(w) => w.await, None => std::future::pending().await } } => {
                    write = None;
                    let Ok((recording, result)) = done else { break };
                    self.back(recording, result);
                }
                // Nothing new came, but what came last is due.
                () = async { match sync_at { Some(at) => sleep_until(at.into()).await, None => std::future::pending().await } } => {
                    write = self.start(true);
                }
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
        match self.paused_until {
            Some(until) if Instant::now() < until => return,
            Some(_) => {
                info!(stream = %self.stream, "recording tries again");
                self.paused_until = None;
            }
            None => {}
        }
        if self.waiting.len() == QUEUE {
            self.failed("the disk does not keep up");
            return;
        }
        self.waiting.push_back(bundle);
    }

    /// Starts writing what waits; `anyway` even if nothing does.
    fn start(&mut self, anyway: bool) -> Option<Write> {
        if self.waiting.is_empty() && !anyway {
            return None;
        }
        let mut recording = self.recording.take()?;
        let bundles: Vec<_> = self.waiting.drain(..).collect();
        let writes = Arc::clone(&self.writes);
        Some(tokio::spawn(async move {
            let permit = writes.acquire_owned().await;
            let work = spawn_blocking(move || {
                let result = recording.write(&bundles);
                (recording, result)
            });
            let done = work.await;
            drop(permit);
            done.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
        }))
    }

    fn back(&mut self, recording: Box<Recording>, result: Result<(), RecordError>) {
        self.recording = Some(recording);
        if let Err(e) = result {
            self.failed(e);
        }
    }

    fn failed(&mut self, why: impl std::fmt::Display) {
        self.disk.counts.errors.fetch_add(1, Ordering::Relaxed);
        let pause = self.disk.record.rotate_after.min(PAUSE);
        warn!(stream = %self.stream, reason = %why, pause_s = pause.as_secs_f64(), "recording failed and pauses");
        self.paused_until = Some(Instant::now() + pause);
        self.waiting.clear();
    }

    /// Writes what waits and ends the file.
    async fn close(&mut self, write: Option<Write>) {
        if let Some(Ok((recording, result))) = match write {
            Some(write) => Some(write.await),
            None => None,
        } {
            self.back(recording, result);
        }
        let (Some(mut recording), Ok(_permit)) = (self.recording.take(), self.writes.acquire().await) else { return };
        let bundles: Vec<_> = self.waiting.drain(..).collect();
        let work = spawn_blocking(move || recording.write(&bundles).and_then(|()| recording.finish()));
        if let Ok(Err(e)) = work.await {
            self.disk.counts.errors.fetch_add(1, Ordering::Relaxed);
            warn!(stream = %self.stream, error = %e, "the last of the recording was not written");
        }
    }
}

/// How long a shutdown waits for the disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
