//! What the engine's threads and those who have work share.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::counters::Counters;
use super::histogram::Phases;
use super::job::EngineError;
use super::queue::Queue;
use super::search::Search;
use super::strain::Strain;

/// How the engine is built.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Engine threads, each with networks of its own.
    pub threads: usize,
    /// Streams that may be admitted at once, over all threads.
    pub slots: usize,
    /// Most jobs in one network call.
    pub max_batch: usize,
    /// How long a batch waits for company, never past its earliest deadline.
    pub gather: Duration,
    /// Whether each thread is kept to a core, where there is one for each core and more than one (Linux).
    pub pin: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, slots: 64 * threads, max_batch: 32, gather: Duration::from_micros(500), pin: true }
    }
}

/// One for all.
pub(super) struct Shared {
    pub(super) queues: Vec<Queue>,
    /// Slots admitted to each thread.
    pub(super) admitted: Vec<AtomicUsize>,
    pub(super) slots: usize,
    pub(super) used: AtomicUsize,
    pub(super) counters: Counters,
    pub(super) strain: Strain,
    pub(super) phases: Phases,
    /// What searches beside the streams; empty if nothing does.
    pub(super) search: OnceLock<Arc<Search>>,
    pub(super) end: Mutex<Option<EngineError>>,
    pub(super) ended: Condvar,
}

impl Shared {
    /// Notes the first reason for the end, closes the queues and wakes everybody.
    pub(super) fn end(&self, reason: EngineError) {
        // Held to the end: who learns the reason must find the queues closed.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert(reason);
        for queue in &self.queues {
            queue.close();
        }
        self.ended.notify_all();
    }

    pub(super) fn end_reason(&self) -> Option<EngineError> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
