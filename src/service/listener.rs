//! A listener of a stream, and the stream's end of its queue.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::jitter::{Backlog, Stamp};
use crate::session::PackedBundle;
use crate::units::StageCount;

/// How long an age or a level says something about now.
pub(super) const FRESH: Duration = Duration::from_secs(1);

/// A bundle on its way to listeners.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) bundle: Arc<PackedBundle>,
    pub(crate) stamp: Stamp,
}

impl Heard {
    /// A bundle of so much media whose last sample was recorded then.
    pub(crate) fn new(bundle: PackedBundle, media: Duration, recorded: Instant, live: bool) -> Self {
        let stamp = Stamp { frames: u64::from(bundle.frames), media, recorded, live };
        Self { bundle: Arc::new(bundle), stamp }
    }
}

impl Deref for Heard {
    type Target = PackedBundle;

    fn deref(&self) -> &PackedBundle {
        &self.bundle
    }
}

/// How long ago what a stream's listeners get was recorded: the most of the last second.
#[derive(Debug, Default)]
pub(super) struct Age(Mutex<Option<(Duration, Instant)>>);

impl Age {
    pub(super) fn note(&self, stamp: &Stamp, now: Instant) {
        let age = now.saturating_duration_since(stamp.recorded);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = held.filter(|&(most, at)| most > age && now.saturating_duration_since(at) < FRESH);
        *held = fresh.or(Some((age, now)));
    }

    /// None if nothing was passed on lately.
    pub(super) fn read(&self, now: Instant) -> Option<Duration> {
        let held = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.filter(|&(_, at)| now.saturating_duration_since(at) < 2 * FRESH).map(|(age, _)| age)
    }
}

/// Why a listener gets nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The publisher ended the stream.
    Stream,
    /// The listener did not keep up.
    Slow,
}

struct Queue {
    backlog: Mutex<(Backlog<Heard>, Option<Ended>)>,
    /// Something was added, or the end has come.
    ready: Notify,
    /// The listener has gone.
    gone: AtomicBool,
    stages: AtomicU8,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (Backlog<Heard>, Option<Ended>)> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, reason: Ended) {
        self.lock().1.get_or_insert(reason);
        self.ready.notify_one();
    }
}

/// The stream's end; dropping it ends the stream for the listener.
pub(super) struct Outlet(Arc<Queue>);

impl Outlet {
    /// Gives a bundle to the listener; false if there is no such listener any more.
    pub(super) fn give(&self, heard: &Heard) -> bool {
        if self.is_closed() {
            return false;
        }
        let taken = self.0.lock().0.push(heard.clone(), heard.stamp);
        if taken {
            self.0.ready.notify_one();
        } else {
            self.0.end(Ended::Slow);
        }
        taken
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.gone.load(Ordering::Acquire)
    }

    /// Most stages that the listener wants.
    pub(super) fn stages(&self) -> Option<StageCount> {
        StageCount::new(self.0.stages.load(Ordering::Relaxed)).ok()
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.0.end(Ended::Stream);
    }
}

/// A listener's end: bundles from the next one on.
pub(crate) struct Listener {
    queue: Arc<Queue>,
    age: Arc<Age>,
    changed: Arc<Notify>,
}

/// Both ends of a queue; `changed` is told when the listener goes or wants other stages.
pub(super) fn connect(backlog: Backlog<Heard>, age: &Arc<Age>, changed: &Arc<Notify>) -> (Outlet, Listener) {
    let queue = Arc::new(Queue {
        backlog: Mutex::new((backlog, None)),
        ready: Notify::new(),
        gone: AtomicBool::new(false),
        stages: AtomicU8::new(StageCount::MAX.value()),
    });
    let listener = Listener { queue: Arc::clone(&queue), age: Arc::clone(age), changed: Arc::clone(changed) };
    (Outlet(queue), listener)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.queue.gone.store(true, Ordering::Release);
        self.changed.notify_one();
    }
}

impl Listener {
    /// Says how many stages are wanted, so that no more are fetched from another daemon.
    pub(crate) fn want(&self, stages: StageCount) {
        self.queue.stages.store(stages.value(), Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// The next bundle; everything queued is given before the end. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Heard, Ended> {
        loop {
            {
                let (backlog, ended) = &mut *self.queue.lock();
                if let Some((heard, _)) = backlog.pop(Instant::now()) {
                    return Ok(heard);
                }
                if let Some(ended) = *ended {
                    return Err(ended);
                }
            }
            self.queue.ready.notified().await;
        }
    }

    /// A bundle that is queued already.
    pub(crate) fn queued(&mut self) -> Option<Heard> {
        self.queue.lock().0.pop(Instant::now()).map(|(heard, _)| heard)
    }

    /// Frames that were skipped since this was last asked, because this listener does not keep up.
    pub(crate) fn take_skipped(&mut self) -> u64 {
        self.queue.lock().0.take_skipped()
    }

    /// Notes that a bundle has left for the listener.
    pub(crate) fn delivered(&self, heard: &Heard) {
        self.age.note(&heard.stamp, Instant::now());
    }
}
