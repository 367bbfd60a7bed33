//! One thread's waiting jobs. Bounded by the slots admitted to it: each has at most two.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::job::{Asked, Gate};

pub(super) struct Entry {
    pub(super) asked: Asked,
    /// When it was submitted.
    pub(super) at: Instant,
    pub(super) deadline: Instant,
    pub(super) gate: Arc<Gate>,
}

impl Entry {
    /// Jobs of one kind and one number of frames fit into one network call.
    fn kind(&self) -> (bool, usize) {
        match &self.asked {
            Asked::Encode(job, _) => (true, job.frames),
            Asked::Decode(job, _) => (false, job.frames),
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.gate.gone.load(Ordering::Acquire)
    }
}

#[derive(Default)]
struct Waiting {
    entries: Vec<Entry>,
    closed: bool,
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when the queue is closed.
    pub(super) fn push(&self, entry: Entry) -> bool {
        let mut waiting = self.lock();
        if waiting.closed {
            return false;
        }
        waiting.entries.push(entry);
        drop(waiting);
        self.changed.notify_one();
        true
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Drops what waits, once nobody is left to run it; whoever waits for a job notices.
    pub(super) fn abandon(&self) {
        let entries = std::mem::take(&mut self.lock().entries);
        drop(entries);
    }

    /// The next batch, earliest deadline first; None when the queue is closed and empty.
    ///
    /// A batch smaller than `full` waits up to `gather` for company, but not past its earliest deadline.
    pub(super) fn batch(&self, full: usize, gather: Duration) -> Option<Vec<Entry>> {
        let mut waiting = self.lock();
        let mut patience: Option<Instant> = None;
        loop {
            if waiting.entries.is_empty() {
                if waiting.closed {
                    return None;
                }
                patience = None;
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let now = Instant::now();
            let earliest = waiting.entries.iter().map(|e| e.deadline).min().unwrap_or(now);
            let until = (*patience.get_or_insert(now + gather)).min(earliest);
            if waiting.closed || waiting.entries.len() >= full || now >= until {
                return Some(take(&mut waiting.entries, full));
            }
            waiting = self.changed.wait_timeout(waiting, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Takes the most urgent entry and up to `most - 1` others of its kind, in order of urgency.
fn take(entries: &mut Vec<Entry>, most: usize) -> Vec<Entry> {
    entries.sort_by_key(|e| e.deadline);
    let Some(kind) = entries.first().map(Entry::kind) else { return Vec::new() };
    let mut left = most.max(1);
    entries
        .extract_if(.., |e| {
            let chosen = left > 0 && e.kind() == kind;
            left -= usize::from(chosen);
            chosen
        })
        .collect()
}
