//! The shipped model on one core: ten seconds of one stream, and batches of streams through the engine.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use undertone::codec::{self, EncodeJob, Encoder};
use undertone::engine::{Engine, EngineOptions};
use undertone::infer::{self, Networks};
use undertone::rvq::BeamWidth;
use undertone::units::StageCount;

const SECONDS: usize = 10;

/// A voice-like buzz with noise.
fn signal() -> Vec<f32> {
    let mut x = 1u32;
    (0..SECONDS * 24_000)
        .map(|n| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let t = n as f32 / 24_000.0;
            let buzz: f32 = (1..20).map(|k| (k as f32 * (700.0 + 200.0 * (3.0 * t).sin()) * t).sin() / k as f32).sum();
            buzz * 0.1 + (x >> 8) as f32 / 16_777_216.0 * 0.02
        })
        .collect()
}

/// One stream, files: 25 frames a call. Elements are frames of 20 ms: 1 Kelem/s is 20 x real time.
fn stream(c: &mut Criterion) {
    let model = infer::load_model(None).expect("the shipped model");
    let (pcm, stages) = (signal(), StageCount::new(12).expect("in range"));
    let mut group = c.benchmark_group("10 s at 6 kbit/s");
    group.throughput(Throughput::Elements(SECONDS as u64 * 50)).sample_size(10);
    for (name, networks, beam, frames) in [
        ("greedy, 500 ms bundles", Networks::Float, 1, 25u8),
        ("beam 4, 500 ms bundles", Networks::Float, 4, 25),
        ("beam 4, 100 ms bundles", Networks::Float, 4, 5),
        ("beam 4, 100 ms bundles, int8", Networks::Int8, 4, 5),
        ("beam 2, 100 ms bundles, int8", Networks::Int8, 2, 5),
        ("greedy, 20 ms bundles", Networks::Float, 1, 1),
        ("greedy, 20 ms bundles, int8", Networks::Int8, 1, 1),
    ] {
        let beam = BeamWidth::new(beam).expect("in range");
        let mut processor = model.processor_with(networks, beam).expect("networks");
        let bundles = codec::encode_all(&mut processor, &pcm, stages, frames).expect("encodes");
        group.bench_function(format!("encode, {name}"), |b| {
            b.iter(|| codec::encode_all(&mut processor, &pcm, stages, frames));
        });
        group.bench_function(format!("decode, {name}"), |b| b.iter(|| codec::decode_all(&mut processor, &bundles)));
        group.bench_function(format!("both, {name}"), |b| {
            b.iter(|| {
                let bundles = codec::encode_all(&mut processor, &pcm, stages, frames).expect("encodes");
                codec::decode_all(&mut processor, &bundles)
            });
        });
    }
    group.finish();
}

/// One frame of each of several streams through the engine, as they meet in the daemon.
fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine, one thread, one bundle of 5 frames of each stream");
    let all = [Networks::Float, Networks::Int8].into_iter().flat_map(|n| [1usize, 8, 16].map(|s| (n, s)));
    for (networks, streams) in all {
        let options =
            EngineOptions { threads: 1, slots: 64, max_batch: 16, gather: Duration::from_micros(500), pin: false };
        let (_, factory) = infer::load_processor_factory(None, networks).expect("the shipped model");
        let engine = Engine::start(&options, factory).expect("the engine starts");
        let handle = engine.handle();
        let slots: Vec<_> = (0..streams).map(|_| handle.admit().expect("room")).collect();
        let mut encoder = Encoder::new(handle.profile(), StageCount::new(12).expect("in range"), 5).expect("in range");
        encoder.set_job_frames(5);
        encoder.push(&signal());
        let first: EncodeJob = encoder.next_job().expect("enough samples");
        let mut jobs: Vec<EncodeJob> = vec![first; streams];
        group.throughput(Throughput::Elements(streams as u64 * 5));
        group.bench_function(format!("{streams} streams, {networks:?}"), |b| {
            b.iter(|| {
                let (tell, told) = mpsc::channel();
                for (slot, job) in slots.iter().zip(jobs.drain(..)) {
                    let tell = tell.clone();
                    let done = Box::new(move |r| {
                        let _ = tell.send(r);
                    });
                    slot.submit(job, Instant::now() + Duration::from_millis(20), done).expect("room");
                }
                drop(tell);
                jobs.extend(told.iter().filter_map(Result::ok));
                assert_eq!(jobs.len(), streams);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, stream, engine);
criterion_main!(benches);
