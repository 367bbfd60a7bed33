//! Threads that own the networks and batch the jobs of many streams; no tokio here.

mod cores;
mod counters;
mod histogram;
mod job;
mod queue;
mod search;
mod shared;
mod spare;
mod strain;
mod worker;

pub use counters::EngineCounters;
pub use histogram::{BUCKETS_US, Histogram, Phases};
pub use job::{Completion, EngineError, JOBS_PER_SLOT, Job};
pub use search::SearchJob;
pub use shared::EngineOptions;
pub use spare::EffortMode;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::codec::Processor;
use crate::profile::Profile;
use crate::synthesis::Refiner;
use crate::units::StageCount;
use cores::Cores;
use counters::Counters;
use job::Gate;
use queue::{Entry, Queue};
use search::{Search, Searching};
use shared::Shared;
use strain::{Strain, Verdict};

/// The running engine; dropping it stops the threads after the jobs they have.
pub struct Engine {
    shared: Arc<Shared>,
    profile: Arc<Profile>,
    threads: Vec<JoinHandle<()>>,
    pinned: usize,
    searching: Option<Searching>,
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
    /// # Errors
    /// [`EngineError::Died`] with the factory's reason.
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
            search: OnceLock::new(),
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
        Ok(Self { threads: std::mem::take(&mut starting.threads), shared, profile, pinned, searching: None })
    }

    /// Threads that are kept to a core, and threads in all.
    pub fn pinned(&self) -> (usize, usize) {
        (self.pinned, self.threads.len())
    }

    /// Starts threads that search beside the streams, half as many as the engine has; returns when every one has built its refiner with
    /// `factory`. A model that has none leaves everything as it is.
    ///
    /// # Errors
    /// [`EngineError::Died`] with the factory's reason.
    pub fn search<E, F>(&mut self, factory: F) -> Result<(), EngineError>
    where
        E: std::fmt::Display,
        F: Fn() -> Result<Option<Refiner>, E> + Send + Sync + 'static,
    {
        let search = Arc::new(Search::new(self.threads.len()));
        let mut searching = Searching { search: Arc::clone(&search), threads: Vec::new() };
        let factory = Arc::new(factory);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        for thread in 0..self.threads.len().div_ceil(2) {
            let (factory, ready, search) = (Arc::clone(&factory), ready.clone(), Arc::clone(&search));
            let run = move || {
                let refiner = factory();
                let _ = ready.send(refiner.as_ref().map(Option::is_some).map_err(ToString::to_string));
                drop(ready);
                if let Ok(Some(mut refiner)) = refiner {
                    search.run(&mut refiner);
                }
            };
            let died = |reason: String| EngineError::Died { thread, reason };
            let spawned = std::thread::Builder::new().name(format!("search-{thread}")).spawn(run);
            searching.threads.push(spawned.map_err(|e| died(e.to_string()))?);
            if !started.recv().map_err(|_| died("ended while starting".to_owned()))?.map_err(died)? {
                return Ok(());
            }
        }
        if self.shared.search.set(search).is_ok() {
            self.searching = Some(searching);
        }
        Ok(())
    }

    /// Access for those who have work.
    pub fn handle(&self) -> EngineHandle {
        EngineHandle { shared: Arc::clone(&self.shared), profile: Arc::clone(&self.profile) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.searching = None;
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
    /// # Errors
    /// At once [`EngineError::Full`] when none is left and [`EngineError::Overloaded`] when there is no time for
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
        let gives_way = self.shared.search.get().is_some_and(|s| s.gives_way());
        self.shared.strain.look(Instant::now(), self.shared.queues.len(), gives_way, || self.counters())
    }

    /// How much is searched beside the streams from here on.
    pub fn set_effort(&self, mode: EffortMode) {
        if let Some(search) = self.shared.search.get() {
            search.set_mode(mode);
        }
    }

    /// Steps of the next search; None if this engine never searches.
    pub fn effort(&self) -> Option<u32> {
        self.shared.search.get().map(|s| s.steps(Instant::now(), &self.strain()))
    }

    /// Bundles that were searched so far.
    pub fn searched(&self) -> u64 {
        self.shared.search.get().map_or(0, |s| s.searched())
    }

    /// Searches better latents for sound of this length; `done` is called once with the job, whether there was time for it or not.
    pub fn submit_search(&self, job: SearchJob, media: Duration, done: impl FnOnce(SearchJob) + Send + 'static) {
        match (self.shared.search.get(), self.effort()) {
            (Some(search), Some(steps)) if steps > 0 => {
                search.submit(job, steps, search::deadline(Instant::now(), media), Box::new(done));
            }
            _ => done(job),
        }
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
        self.shared.counters.read()
    }
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
    /// # Errors
    /// [`EngineError::Busy`], or why the engine has ended; `done` is then not called.
    pub fn submit<J: Job>(&self, job: J, deadline: Instant, done: Completion<J>) -> Result<(), EngineError> {
        let before = self.gate.in_flight.fetch_add(1, Ordering::AcqRel);
        if before >= JOBS_PER_SLOT {
            self.gate.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(EngineError::Busy(before));
        }
        let entry = Entry { asked: job.ask(done), at: Instant::now(), deadline, gate: Arc::clone(&self.gate) };
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
