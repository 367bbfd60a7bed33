//! Threads that own the networks and batch the jobs of many streams; no tokio here.

mod cores;
mod histogram;
mod queue;
mod strain;
mod worker;

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::codec::{DecodeJob, EncodeJob, Processor, Profile};
use crate::units::StageCount;
use cores::Cores;
pub use histogram::{BUCKETS_US, Histogram, Phases};
use queue::{Entry, Queue};
use strain::{Strain, Verdict};

/// Jobs that one slot may have in the engine: one to encode and one to decode.
pub const JOBS_PER_SLOT: u32 = 2;

/// A piece of work for the networks.
#[derive(Debug)]
pub enum Job {
    /// Frames to encode.
    Encode(EncodeJob),
    /// Frames to decode.
    Decode(DecodeJob),
}

/// What is called with the finished job, on an engine thread: it must return at once.
pub type Completion = Box<dyn FnOnce(Result<Job, EngineError>) + Send>;

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

/// Why the engine did not run a job.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
struct Counters {
    jobs: AtomicU64,
    batches: AtomicU64,
    cancelled: AtomicU64,
    late: AtomicU64,
    tight: AtomicU64,
    busy_ns: AtomicU64,
}

struct Shared {
    queues: Vec<Queue>,
    /// Slots admitted to each thread.
    admitted: Vec<AtomicUsize>,
    slots: usize,
    used: AtomicUsize,
    counters: Counters,
    strain: Strain,
    phases: Phases,
    end: Mutex<Option<EngineError>>,
    ended: Condvar,
}

impl Shared {
    /// Notes the first reason for the end, closes the queues and wakes everybody.
    fn end(&self, reason: EngineError) {
        // Held to the end: who learns the reason must find the queues closed.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert(reason);
        for queue in &self.queues {
            queue.close();
        }
        self.ended.notify_all();
    }

    fn end_reason(&self) -> Option<EngineError> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The running engine; dropping it stops the threads after the jobs they have.
pub struct Engine {
    shared: Arc<Shared>,
    profile: Arc<Profile>,
    threads: Vec<JoinHandle<()>>,
    pinned: usize,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

/// Access to the engine for those who have work.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    profile: Arc<Profile>,
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle").field("profile", &self.profile.name).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the threads; returns when every one has built its processor with `factory`.
    ///
    /// Errors: [`EngineError::Died`] with the factory's reason.
    pub fn start<E, F>(options: &EngineOptions, factory: F) -> Result<Self, EngineError>
    where
        E: std::fmt::Display,
        F: Fn() -> Result<Processor, E> + Send + Sync + 'static,
    {
        let threads = options.threads.max(1);
        let shared = Arc::new(Shared {
            queues: (0..threads).map(|_| Queue::default()).collect(),
            admitted: (0..threads).map(|_| AtomicUsize::new(0)).collect(),
            slots: options.slots,
            used: AtomicUsize::new(0),
            counters: Counters::default(),
            strain: Strain::default(),
            phases: Phases::default(),
            end: Mutex::new(None),
            ended: Condvar::new(),
        });
        let cores = Cores::of_process(threads).filter(|_| options.pin).map(Arc::new);
        let factory = Arc::new(factory);
        let (ready, started) = std::sync::mpsc::sync_channel(threads);
        let mut starting = Starting { shared: Arc::clone(&shared), threads: Vec::with_capacity(threads) };
        for thread in 0..threads {
            let (factory, ready) = (Arc::clone(&factory), ready.clone());
            let shared = Arc::clone(&shared);
            let (options, cores) = (options.clone(), cores.clone());
            let spawned = std::thread::Builder::new().name(format!("engine-{thread}")).spawn(move || {
                let mut guard = worker::DeathGuard::new(&shared, thread);
                let pinned = cores.is_some_and(|c| c.pin(thread).is_ok());
                match factory() {
                    Ok(processor) => {
                        let _ = ready.send(Ok((processor.profile(), pinned)));
                        drop(ready);
                        guard.finish(worker::run(&shared, thread, processor, &options));
                    }
                    Err(e) => {
                        let _ = ready.send(Err(e.to_string()));
                        guard.finish(Err(e.to_string()));
                    }
                }
            });
            let died = |reason: String| EngineError::Died { thread, reason };
            starting.threads.push(spawned.map_err(|e| died(e.to_string()))?);
        }
        drop(ready);
        let (mut profile, mut pinned) = (None, 0);
        for thread in 0..threads {
            let died = |reason: String| EngineError::Died { thread, reason };
            let answer = started.recv().map_err(|_| died("ended while starting".to_owned()))?;
            let (its, stays) = answer.map_err(died)?;
            profile = Some(its);
            pinned += usize::from(stays);
        }
        let profile = profile.ok_or(EngineError::Stopped)?;
        Ok(Self { threads: std::mem::take(&mut starting.threads), shared, profile, pinned })
    }

    /// Threads that are kept to a core, and threads in all.
    pub fn pinned(&self) -> (usize, usize) {
        (self.pinned, self.threads.len())
    }

    /// Access for those who have work.
    pub fn handle(&self) -> EngineHandle {
        EngineHandle { shared: Arc::clone(&self.shared), profile: Arc::clone(&self.profile) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        stop(&self.shared, &mut self.threads);
    }
}

/// Threads of an engine that is not there yet; stopped if it never will be.
struct Starting {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            stop(&self.shared, &mut self.threads);
        }
    }
}

fn stop(shared: &Shared, threads: &mut Vec<JoinHandle<()>>) {
    shared.end(EngineError::Stopped);
    for thread in threads.drain(..) {
        let _ = thread.join();
    }
}

impl EngineHandle {
    /// Numbers of the model.
    pub fn profile(&self) -> Arc<Profile> {
        Arc::clone(&self.profile)
    }

    /// A place for one stream, on the thread with the fewest.
    ///
    /// Errors: at once [`EngineError::Full`] when none is left and [`EngineError::Overloaded`] when there is no time for
    /// another stream, or why the engine has ended.
    pub fn admit(&self) -> Result<Slot, EngineError> {
        if let Some(reason) = self.shared.end_reason() {
            return Err(reason);
        }
        let strain = self.strain();
        if strain.full {
            return Err(EngineError::Overloaded { percent: (strain.busy * 100.0).min(100.0) as u32 });
        }
        let slots = self.shared.slots;
        self.shared
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| (used < slots).then_some(used + 1))
            .map_err(|_| EngineError::Full { slots })?;
        let loads = self.shared.admitted.iter().map(|a| a.load(Ordering::Relaxed));
        let thread = loads.enumerate().min_by_key(|&(_, load)| load).map_or(0, |(i, _)| i);
        self.shared.admitted[thread].fetch_add(1, Ordering::Relaxed);
        Ok(Slot { shared: Arc::clone(&self.shared), thread, gate: Arc::new(Gate::default()) })
    }

    fn strain(&self) -> Verdict {
        self.shared.strain.look(Instant::now(), self.shared.queues.len(), || self.counters())
    }

    /// Stages that a stream has which asks for `wanted`: fewer while the engine does not keep up.
    pub fn stages(&self, wanted: StageCount) -> StageCount {
        let kept = u16::from(wanted.value()) * u16::from(self.strain().parts) / u16::from(strain::PARTS);
        StageCount::new(kept.max(1) as u8).unwrap_or(wanted)
    }

    /// Share of their stages that streams have; 1 while the engine keeps up.
    pub fn stage_share(&self) -> f64 {
        f64::from(self.strain().parts) / f64::from(strain::PARTS)
    }

    /// Blocks until the engine ends; the reason is [`EngineError::Stopped`] if it was asked to.
    pub fn wait_death(&self) -> EngineError {
        let mut end = self.shared.end.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(reason) = &*end {
                return reason.clone();
            }
            end = self.shared.ended.wait(end).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Why the engine ended; None while it runs.
    pub fn ended(&self) -> Option<EngineError> {
        self.shared.end_reason()
    }

    /// Where the time of jobs went so far.
    pub fn phases(&self) -> &Phases {
        &self.shared.phases
    }

    /// Slots in use and in all.
    pub fn slots(&self) -> (usize, usize) {
        (self.shared.used.load(Ordering::Relaxed), self.shared.slots)
    }

    /// What the engine has done so far.
    pub fn counters(&self) -> EngineCounters {
        let c = &self.shared.counters;
        EngineCounters {
            jobs: c.jobs.load(Ordering::Relaxed),
            batches: c.batches.load(Ordering::Relaxed),
            cancelled: c.cancelled.load(Ordering::Relaxed),
            late: c.late.load(Ordering::Relaxed),
            tight: c.tight.load(Ordering::Relaxed),
            busy_ns: c.busy_ns.load(Ordering::Relaxed),
        }
    }
}

/// What a slot and its jobs share.
#[derive(Default)]
struct Gate {
    in_flight: AtomicU32,
    gone: std::sync::atomic::AtomicBool,
}

/// A place in the engine for one stream; dropping it frees the place and cancels its waiting jobs.
pub struct Slot {
    shared: Arc<Shared>,
    thread: usize,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl Slot {
    /// Queues a job; `done` is called once, from an engine thread, with the finished job or the reason there is none.
    ///
    /// Errors: [`EngineError::Busy`], or why the engine has ended; `done` is then not called.
    pub fn submit(&self, job: Job, deadline: Instant, done: Completion) -> Result<(), EngineError> {
        let before = self.gate.in_flight.fetch_add(1, Ordering::AcqRel);
        if before >= JOBS_PER_SLOT {
            self.gate.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(EngineError::Busy(before));
        }
        let entry = Entry { job, at: Instant::now(), deadline, done, gate: Arc::clone(&self.gate) };
        if self.shared.queues[self.thread].push(entry) {
            Ok(())
        } else {
            self.gate.in_flight.fetch_sub(1, Ordering::AcqRel);
            Err(self.shared.end_reason().unwrap_or(EngineError::Stopped))
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.gone.store(true, Ordering::Release);
        self.shared.admitted[self.thread].fetch_sub(1, Ordering::Relaxed);
        self.shared.used.fetch_sub(1, Ordering::AcqRel);
    }
}
