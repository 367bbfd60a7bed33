//! The laws of the codec, with the fake networks: chunking, streaming, delay, batches, allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::prelude::*;
use undertone::bitstream::Bundle;
use undertone::codec::{self, CodecError, Decoder, Encoder, Processor};
use undertone::fake;
use undertone::units::StageCount;

/// Counts allocations of this thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches only a thread-local number.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises about `layout` are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, that is from the system allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn stages(n: u8) -> StageCount {
    StageCount::new(n).unwrap()
}

fn signal(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.031).sin() * 0.4 + (i as f32 * 0.0007).cos() * 0.2).collect()
}

fn step(encoder: &mut Encoder, processor: &mut Processor, out: &mut Vec<Bundle>) {
    out.extend(std::iter::from_fn(|| processor.encode(encoder).unwrap()));
}

fn encode_chunked(pcm: &[f32], sizes: &[usize], frames: u8, job_frames: usize) -> Vec<Bundle> {
    let mut processor = fake::processor(16, 1);
    let mut encoder = Encoder::new(processor.profile(), stages(6), frames).unwrap();
    encoder.set_job_frames(job_frames);
    let (mut out, mut at, mut i) = (Vec::new(), 0, 0);
    while at < pcm.len() {
        let n = sizes[i % sizes.len()].min(pcm.len() - at);
        encoder.push(&pcm[at..at + n]);
        step(&mut encoder, &mut processor, &mut out);
        at += n;
        i += 1;
    }
    encoder.finish();
    step(&mut encoder, &mut processor, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn chunks_and_jobs_do_not_matter(
        n in 1usize..12_000, sizes in prop::collection::vec(1usize..3_000, 1..5), frames in 1u8..=50, job in 1usize..60,
    ) {
        let pcm = signal(n);
        let whole = encode_chunked(&pcm, &[n], frames, 1);
        prop_assert_eq!(&encode_chunked(&pcm, &sizes, frames, job), &whole);
        let total: u64 = whole.iter().map(|b| u64::from(b.frames)).sum();
        prop_assert_eq!(total, (n as u64 + 240).div_ceil(480));
    }

    #[test]
    fn a_row_of_a_batch_is_the_row_alone(rows in 2usize..6, seed in any::<u64>()) {
        let mut processor = fake::processor(16, seed);
        let mut encoders: Vec<_> = (0..rows)
            .map(|i| {
                let mut e = Encoder::new(processor.profile(), stages(4), 5).unwrap();
                // Different lengths, so that jobs of different sizes meet in a batch.
                e.set_job_frames(1 + i % 3);
                e.push(&signal(4_800)[i * 100..]);
                e
            })
            .collect();
        let mut jobs: Vec<_> = encoders.iter_mut().map(|e| e.next_job().unwrap()).collect();
        let mut alone = jobs.clone();
        processor.run_encode(&mut jobs).unwrap();
        alone.iter_mut().for_each(|j| processor.run_encode(std::slice::from_mut(j)).unwrap());
        for job in &jobs {
            prop_assert!(alone.contains(job));
        }
    }
}

#[test]
fn the_declared_delay_is_the_measured_one() {
    let mut processor = fake::processor(16, 3);
    let profile = processor.profile();
    // A step is found where the decoded signal crosses half its height.
    let at = 4_803;
    let pcm: Vec<f32> = (0..9_600).map(|n| if n >= at { 0.5 } else { 0.0 }).collect();
    let bundles = codec::encode_all(&mut processor, &pcm, profile.stages, 1).unwrap();
    let decoded = codec::decode_all(&mut processor, &bundles).unwrap();
    let crossed = decoded.iter().position(|&x| x > 0.25).unwrap();
    let measured = crossed + profile.frame_samples - at;
    // The fake network's steps are ten samples long.
    assert!(measured.abs_diff(profile.delay_samples) < 10, "{measured}, declared {}", profile.delay_samples);
}

#[test]
fn a_late_joiner_hears_what_the_others_hear() {
    let mut processor = fake::processor(16, 3);
    let bundles = codec::encode_all(&mut processor, &signal(24_000), stages(8), 5).unwrap();
    let all = codec::decode_all(&mut processor, &bundles).unwrap();
    let late = codec::decode_all(&mut processor, &bundles[3..]).unwrap();
    // The fake decoder remembers one overlap.
    assert_eq!(late[240..], all[15 * 480 + 240..]);
}

#[test]
fn a_gap_becomes_silence_of_its_length_and_duplicates_are_dropped() {
    let mut processor = fake::processor(16, 3);
    let mut bundles = codec::encode_all(&mut processor, &signal(24_000), stages(8), 5).unwrap();
    let whole = codec::decode_all(&mut processor, &bundles).unwrap();
    let lost = bundles.remove(4);
    let with_gap = codec::decode_all(&mut processor, &bundles).unwrap();
    assert_eq!(with_gap.len(), whole.len());
    assert_eq!(with_gap[..20 * 480], whole[..20 * 480]);
    assert!(with_gap[20 * 480..25 * 480].iter().all(|&x| x == 0.0));
    let mut decoder = Decoder::new(processor.profile());
    decoder.push(bundles[5].clone()).unwrap();
    decoder.push(lost).unwrap();
    assert!(decoder.next_job().is_some_and(|j| j.first_frame == bundles[5].first_frame));
    assert!(decoder.next_job().is_none());
}

#[test]
fn samples_that_are_no_numbers_are_silence() {
    let mut pcm = signal(2_400);
    let mut clean = pcm.clone();
    for (i, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().enumerate() {
        pcm[500 + i] = bad;
        clean[500 + i] = 0.0;
    }
    pcm[600] = 17.0;
    clean[600] = 1.0;
    assert_eq!(encode_chunked(&pcm, &[999], 5, 1), encode_chunked(&clean, &[999], 5, 1));
}

#[test]
fn nothing_in_gives_nothing_out() {
    assert_eq!(encode_chunked(&[], &[1], 5, 1), []);
}

#[test]
fn what_a_model_cannot_decode_is_refused() {
    let profile = fake::processor(4, 1).profile();
    assert_eq!(Encoder::new(profile.clone(), stages(4), 51).unwrap_err(), CodecError::FramesPerBundle(51));
    assert!(matches!(Encoder::new(profile.clone(), stages(5), 5), Err(CodecError::Stages { got: 5, max: 4, .. })));
    let mut decoder = Decoder::new(profile);
    let good = Bundle { first_frame: 0, frames: 1, stages: stages(2), codes: vec![0, 255] };
    assert!(decoder.push(Bundle { codes: vec![0, 256], ..good.clone() }).is_err());
    assert!(decoder.push(Bundle { codes: vec![0], ..good.clone() }).is_err());
    assert!(decoder.push(Bundle { first_frame: u64::MAX, ..good.clone() }).is_err());
    assert!((0..64).all(|n| decoder.push(Bundle { first_frame: n, ..good.clone() }).is_ok()));
    assert!(decoder.push(Bundle { first_frame: 64, ..good }).unwrap_err().to_string().contains("64"));
}

#[test]
fn steady_encoding_allocates_nothing() {
    let mut processor = fake::processor(16, 1);
    let mut encoder = Encoder::new(processor.profile(), stages(12), 5).unwrap();
    let pcm = signal(48_000);
    let mut bundle = Bundle { first_frame: 0, frames: 0, stages: stages(12), codes: Vec::new() };
    let mut taken = 0;
    let mut second = |encoder: &mut Encoder| {
        let before = ALLOCATIONS.with(Cell::get);
        for chunk in pcm.chunks(480) {
            encoder.push(chunk);
            while let Some(mut job) = encoder.next_job() {
                processor.run_encode(std::slice::from_mut(&mut job)).unwrap();
                encoder.accept(job);
                taken += u64::from(encoder.next_bundle_into(&mut bundle));
            }
        }
        ALLOCATIONS.with(Cell::get) - before
    };
    second(&mut encoder);
    assert_eq!(second(&mut encoder), 0);
    assert_eq!(taken, 40);
}
