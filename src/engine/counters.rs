//! What the engine counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the engine has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineCounters {
    /// Jobs finished.
    pub jobs: u64,
    /// Network calls.
    pub batches: u64,
    /// Jobs dropped because their slot was gone.
    pub cancelled: u64,
    /// Jobs that finished after their deadline.
    pub late: u64,
    /// Jobs that took more than half of the time they had.
    pub tight: u64,
    /// Time spent inside the networks and the codebook search, nanoseconds.
    pub busy_ns: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) jobs: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) tight: AtomicU64,
    pub(super) busy_ns: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> EngineCounters {
        EngineCounters {
            jobs: self.jobs.load(Ordering::Relaxed),
            batches: self.batches.load(Ordering::Relaxed),
            cancelled: self.cancelled.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            tight: self.tight.load(Ordering::Relaxed),
            busy_ns: self.busy_ns.load(Ordering::Relaxed),
        }
    }
}
