//! Threads that move the latents of live streams until they sound better, in the time that the engine leaves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cores;
use super::spare::{EffortMode, Spare};
use super::strain::Verdict;
use crate::synthesis::{Refiner, Track};

/// What a stream wants to have searched.
#[derive(Debug)]
pub struct SearchJob {
    /// Where its search stands; None starts at `first_frame`.
    pub track: Option<Track>,
    /// First frame of the samples.
    pub first_frame: u64,
    /// Whole frames of samples.
    pub pcm: Vec<f32>,
    /// Their latents, moved afterwards.
    pub latents: Vec<f32>,
}

/// What is called with the job when it is done; it must return at once.
type Done = Box<dyn FnOnce(SearchJob) + Send>;

struct Entry {
    job: SearchJob,
    steps: u32,
    deadline: Instant,
    done: Done,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    closed: bool,
}

/// Searches of all streams. Each has one job at a time, so the queue is bounded by the engine's slots.
pub(super) struct Search {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    spare: Mutex<Spare>,
    engine_threads: usize,
    searched: AtomicU64,
}

impl Search {
    pub(super) fn new(engine_threads: usize) -> Self {
        Self {
            waiting: Mutex::default(),
            changed: Condvar::new(),
            spare: Mutex::new(Spare::new()),
            engine_threads,
            searched: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_mode(&self, mode: EffortMode) {
        self.spare().set_mode(mode);
    }

    /// Steps of searches from here on.
    pub(super) fn steps(&self, now: Instant, verdict: &Verdict) -> u32 {
        let mut spare = self.spare();
        spare.look(now, self.engine_threads, verdict);
        spare.steps()
    }

    pub(super) fn gives_way(&self) -> bool {
        self.spare().gives_way()
    }

    /// Bundles that were searched.
    pub(super) fn searched(&self) -> u64 {
        self.searched.load(Ordering::Relaxed)
    }

    /// Queues a job of so many steps; it comes back as it is if the threads have ended.
    pub(super) fn submit(&self, job: SearchJob, steps: u32, deadline: Instant, done: Done) {
        let mut waiting = self.lock();
        if waiting.closed {
            drop(waiting);
            return done(job);
        }
        waiting.entries.push_back(Entry { job, steps, deadline, done });
        drop(waiting);
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        let entries = std::mem::take(&mut waiting.entries);
        drop(waiting);
        self.changed.notify_all();
        entries.into_iter().for_each(|e| (e.done)(e.job));
    }

    fn next(&self) -> Option<Entry> {
        let mut waiting = self.lock();
        loop {
            if waiting.closed {
                return None;
            }
            if let Some(entry) = waiting.entries.pop_front() {
                return Some(entry);
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The loop of a thread, which steps back behind those of the engine.
    pub(super) fn run(&self, refiner: &mut Refiner) {
        cores::step_back();
        while let Some(Entry { mut job, steps, deadline, done }) = self.next() {
            let start = Instant::now();
            let cut_short = refine(refiner, &mut job, steps, &mut || Instant::now() < deadline);
            self.spare().took(start.elapsed(), cut_short);
            self.searched.fetch_add(1, Ordering::Relaxed);
            done(job);
        }
    }
}

/// Moves the latents of a job; whether there was no time for all steps.
fn refine(refiner: &mut Refiner, job: &mut SearchJob, steps: u32, in_time: &mut dyn FnMut() -> bool) -> bool {
    if !in_time() {
        // The next search of this stream starts anew.
        job.track = None;
        return true;
    }
    let mut track = job.track.take().unwrap_or_else(|| refiner.track(job.first_frame));
    refiner.exchange(&mut track);
    refiner.set_steps(steps);
    let frames = refiner.frames(&job.pcm);
    let (before, mut asked, mut refused) = (job.latents.clone(), 0, false);
    let result = refiner.refine_while(&job.pcm, &mut job.latents, frames, &mut || {
        asked += 1;
        // One step is always made: it says what one takes.
        refused = asked > 1 && !in_time();
        !refused
    });
    refiner.exchange(&mut track);
    match result {
        Ok(_) => job.track = Some(track),
        // A network that fails takes nothing from the stream but the search.
        Err(_) => job.latents = before,
    }
    refused
}

/// Stops the threads when dropped.
pub(super) struct Searching {
    pub(super) search: Arc<Search>,
    pub(super) threads: Vec<std::thread::JoinHandle<()>>,
}

impl Drop for Searching {
    fn drop(&mut self) {
        self.search.close();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The time that a search may take: half of what its sound lasts.
pub(super) fn deadline(now: Instant, media: Duration) -> Instant {
    now + media / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn job() -> SearchJob {
        let mut noise = vec![0.0; 240];
        crate::model::decoder_noise(1, &mut noise);
        let pcm: Vec<f32> = noise.iter().flat_map(|x| [0.3 * x; 10]).collect();
        SearchJob { track: None, first_frame: 15, latents: vec![0.1; pcm.len() / 480 * 48], pcm }
    }

    #[test]
    fn a_search_stops_when_its_time_is_over_and_goes_on_where_it_was() {
        let mut refiner = fake::refiner(0);
        let mut whole = job();
        assert!(!refine(&mut refiner, &mut whole, 10, &mut || true));
        assert_ne!(whole.latents, job().latents);
        // Time for three looks at the clock: the one before it begins and two of the search.
        let (mut cut, mut looks) = (job(), 0);
        assert!(refine(&mut refiner, &mut cut, 10, &mut || {
            looks += 1;
            looks <= 3
        }));
        assert!(cut.track.is_some() && cut.latents != whole.latents && cut.latents != job().latents);
        // The next part of the first stream does not depend on what another did in between.
        let mut next = SearchJob { first_frame: 20, ..job() };
        next.track = whole.track.take();
        assert!(!refine(&mut refiner, &mut next, 10, &mut || true));
        let mut alone = fake::refiner(0);
        let mut first = job();
        refine(&mut alone, &mut first, 10, &mut || true);
        let mut second = SearchJob { first_frame: 20, track: first.track.take(), ..job() };
        refine(&mut alone, &mut second, 10, &mut || true);
        assert_eq!(next.latents, second.latents);
        // Too late to begin: nothing is moved.
        let mut late = SearchJob { track: second.track.take(), ..job() };
        assert!(refine(&mut refiner, &mut late, 10, &mut || false));
        assert!(late.track.is_none() && late.latents == job().latents);
    }

    #[test]
    fn whoever_waits_when_the_threads_end_gets_the_job_back() {
        let search = Search::new(1);
        let (tell, told) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let tell = tell.clone();
            let soon = deadline(Instant::now(), Duration::from_millis(100));
            search.submit(job(), 3, soon, Box::new(move |job| drop(tell.send(job.latents))));
            search.close();
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [job().latents, job().latents]);
    }
}
