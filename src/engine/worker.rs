//! The loop of an engine thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::job::{Completion, EngineError, Gate, Job};
use super::queue::Entry;
use super::shared::{EngineOptions, Shared};
use crate::codec::Processor;

/// Says why a thread ended, also when it panicked.
pub(super) struct DeathGuard {
    shared: Arc<Shared>,
    thread: usize,
    finished: bool,
}

impl DeathGuard {
    pub(super) fn new(shared: &Arc<Shared>, thread: usize) -> Self {
        Self { shared: Arc::clone(shared), thread, finished: false }
    }

    pub(super) fn finish(&mut self, result: Result<(), String>) {
        self.finished = true;
        if let Err(reason) = result {
            self.die(reason);
        }
    }

    fn die(&self, reason: String) {
        self.shared.end(EngineError::Died { thread: self.thread, reason });
        self.shared.queues[self.thread].abandon();
    }
}

impl Drop for DeathGuard {
    fn drop(&mut self) {
        if !self.finished {
            self.die("panicked".to_owned());
        }
    }
}

/// What remains of an entry while its job runs.
struct Ticket {
    done: Completion,
    gate: Arc<Gate>,
    deadline: Instant,
    /// When half of the time until then is over.
    half: Instant,
}

impl Ticket {
    fn of(at: Instant, deadline: Instant, done: Completion, gate: Arc<Gate>) -> Self {
        Self { done, gate, deadline, half: at + deadline.saturating_duration_since(at) / 2 }
    }

    fn close(self, result: Result<Job, EngineError>) {
        self.gate.in_flight.fetch_sub(1, Ordering::AcqRel);
        (self.done)(result);
    }
}

/// Runs batches until the queue is closed and empty. Errors: the reason, after a network failed.
pub(super) fn run(
    shared: &Shared,
    thread: usize,
    mut processor: Processor,
    options: &EngineOptions,
) -> Result<(), String> {
    let queue = &shared.queues[thread];
    loop {
        // Waiting for company makes sense only up to the number of streams there are.
        let company = shared.admitted[thread].load(Ordering::Relaxed).clamp(1, options.max_batch.max(1));
        let Some(batch) = queue.batch(company, options.gather) else { return Ok(()) };
        let (cancelled, live): (Vec<Entry>, Vec<Entry>) = batch.into_iter().partition(Entry::is_cancelled);
        shared.counters.cancelled.fetch_add(cancelled.len() as u64, Ordering::Relaxed);
        for entry in cancelled {
            Ticket::of(entry.at, entry.deadline, entry.done, entry.gate).close(Err(EngineError::Cancelled));
        }
        if live.is_empty() {
            continue;
        }
        let start = Instant::now();
        live.iter().for_each(|e| shared.phases.queue.add(start.saturating_duration_since(e.at)));
        let result = run_batch(&mut processor, live);
        let end = Instant::now();
        shared.phases.compute.add(end - start);
        shared.counters.batches.fetch_add(1, Ordering::Relaxed);
        shared.counters.busy_ns.fetch_add((end - start).as_nanos() as u64, Ordering::Relaxed);
        match result {
            Ok(finished) => {
                for (ticket, job) in finished {
                    shared.counters.jobs.fetch_add(1, Ordering::Relaxed);
                    shared.counters.late.fetch_add(u64::from(end > ticket.deadline), Ordering::Relaxed);
                    shared.counters.tight.fetch_add(u64::from(end > ticket.half), Ordering::Relaxed);
                    ticket.close(Ok(job));
                }
            }
            Err((tickets, reason)) => {
                let error = EngineError::Died { thread, reason: reason.clone() };
                for ticket in tickets {
                    ticket.close(Err(error.clone()));
                }
                return Err(reason);
            }
        }
    }
}

type Finished = Vec<(Ticket, Job)>;

/// Runs entries of one kind and one number of frames in one network call.
fn run_batch(processor: &mut Processor, entries: Vec<Entry>) -> Result<Finished, (Vec<Ticket>, String)> {
    let (mut tickets, mut encode, mut decode) = (Vec::new(), Vec::new(), Vec::new());
    for Entry { job, at, deadline, done, gate } in entries {
        tickets.push(Ticket::of(at, deadline, done, gate));
        match job {
            Job::Encode(j) => encode.push(j),
            Job::Decode(j) => decode.push(j),
        }
    }
    let result = processor.run_encode(&mut encode).and_then(|()| processor.run_decode(&mut decode));
    match result {
        Ok(()) => {
            let jobs = encode.into_iter().map(Job::Encode).chain(decode.into_iter().map(Job::Decode));
            Ok(tickets.into_iter().zip(jobs).collect())
        }
        Err(e) => Err((tickets, e.to_string())),
    }
}
