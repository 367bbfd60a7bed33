//! The engine: batches, admission, cancellation, and what happens when a network fails.
#![cfg(feature = "full")]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use undertone::codec::{EncodeJob, Encoder, Processor};
use undertone::engine::{Completion, Engine, EngineError, EngineOptions};
use undertone::fake;
use undertone::model::{EncodeRow, EncoderNet, NetworkError};
use undertone::rvq::{BeamWidth, Codebooks, Searcher, SimdLevel};
use undertone::units::StageCount;

const PATIENCE: Duration = Duration::from_secs(20);

fn options(slots: usize) -> EngineOptions {
    EngineOptions { threads: 2, slots, max_batch: 8, gather: Duration::from_millis(2), pin: false }
}

fn engine(slots: usize) -> Engine {
    Engine::start(&options(slots), || Ok::<_, String>(fake::processor(16, 7))).unwrap()
}

fn job(number: usize) -> EncodeJob {
    let processor = fake::processor(16, 7);
    let mut encoder = Encoder::new(processor.profile(), StageCount::new(6).unwrap(), 5).unwrap();
    encoder.set_job_frames(1 + number % 3);
    let pcm: Vec<f32> = (0..2_400).map(|n| ((n + number * 17) as f32 * 0.02).sin() * 0.5).collect();
    encoder.push(&pcm);
    encoder.next_job().unwrap()
}

fn reply() -> (Completion<EncodeJob>, Receiver<Result<EncodeJob, EngineError>>) {
    let (tell, told) = channel();
    (Box::new(move |r| drop(tell.send(r))), told)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

#[test]
fn jobs_of_many_streams_come_back_as_if_they_had_run_alone() {
    let engine = engine(32);
    let handle = engine.handle();
    let slots: Vec<_> = (0..20).map(|_| handle.admit().unwrap()).collect();
    let waiting: Vec<_> = slots
        .iter()
        .enumerate()
        .map(|(i, slot)| {
            let (done, told) = reply();
            slot.submit(job(i), soon(), done).unwrap();
            told
        })
        .collect();
    let mut processor = fake::processor(16, 7);
    for (i, told) in waiting.into_iter().enumerate() {
        let done = told.recv_timeout(PATIENCE).unwrap().unwrap();
        let mut alone = job(i);
        processor.run_encode(std::slice::from_mut(&mut alone)).unwrap();
        assert_eq!(done, alone);
    }
    let counters = handle.counters();
    assert_eq!(counters.jobs, 20);
    assert!(counters.batches <= 20);
}

#[test]
fn a_full_engine_refuses_at_once_and_a_dropped_slot_makes_room() {
    let engine = engine(2);
    let handle = engine.handle();
    let (first, _second) = (handle.admit().unwrap(), handle.admit().unwrap());
    assert_eq!(handle.admit().unwrap_err(), EngineError::Full { slots: 2 });
    drop(first);
    assert!(handle.admit().is_ok());
}

/// An encoder that waits for a sign, then does what it is told.
struct Odd {
    wait: Arc<std::sync::Mutex<Receiver<()>>>,
    fail: fn() -> Result<(), NetworkError>,
}

impl EncoderNet for Odd {
    fn state_size(&self) -> usize {
        1
    }

    fn encode(&mut self, rows: &mut [EncodeRow<'_>], frames: usize) -> Result<(), NetworkError> {
        let _ = self.wait.lock().unwrap().recv_timeout(PATIENCE);
        (self.fail)()?;
        fake::FakeEncoder.encode(rows, frames)
    }
}

fn odd_engine(fail: fn() -> Result<(), NetworkError>) -> (Engine, std::sync::mpsc::Sender<()>) {
    let (go, wait) = channel();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let make = move || {
        let books = Arc::new(Codebooks::new(vec![0.5; 16 * 256 * 48], 16, 256, 48).unwrap());
        let searcher = Searcher::new(Arc::clone(&books), BeamWidth::GREEDY, SimdLevel::Scalar);
        let encoder = Box::new(Odd { wait: Arc::clone(&wait), fail });
        let profile = Arc::new(fake::profile(16));
        Ok::<_, String>(Processor::new(profile, encoder, Box::new(fake::FakeDecoder), books, searcher))
    };
    (Engine::start(&EngineOptions { threads: 1, ..options(8) }, make).unwrap(), go)
}

#[test]
fn a_slot_has_two_jobs_at_most_and_cancelled_ones_are_not_computed() {
    let (engine, go) = odd_engine(|| Ok(()));
    let handle = engine.handle();
    let (busy, gone) = (handle.admit().unwrap(), handle.admit().unwrap());
    let (done, first) = reply();
    busy.submit(job(0), soon(), done).unwrap();
    let (done, second) = reply();
    busy.submit(job(0), soon() + PATIENCE, done).unwrap();
    assert_eq!(busy.submit(job(0), soon(), reply().0).unwrap_err(), EngineError::Busy(2));
    // Let the thread take up the first batch before the next job arrives.
    std::thread::sleep(Duration::from_millis(300));
    let (done, cancelled) = reply();
    gone.submit(job(0), soon(), done).unwrap();
    drop(gone);
    for _ in 0..4 {
        let _ = go.send(());
    }
    assert!(first.recv_timeout(PATIENCE).unwrap().is_ok());
    assert!(second.recv_timeout(PATIENCE).unwrap().is_ok());
    assert_eq!(cancelled.recv_timeout(PATIENCE).unwrap().unwrap_err(), EngineError::Cancelled);
    assert_eq!(handle.counters().cancelled, 1);
}

#[test]
fn a_network_that_fails_or_panics_ends_the_engine_with_a_reason() {
    let failing = || Err(NetworkError { network: "encoder", reason: "out of order".to_owned() });
    for (fail, wanted) in [(failing as fn() -> _, "out of order"), (|| panic!("on purpose"), "panicked")] {
        let (engine, go) = odd_engine(fail);
        let handle = engine.handle();
        let slot = handle.admit().unwrap();
        let (done, told) = reply();
        slot.submit(job(0), soon(), done).unwrap();
        go.send(()).unwrap();
        let reason = handle.wait_death();
        assert!(matches!(&reason, EngineError::Died { thread: 0, reason } if reason.contains(wanted)), "{reason}");
        assert!(!matches!(told.recv_timeout(PATIENCE), Ok(Ok(_))));
        assert_eq!(handle.admit().unwrap_err(), reason);
        assert_eq!(slot.submit(job(0), soon(), reply().0).unwrap_err(), reason);
    }
}

#[test]
fn a_model_that_does_not_load_is_an_error_of_the_start() {
    let e = Engine::start(&options(2), || Err::<Processor, _>("no such model")).unwrap_err();
    assert!(e.to_string().contains("no such model"), "{e}");
}

#[test]
fn a_stopped_engine_says_so() {
    let engine = engine(2);
    let handle = engine.handle();
    let slot = handle.admit().unwrap();
    drop(engine);
    assert_eq!(handle.wait_death(), EngineError::Stopped);
    assert_eq!(slot.submit(job(0), soon(), reply().0).unwrap_err(), EngineError::Stopped);
}
