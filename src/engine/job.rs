//! A piece of work, and what becomes of it.

use std::sync::atomic::{AtomicBool, AtomicU32};

use crate::codec::{DecodeJob, EncodeJob};

/// Jobs that one slot may have in the engine: one to encode and one to decode.
pub const JOBS_PER_SLOT: u32 = 2;

/// What is called with the finished job, on an engine thread: it must return at once.
pub type Completion<J> = Box<dyn FnOnce(Result<J, EngineError>) + Send>;

/// A piece of work for the networks.
pub trait Job: Sized {
    /// The job with whoever waits for it.
    #[doc(hidden)]
    fn ask(self, done: Completion<Self>) -> Asked;
}

impl Job for EncodeJob {
    fn ask(self, done: Completion<Self>) -> Asked {
        Asked::Encode(self, done)
    }
}

impl Job for DecodeJob {
    fn ask(self, done: Completion<Self>) -> Asked {
        Asked::Decode(self, done)
    }
}

/// A job with whoever waits for it.
pub enum Asked {
    /// Frames to encode.
    Encode(EncodeJob, Completion<EncodeJob>),
    /// Frames to decode.
    Decode(DecodeJob, Completion<DecodeJob>),
}

/// Why the engine did not run a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No slot is free.
    #[error("all {slots} slots of the engine are in use")]
    Full {
        /// Slots in all.
        slots: usize,
    },
    /// The engine has no time left for another stream.
    #[error("the engine is too busy for another stream: {percent} % of its time is taken")]
    Overloaded {
        /// Share of the time that its threads were busy lately.
        percent: u32,
    },
    /// The slot has its two jobs in the engine already.
    #[error("the slot already has {0} jobs in the engine, allowed 2")]
    Busy(u32),
    /// The slot was dropped before its job ran.
    #[error("the job was cancelled")]
    Cancelled,
    /// The engine was stopped.
    #[error("the engine was stopped")]
    Stopped,
    /// An engine thread could not start or died.
    #[error("engine thread {thread}: {reason}")]
    Died {
        /// Which thread.
        thread: usize,
        /// Why.
        reason: String,
    },
}

/// What a slot and its jobs share.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) in_flight: AtomicU32,
    pub(super) gone: AtomicBool,
}
