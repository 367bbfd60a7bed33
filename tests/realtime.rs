//! The audio callbacks run under an allocator that notices every call: in the system's audio thread nothing may be allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use undertone::capture::device::{DeviceStats, Link, capture_ring, playback_ring};
use undertone::units::SampleRate;

thread_local! {
    static FORBIDDEN: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

struct Guard;

/// Counts rather than panics: an allocator must not unwind.
fn check() {
    if FORBIDDEN.try_with(Cell::get).unwrap_or(false) {
        let _ = CALLS.try_with(|c| c.set(c.get() + 1));
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Guard {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promise is ours.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's promise is ours.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static GUARD: Guard = Guard;

/// Panics if the work allocates or frees memory.
fn without_memory<T>(work: impl FnOnce() -> T) -> T {
    CALLS.set(0);
    FORBIDDEN.set(true);
    let result = work();
    FORBIDDEN.set(false);
    assert_eq!(CALLS.get(), 0, "calls of the allocator");
    result
}

#[test]
fn the_guard_works() {
    assert!(std::panic::catch_unwind(|| without_memory(|| vec![1u8; 100].len())).is_err());
}

#[test]
fn callbacks_allocate_nothing_whatever_the_ring_holds() {
    let (rate, stats) = (SampleRate::new(48_000).unwrap(), Arc::new(DeviceStats::default()));
    let link = Arc::new(Link::default());
    let (mut capture, mut heard) = capture_ring(rate, 2, Arc::clone(&link), Arc::clone(&stats));
    let (mut said, mut playback) = playback_ring(rate, 2, 960, link, Arc::clone(&stats));
    let (floats, shorts) = (vec![0.1f32; 1_920], vec![7i16; 1_920]);
    let (mut float_out, mut short_out) = (vec![0f32; 1_920], vec![0i16; 1_920]);
    // 200 pieces of 20 ms are more than the ring holds; every second one is taken out.
    for n in 0..200 {
        without_memory(|| {
            capture.run(&floats);
            capture.run(&shorts);
        });
        if n % 2 == 0 {
            while heard.pop().is_ok() {}
            (0..1_000).for_each(|_| said.push(0.5).unwrap_or(()));
        } else if n > 100 {
            (0..1_000).for_each(|_| {
                let _ = heard.pop();
            });
        }
        without_memory(|| {
            playback.run(&mut float_out);
            playback.run(&mut short_out);
        });
    }
    assert!(stats.underruns() > 0);
    // And a full ring.
    (0..80).for_each(|_| without_memory(|| capture.run(&floats)));
    assert!(stats.overruns() > 0);
}
