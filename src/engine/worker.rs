//! The loop of an engine thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::counters::Counters;
use super::job::{Asked, Completion, EngineError, Gate};
use super::queue::Entry;
use super::shared::{EngineOptions, Shared};
use crate::codec::{DecodeJob, EncodeJob, ProcessError, Processor};

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

/// Runs batches until the queue is closed and empty.
///
/// # Errors
/// The reason, after a network failed.
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
        let Some(entries) = queue.batch(company, options.gather) else { return Ok(()) };
        let (cancelled, live): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(Entry::is_cancelled);
        shared.counters.cancelled.fetch_add(cancelled.len() as u64, Ordering::Relaxed);
        Batch::of(cancelled).fail(&EngineError::Cancelled);
        if live.is_empty() {
            continue;
        }
        let start = Instant::now();
        live.iter().for_each(|e| shared.phases.queue.add(start.saturating_duration_since(e.at)));
        let mut batch = Batch::of(live);
        let result = batch.run(&mut processor);
        let end = Instant::now();
        shared.phases.compute.add(end - start);
        shared.counters.batches.fetch_add(1, Ordering::Relaxed);
        shared.counters.busy_ns.fetch_add((end - start).as_nanos() as u64, Ordering::Relaxed);
        if let Err(e) = result {
            let reason = e.to_string();
            batch.fail(&EngineError::Died { thread, reason: reason.clone() });
            return Err(reason);
        }
        batch.finish(&shared.counters, end);
    }
}

/// Jobs that run together, of any kinds and numbers of frames.
struct Batch {
    encode: Jobs<EncodeJob>,
    decode: Jobs<DecodeJob>,
}

impl Batch {
    fn of(entries: Vec<Entry>) -> Self {
        let mut batch = Self { encode: Jobs::default(), decode: Jobs::default() };
        for Entry { asked, at, deadline, gate } in entries {
            let half = at + deadline.saturating_duration_since(at) / 2;
            match asked {
                Asked::Encode(job, done) => batch.encode.push(job, Ticket { done, gate, deadline, half }),
                Asked::Decode(job, done) => batch.decode.push(job, Ticket { done, gate, deadline, half }),
            }
        }
        batch
    }

    /// One network call for each kind and number of frames.
    fn run(&mut self, processor: &mut Processor) -> Result<(), ProcessError> {
        processor.run_encode(&mut self.encode.jobs)?;
        processor.run_decode(&mut self.decode.jobs)
    }

    fn finish(self, counters: &Counters, end: Instant) {
        self.encode.finish(counters, end);
        self.decode.finish(counters, end);
    }

    fn fail(self, error: &EngineError) {
        self.encode.tickets.into_iter().for_each(|t| t.close(Err(error.clone())));
        self.decode.tickets.into_iter().for_each(|t| t.close(Err(error.clone())));
    }
}

/// Jobs of one kind, each beside the ticket of whoever asked for it.
struct Jobs<J> {
    tickets: Vec<Ticket<J>>,
    jobs: Vec<J>,
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        Self { tickets: Vec::new(), jobs: Vec::new() }
    }
}

impl<J> Jobs<J> {
    fn push(&mut self, job: J, ticket: Ticket<J>) {
        self.tickets.push(ticket);
        self.jobs.push(job);
    }

    /// Jobs stay in their places while they run, so that tickets and jobs still belong together.
    fn finish(self, counters: &Counters, end: Instant) {
        for (ticket, job) in self.tickets.into_iter().zip(self.jobs) {
            counters.jobs.fetch_add(1, Ordering::Relaxed);
            counters.late.fetch_add(u64::from(end > ticket.deadline), Ordering::Relaxed);
            counters.tight.fetch_add(u64::from(end > ticket.half), Ordering::Relaxed);
            ticket.close(Ok(job));
        }
    }
}

/// What remains of an entry while its job runs.
struct Ticket<J> {
    done: Completion<J>,
    gate: Arc<Gate>,
    deadline: Instant,
    /// When half of the time until then is over.
    half: Instant,
}

impl<J> Ticket<J> {
    fn close(self, result: Result<J, EngineError>) {
        self.gate.in_flight.fetch_sub(1, Ordering::AcqRel);
        (self.done)(result);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::bitstream::Bundle;
    use crate::codec::{Decoder, Encoder};
    use crate::engine::Job;
    use crate::fake;
    use crate::units::StageCount;

    /// Hears of a job, and knows what should become of it.
    type Hearing = Box<dyn FnOnce()>;

    fn entry<J: Job + PartialEq + Send + std::fmt::Debug + 'static>(job: J, alone: J) -> (Entry, Hearing) {
        let (tell, told) = channel();
        let asked = job.ask(Box::new(move |result| drop(tell.send(result))));
        let (at, gate) = (Instant::now(), Arc::new(Gate::default()));
        gate.in_flight.store(1, Ordering::Release);
        let hearing = Box::new(move || assert_eq!(told.recv().unwrap().unwrap(), alone));
        (Entry { asked, at, deadline: at + Duration::from_millis(20), gate }, hearing)
    }

    fn encode(frames: usize, tone: f32) -> (Entry, Hearing) {
        let mut encoder = Encoder::new(Arc::new(fake::profile(16)), StageCount::new(4).unwrap(), 5).unwrap();
        encoder.set_job_frames(frames);
        encoder.push(&(0..480 * frames).map(|n| (n as f32 * tone).sin() * 0.5).collect::<Vec<f32>>());
        let job = encoder.next_job().unwrap();
        let mut alone = job.clone();
        fake::processor(16, 7).run_encode(std::slice::from_mut(&mut alone)).unwrap();
        entry(job, alone)
    }

    fn decode(frames: u8, code: u16) -> (Entry, Hearing) {
        let mut decoder = Decoder::new(Arc::new(fake::profile(16)));
        let codes = vec![code; usize::from(frames) * 4];
        decoder.push(Bundle::new(0, frames, StageCount::new(4).unwrap(), codes).unwrap()).unwrap();
        let job = decoder.next_job().unwrap();
        let mut alone = job.clone();
        fake::processor(16, 7).run_decode(std::slice::from_mut(&mut alone)).unwrap();
        entry(job, alone)
    }

    #[test]
    fn every_stream_gets_its_own_job_back_whatever_else_was_in_the_batch() {
        let (entries, hearings): (Vec<_>, Vec<_>) = [
            decode(5, 11),
            encode(4, 0.03),
            decode(2, 12),
            encode(1, 0.05),
            encode(3, 0.07),
            decode(5, 13),
            decode(1, 14),
        ]
        .into_iter()
        .unzip();
        let mut batch = Batch::of(entries);
        batch.run(&mut fake::processor(16, 7)).unwrap();
        batch.finish(&Counters::default(), Instant::now());
        hearings.into_iter().for_each(|hear| hear());
    }
}
