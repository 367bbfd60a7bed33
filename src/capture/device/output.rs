//! Playback: samples as they come become sound at the device's own pace.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rtrb::Producer;

use super::care::Health;
use super::kept::{Kept, Opening};
use super::{Backend, DeviceError, DeviceStats, Link, Opened, Report, playback_ring};
use crate::dsp::{DriftController, VariableResampler};
use crate::profile::Profile;
use crate::units::{CODEC_RATE, SampleRate};

/// Samples at the codec's rate that are resampled at a time.
const BLOCK: usize = Profile::FRAME_SAMPLES;

/// Audio that waits in the ring, on average: bundles come at once and the network is not punctual. It is delay, too.
const TARGET_S: f64 = 0.2;

/// More than this is not worked off by resampling: what comes is dropped until twice the target waits.
const EXCESS_S: f64 = 1.0;

/// Longest wait for the last samples to be heard.
const LAST: Duration = Duration::from_secs(5);

/// How often the rest is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// A loudspeaker. Samples are mono at the codec's rate; while the device is away they are dropped.
#[derive(Debug)]
pub struct DeviceOutput {
    device: Kept<Loudspeaker>,
    pending: Vec<f32>,
}

struct Loudspeaker {
    health: Health,
    ring: Producer<f32>,
    rate: SampleRate,
    resampler: VariableResampler,
    drift: DriftController,
    dropping: bool,
    block: Vec<f32>,
    _stream: Opened,
}

impl DeviceOutput {
    /// Opens a device.
    ///
    /// # Errors
    /// [`DeviceError`] if that fails now; what fails later is told to `report`.
    pub fn open(name: &str, backend: Box<dyn Backend>, report: Report) -> Result<Self, DeviceError> {
        Ok(Self { device: Kept::open(name, backend, report)?, pending: Vec::new() })
    }

    /// A device that need not be there yet: the first samples try to open it.
    pub fn when_there(name: &str, backend: Box<dyn Backend>, report: Report) -> Self {
        Self { device: Kept::when_there(name, backend, report), pending: Vec::new() }
    }

    /// What the device did so far.
    pub fn stats(&self) -> &Arc<DeviceStats> {
        &self.device.stats
    }

    /// Queues samples to be heard. Does not wait, except for a lost device that is opened again.
    pub fn write(&mut self, pcm: &[f32]) {
        let (Some(open), stats) = self.device.look_after(Instant::now()) else {
            self.pending.clear();
            return;
        };
        open.health.link.resting.store(false, Ordering::Relaxed);
        self.pending.extend_from_slice(pcm);
        let whole = self.pending.len() / BLOCK * BLOCK;
        self.pending[..whole].chunks_exact(BLOCK).for_each(|block| open.push(block, stats));
        self.pending.drain(..whole);
    }

    /// Nothing comes for now: what is queued is played to its end, and running dry is no fault.
    pub fn rest(&mut self) {
        if let (Some(open), stats) = self.device.now() {
            if !self.pending.is_empty() {
                self.pending.resize(BLOCK, 0.0);
                open.push(&self.pending, stats);
            }
            open.health.link.resting.store(true, Ordering::Relaxed);
        }
        self.pending.clear();
    }

    /// Waits until everything has been heard (at most some seconds) and closes the device.
    pub fn finish(mut self) {
        self.rest();
        let (Some(open), _) = self.device.now() else { return };
        let end = Instant::now() + LAST;
        let room = open.ring.buffer().capacity();
        while open.ring.slots() < room && Instant::now() < end && open.health.problem(Instant::now()).is_none() {
            std::thread::sleep(LOOK);
        }
        // What left the ring is still on its way to the ear.
        let delay = Duration::from_micros(open.health.link.delay_us.load(Ordering::Relaxed));
        std::thread::sleep(delay.min(end.saturating_duration_since(Instant::now())));
    }
}

impl Opening for Loudspeaker {
    fn open(name: &str, backend: &mut dyn Backend, stats: &Arc<DeviceStats>) -> Result<Self, DeviceError> {
        let (link, mut ours) = (Arc::new(Link::default()), None);
        // Nothing has come yet, so a ring without samples is no fault.
        link.resting.store(true, Ordering::Relaxed);
        let stream = backend.open_output(name, &link, &mut |rate, channels| {
            let prime = (TARGET_S * f64::from(rate.hz())) as usize;
            let (ring, callback) = playback_ring(rate, channels, prime, Arc::clone(&link), Arc::clone(stats));
            ours = Some((rate, ring));
            callback
        })?;
        let Some((rate, ring)) = ours else {
            return Err(DeviceError::System { name: name.to_owned(), reason: "opened without a callback".to_owned() });
        };
        stats.open.store(true, Ordering::Relaxed);
        Ok(Self {
            health: Health::new(link),
            ring,
            rate,
            resampler: VariableResampler::fixed_input(CODEC_RATE, rate, BLOCK),
            drift: DriftController::default(),
            dropping: false,
            block: Vec::new(),
            _stream: stream,
        })
    }

    fn health(&mut self) -> &mut Health {
        &mut self.health
    }
}

impl Loudspeaker {
    /// Seconds in the ring.
    fn fill_s(&self) -> f64 {
        (self.ring.buffer().capacity() - self.ring.slots()) as f64 / f64::from(self.rate.hz())
    }

    fn push(&mut self, pcm: &[f32], stats: &DeviceStats) {
        let fill = self.fill_s();
        stats.measured(fill, self.drift.ppm());
        if fill > TARGET_S + EXCESS_S && !self.dropping {
            stats.overruns.fetch_add(1, Ordering::Relaxed);
            self.dropping = true;
        }
        if self.dropping && fill > 2.0 * TARGET_S {
            return;
        }
        if self.dropping {
            self.drift.jump();
            self.dropping = false;
        }
        // The blocks of a bundle are measured as they come, all at once: their mean is close to the mean over time.
        let correction = self.drift.update(fill - TARGET_S, BLOCK as f64 / f64::from(CODEC_RATE.hz()));
        self.resampler.correct(correction);
        self.block.clear();
        self.resampler.process(pcm, &mut self.block);
        if self.ring.push_entire_slice(&self.block).is_err() {
            stats.overruns.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::{MakeCapture, MakePlayback, PlaybackCallback};
    use super::*;

    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<Option<Plugged>>>);

    type Plugged = (PlaybackCallback, Arc<Link>);

    impl Backend for Fake {
        fn open_input(&mut self, name: &str, _: &Arc<Link>, _: MakeCapture<'_>) -> Result<Opened, DeviceError> {
            Err(DeviceError::Unknown { direction: "input", name: name.to_owned() })
        }

        fn open_output(&mut self, _: &str, link: &Arc<Link>, make: MakePlayback<'_>) -> Result<Opened, DeviceError> {
            *self.0.lock().unwrap() = Some((make(SampleRate::new(48_000).unwrap(), 1), Arc::clone(link)));
            Ok(Box::new(()))
        }
    }

    impl Fake {
        fn play(&self, samples: usize) -> Vec<f32> {
            let mut out = vec![9.0f32; samples];
            self.0.lock().unwrap().as_mut().unwrap().0.run(&mut out);
            out
        }
    }

    #[test]
    fn a_device_with_another_clock_is_followed() {
        let fake = Fake::default();
        let mut output = DeviceOutput::open("speaker", Box::new(fake.clone()), Box::new(|_| {})).unwrap();
        // Two hundred ppm slow: 48 000 samples last 1.0002 s; bundles of 100 ms come by the right clock.
        let (bundle, mut owed, mut heard) = (vec![0.25; 2_400], 0.0, 0);
        for n in 0..4_000 {
            output.write(&bundle);
            owed += 4_800.0 * (1.0 - 200e-6);
            let now = owed as usize;
            owed -= now as f64;
            let out = fake.play(now);
            if n > 20 {
                heard += out.iter().filter(|v| **v > 0.2).count();
                assert!(out.iter().all(|v| (v - 0.25).abs() < 0.01), "bundle {n}");
            }
        }
        assert!(heard > 3_900 * 4_790);
        let stats = output.stats();
        assert!((stats.drift_ppm() - 200.0).abs() < 20.0, "{} ppm", stats.drift_ppm());
        assert_eq!((stats.underruns(), stats.overruns()), (0, 0));
        assert!(stats.fill_s() < 0.5);
    }

    #[test]
    fn the_end_is_heard_whole_and_a_flood_is_dropped() {
        let fake = Fake::default();
        let mut output = DeviceOutput::open("speaker", Box::new(fake.clone()), Box::new(|_| {})).unwrap();
        output.write(&[0.25; 1_000]);
        assert_eq!(fake.play(960)[500], 0.0, "not enough to start");
        output.rest();
        let heard = fake.play(4_000);
        let loud = heard.iter().filter(|v| **v > 0.2).count();
        assert!((1_980..2_020).contains(&loud), "{loud}");
        assert_eq!(output.stats().underruns(), 0);
        (0..40).for_each(|_| output.write(&[0.25; 2_400]));
        assert_eq!(output.stats().overruns(), 1);
        assert!(output.stats().fill_s() < 1.3);
        (0..45).for_each(|_| {
            fake.play(960);
        });
        output.write(&[0.25; 2_400]);
        assert_eq!((output.stats().overruns(), output.stats().underruns()), (1, 0));
        // Lost: samples are dropped, nothing waits for the device.
        fake.0.lock().unwrap().as_ref().unwrap().1.fail("unplugged".to_owned());
        output.write(&[0.25; 2_400]);
        assert!(!output.stats().is_open());
        output.finish();
    }
}
