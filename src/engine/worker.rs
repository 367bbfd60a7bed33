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

/// Runs entries, whatever their kinds and numbers of frames, with one network call for each; every job goes back to whoever
/// asked for it.
fn run_batch(processor: &mut Processor, entries: Vec<Entry>) -> Result<Finished, (Vec<Ticket>, String)> {
    let (mut encode, mut decode) = (Asked::default(), Asked::default());
    for Entry { job, at, deadline, done, gate } in entries {
        let ticket = Ticket::of(at, deadline, done, gate);
        match job {
            Job::Encode(job) => encode.push(ticket, job),
            Job::Decode(job) => decode.push(ticket, job),
        }
    }
    let result = processor.run_encode(&mut encode.jobs).and_then(|()| processor.run_decode(&mut decode.jobs));
    match result {
        Ok(()) => Ok(encode.finished(Job::Encode).chain(decode.finished(Job::Decode)).collect()),
        Err(e) => Err((encode.tickets.into_iter().chain(decode.tickets).collect(), e.to_string())),
    }
}

/// Jobs of one kind, each beside the ticket of whoever asked for it.
struct Asked<J> {
    tickets: Vec<Ticket>,
    jobs: Vec<J>,
}

impl<J> Default for Asked<J> {
    fn default() -> Self {
        Self { tickets: Vec::new(), jobs: Vec::new() }
    }
}

impl<J> Asked<J> {
    fn push(&mut self, ticket: Ticket, job: J) {
        self.tickets.push(ticket);
        self.jobs.push(job);
    }

    /// Jobs stay in their places while they run, so that tickets and jobs still belong together.
    fn finished(self, kind: fn(J) -> Job) -> impl Iterator<Item = (Ticket, Job)> {
        self.tickets.into_iter().zip(self.jobs.into_iter().map(kind))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::bitstream::Bundle;
    use crate::codec::{Decoder, Encoder};
    use crate::fake;
    use crate::units::StageCount;

    fn encode_job(frames: usize, tone: f32) -> Job {
        let mut encoder = Encoder::new(Arc::new(fake::profile(16)), StageCount::new(4).unwrap(), 5).unwrap();
        encoder.set_job_frames(frames);
        encoder.push(&(0..480 * frames).map(|n| (n as f32 * tone).sin() * 0.5).collect::<Vec<f32>>());
        Job::Encode(encoder.next_job().unwrap())
    }

    fn decode_job(frames: u8, code: u16) -> Job {
        let mut decoder = Decoder::new(Arc::new(fake::profile(16)));
        let codes = vec![code; usize::from(frames) * 4];
        decoder.push(Bundle::new(0, frames, StageCount::new(4).unwrap(), codes).unwrap()).unwrap();
        Job::Decode(decoder.next_job().unwrap())
    }

    fn run_alone(job: Job) -> Job {
        let mut processor = fake::processor(16, 7);
        match job {
            Job::Encode(mut job) => {
                processor.run_encode(std::slice::from_mut(&mut job)).unwrap();
                Job::Encode(job)
            }
            Job::Decode(mut job) => {
                processor.run_decode(std::slice::from_mut(&mut job)).unwrap();
                Job::Decode(job)
            }
        }
    }

    #[test]
    fn every_stream_gets_its_own_job_back_whatever_else_was_in_the_batch() {
        let jobs = || {
            vec![
                decode_job(5, 11),
                encode_job(4, 0.03),
                decode_job(2, 12),
                encode_job(1, 0.05),
                encode_job(3, 0.07),
                decode_job(5, 13),
                decode_job(1, 14),
            ]
        };
        let now = Instant::now();
        let (entries, asked): (Vec<_>, Vec<_>) = jobs()
            .into_iter()
            .map(|job| {
                let (tell, told) = channel();
                let done: Completion = Box::new(move |result| drop(tell.send(result)));
                let deadline = now + Duration::from_millis(20);
                (Entry { job, at: now, deadline, done, gate: Arc::new(Gate::default()) }, told)
            })
            .unzip();
        let Ok(finished) = run_batch(&mut fake::processor(16, 7), entries) else { panic!("the fakes do not fail") };
        for (ticket, job) in finished {
            ticket.gate.in_flight.store(1, Ordering::Release);
            ticket.close(Ok(job));
        }
        for (asked, job) in asked.into_iter().zip(jobs()) {
            let got = asked.recv().unwrap().unwrap();
            assert_eq!(format!("{got:?}"), format!("{:?}", run_alone(job)));
        }
    }
}
