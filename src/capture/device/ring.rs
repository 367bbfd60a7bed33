//! The lock-free ring between a device's callback and our side, and the callbacks themselves: they allocate nothing, lock
//! nothing and never wait (tests/realtime.rs runs them under an allocator that panics).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cpal::{FromSample, Sample};
use rtrb::{Consumer, Producer, RingBuffer};

use super::stats::{DeviceStats, Link};
use crate::dsp::usable_sample;
use crate::units::SampleRate;

/// Length of a ring in milliseconds of the device's clock: more than any callback, less than anybody would wait for.
const RING_MS: usize = 1_500;

/// What a capture device calls: mixes its channels down and puts the mean into the ring.
pub struct CaptureCallback {
    ring: Producer<f32>,
    channels: usize,
    link: Arc<Link>,
    stats: Arc<DeviceStats>,
}

/// What a playback device calls: takes from the ring and gives the same to every channel, silence if there is nothing.
pub struct PlaybackCallback {
    ring: Consumer<f32>,
    channels: usize,
    /// Samples that must wait before playing starts, so that the first late bundle does not stop it again.
    prime: usize,
    playing: bool,
    link: Arc<Link>,
    stats: Arc<DeviceStats>,
}

impl std::fmt::Debug for CaptureCallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureCallback").field("channels", &self.channels).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PlaybackCallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlaybackCallback").field("channels", &self.channels).finish_non_exhaustive()
    }
}

/// Samples of a ring at this rate.
fn length(rate: SampleRate) -> usize {
    rate.hz() as usize * RING_MS / 1_000
}

/// A ring that a capture device fills; our side is the consumer.
pub fn capture_ring(
    rate: SampleRate,
    channels: u16,
    link: Arc<Link>,
    stats: Arc<DeviceStats>,
) -> (CaptureCallback, Consumer<f32>) {
    let (producer, consumer) = RingBuffer::new(length(rate));
    (CaptureCallback { ring: producer, channels: usize::from(channels).max(1), link, stats }, consumer)
}

/// A ring that a playback device empties; our side is the producer. Playing starts when `prime` samples wait.
pub fn playback_ring(
    rate: SampleRate,
    channels: u16,
    prime: usize,
    link: Arc<Link>,
    stats: Arc<DeviceStats>,
) -> (Producer<f32>, PlaybackCallback) {
    let (producer, consumer) = RingBuffer::new(length(rate));
    let channels = usize::from(channels).max(1);
    (producer, PlaybackCallback { ring: consumer, channels, prime, playing: false, link, stats })
}

impl CaptureCallback {
    /// The body of the callback. Samples that find no room are dropped and counted; values that cannot be used become 0.
    pub fn run<T>(&mut self, interleaved: &[T])
    where
        T: Sample,
        f32: FromSample<T>,
    {
        let frames = interleaved.len() / self.channels;
        let taken = frames.min(self.ring.slots());
        let scale = 1.0 / self.channels as f32;
        if let Ok(chunk) = self.ring.write_chunk_uninit(taken) {
            chunk.fill_from_iter(interleaved.chunks_exact(self.channels).map(|channels| {
                channels.iter().map(|&s| usable_sample(f32::from_sample(s)).unwrap_or(0.0)).sum::<f32>() * scale
            }));
        }
        if taken < frames {
            self.stats.overruns.fetch_add(1, Ordering::Relaxed);
        }
        self.link.calls.fetch_add(1, Ordering::Relaxed);
    }
}

impl PlaybackCallback {
    /// The body of the callback.
    pub fn run<T>(&mut self, interleaved: &mut [T])
    where
        T: Sample + FromSample<f32>,
    {
        let waiting = self.ring.slots();
        let resting = self.link.resting.load(Ordering::Relaxed);
        self.playing = self.playing || resting || waiting >= self.prime;
        let frames = interleaved.len() / self.channels;
        let taken = if self.playing { waiting.min(frames) } else { 0 };
        let (now, rest) = interleaved.split_at_mut(taken * self.channels);
        if let Ok(chunk) = self.ring.read_chunk(taken) {
            for (out, sample) in now.chunks_exact_mut(self.channels).zip(chunk) {
                out.fill(T::from_sample(sample));
            }
        }
        rest.fill(T::EQUILIBRIUM);
        if self.playing && taken < frames {
            self.playing = false;
            if !resting {
                self.stats.underruns.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.link.calls.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> (SampleRate, Arc<Link>, Arc<DeviceStats>) {
        (SampleRate::new(8_000).unwrap(), Arc::default(), Arc::default())
    }

    #[test]
    fn capture_mixes_down_and_drops_what_finds_no_room() {
        let (rate, link, stats) = parts();
        let (mut callback, mut ring) = capture_ring(rate, 2, link, Arc::clone(&stats));
        callback.run(&[0.5f32, 0.25, f32::NAN, 0.0]);
        callback.run(&[i16::MIN, i16::MIN, 7]);
        assert_eq!([ring.pop(), ring.pop(), ring.pop()], [Ok(0.375), Ok(0.0), Ok(-1.0)]);
        assert!(ring.pop().is_err());
        callback.run(&vec![0.1f32; 2 * 12_000]);
        assert_eq!(stats.overruns(), 0);
        callback.run(&[0.1f32; 4]);
        assert_eq!((ring.slots(), stats.overruns()), (12_000, 1));
    }

    #[test]
    fn playback_waits_for_a_reserve_and_counts_when_it_runs_dry() {
        let (rate, link, stats) = parts();
        let (mut ring, mut callback) = playback_ring(rate, 2, 3, Arc::clone(&link), Arc::clone(&stats));
        let mut out = [9.0f32; 8];
        let mut put = |values: &[f32]| values.iter().for_each(|&v| ring.push(v).unwrap());
        put(&[0.1, 0.2]);
        callback.run(&mut out);
        assert_eq!((out, stats.underruns()), ([0.0; 8], 0));
        put(&[0.3]);
        callback.run(&mut out);
        assert_eq!((out, stats.underruns()), ([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.0, 0.0], 1));
        put(&[0.4]);
        callback.run(&mut out);
        assert_eq!(out, [0.0; 8], "a new reserve first");
        // The end of a stream is played whatever its length, and is no fault.
        link.resting.store(true, Ordering::Relaxed);
        let mut out = [1i16; 4];
        callback.run(&mut out);
        assert_eq!((out[0] / 100, out[1] / 100, out[2], stats.underruns()), (131, 131, 0, 1));
    }
}
