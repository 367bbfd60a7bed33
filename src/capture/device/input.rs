//! Capture: exactly 20 ms of samples every 20 ms of our clock, whatever the device does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rtrb::Consumer;

use super::care::Health;
use super::kept::{Kept, Opening};
use super::{Backend, DeviceError, DeviceStats, Link, Opened, Report, capture_ring};
use crate::dsp::{DriftController, VariableResampler};
use crate::profile::Profile;
use crate::units::{CODEC_RATE, SampleRate};

/// Samples at the codec's rate that every call gives.
const TICK_SAMPLES: usize = Profile::FRAME_SAMPLES;

/// And their length.
const TICK: Duration = Duration::from_millis(20);

/// Audio that waits in the ring: room for late callbacks. It is delay, too.
const TARGET_S: f64 = 0.08;

/// More than this is not worked off by resampling but dropped.
const EXCESS_S: f64 = 0.5;

/// Ticks that are made up for if the caller comes late; beyond, time is skipped.
const LATE: Duration = Duration::from_secs(1);

/// A microphone, or what stands in for it while it is away. Samples are mono at the codec's rate.
#[derive(Debug)]
pub struct DeviceInput {
    device: Kept<Microphone>,
    next_tick: Option<Instant>,
}

struct Microphone {
    health: Health,
    ring: Consumer<f32>,
    rate: SampleRate,
    resampler: VariableResampler,
    drift: DriftController,
    /// Whether the ring was full enough to start.
    primed: bool,
    block: Vec<f32>,
    _stream: Opened,
}

impl DeviceInput {
    /// Opens a device.
    ///
    /// # Errors
    /// [`DeviceError`] if that fails now; what fails later becomes silence and is told to `report`.
    pub fn open(name: &str, backend: Box<dyn Backend>, report: Report) -> Result<Self, DeviceError> {
        Ok(Self { device: Kept::open(name, backend, report)?, next_tick: None })
    }

    /// A device that need not be there yet: the first call of [`DeviceInput::read`] tries to open it.
    pub fn when_there(name: &str, backend: Box<dyn Backend>, report: Report) -> Self {
        Self { device: Kept::when_there(name, backend, report), next_tick: None }
    }

    /// What the device did so far.
    pub fn stats(&self) -> &Arc<DeviceStats> {
        &self.device.stats
    }

    /// Waits for the next 20 ms and appends them to `out`.
    pub fn read(&mut self, out: &mut Vec<f32>) {
        let mut now = Instant::now();
        let mut due = self.next_tick.unwrap_or(now);
        if due > now {
            std::thread::sleep(due - now);
            now = Instant::now();
        } else if now - due > LATE {
            due = now;
        }
        self.next_tick = Some(due + TICK);
        match self.device.look_after(now) {
            (Some(microphone), stats) => microphone.pull(stats, out),
            (None, _) => out.resize(out.len() + TICK_SAMPLES, 0.0),
        }
    }
}

impl Opening for Microphone {
    fn open(name: &str, backend: &mut dyn Backend, stats: &Arc<DeviceStats>) -> Result<Self, DeviceError> {
        let (link, mut ours) = (Arc::new(Link::default()), None);
        let stream = backend.open_input(name, &link, &mut |rate, channels| {
            let (callback, ring) = capture_ring(rate, channels, Arc::clone(&link), Arc::clone(stats));
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
            resampler: VariableResampler::fixed_output(rate, CODEC_RATE, TICK_SAMPLES),
            drift: DriftController::default(),
            primed: false,
            block: Vec::new(),
            _stream: stream,
        })
    }

    fn health(&mut self) -> &mut Health {
        &mut self.health
    }
}

impl Microphone {
    /// Seconds in the ring.
    fn fill_s(&self) -> f64 {
        self.ring.slots() as f64 / f64::from(self.rate.hz())
    }

    fn pull(&mut self, stats: &DeviceStats, out: &mut Vec<f32>) {
        let fill = self.fill_s();
        stats.measured(fill, self.drift.ppm());
        if fill > TARGET_S + EXCESS_S {
            let excess = self.ring.slots() - (TARGET_S * f64::from(self.rate.hz())) as usize;
            if let Ok(chunk) = self.ring.read_chunk(excess) {
                chunk.commit_all();
            }
            self.drift.jump();
            stats.overruns.fetch_add(1, Ordering::Relaxed);
        }
        if self.primed || fill >= TARGET_S {
            self.primed = true;
            let correction = self.drift.update(self.fill_s() - TARGET_S, TICK.as_secs_f64());
            self.resampler.correct(correction);
            self.block.resize(self.resampler.input_needed(), 0.0);
            if self.ring.pop_entire_slice(&mut self.block).is_ok() {
                self.resampler.process(&self.block, out);
                return;
            }
            self.primed = false;
            self.drift.jump();
            stats.underruns.fetch_add(1, Ordering::Relaxed);
        }
        out.resize(out.len() + TICK_SAMPLES, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::{CaptureCallback, DeviceEvent, MakeCapture, MakePlayback};
    use super::*;

    /// A device that works when told so.
    #[derive(Clone, Default)]
    struct Fake(Arc<Mutex<FakeState>>);

    #[derive(Default)]
    struct FakeState {
        refusals: usize,
        opened: usize,
        callback: Option<CaptureCallback>,
        link: Option<Arc<Link>>,
    }

    impl Backend for Fake {
        fn open_input(&mut self, name: &str, link: &Arc<Link>, make: MakeCapture<'_>) -> Result<Opened, DeviceError> {
            let mut state = self.0.lock().unwrap();
            if state.refusals > 0 {
                state.refusals -= 1;
                return Err(DeviceError::System { name: name.to_owned(), reason: "not plugged in".to_owned() });
            }
            state.opened += 1;
            state.callback = Some(make(SampleRate::new(48_000).unwrap(), 1));
            state.link = Some(Arc::clone(link));
            Ok(Box::new(()))
        }

        fn open_output(&mut self, name: &str, _: &Arc<Link>, _: MakePlayback<'_>) -> Result<Opened, DeviceError> {
            Err(DeviceError::Unknown { direction: "output", name: name.to_owned() })
        }
    }

    #[test]
    fn a_lost_device_is_silent_and_is_opened_again() {
        let fake = Fake::default();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let report: Report = Box::new(move |e| heard.lock().unwrap().push(e.clone()));
        let mut input = DeviceInput::open("mic", Box::new(fake.clone()), report).unwrap();
        // Twenty milliseconds of a constant, and what is read meanwhile.
        let step = |input: &mut DeviceInput| {
            if let Some(callback) = &mut fake.0.lock().unwrap().callback {
                callback.run(&[0.5f32; 960]);
            }
            let mut out = Vec::new();
            input.read(&mut out);
            assert_eq!(out.len(), 480);
            out[240]
        };
        let heard: Vec<f32> = (0..20).map(|_| step(&mut input)).collect();
        assert!(heard[0] == 0.0 && (heard[19] - 0.5).abs() < 0.01, "{heard:?}");
        assert!((input.stats().fill_s() - TARGET_S).abs() < 0.021);
        {
            let mut state = fake.0.lock().unwrap();
            state.refusals = 1;
            state.callback = None;
            state.link.take().unwrap().fail("unplugged".to_owned());
        }
        assert_eq!(step(&mut input), 0.0);
        assert!(!input.stats().is_open());
        let start = Instant::now();
        while !input.stats().is_open() {
            assert_eq!(step(&mut input), 0.0);
            assert!(start.elapsed() < Duration::from_secs(60), "never opened again");
        }
        assert!(start.elapsed() >= FIRST_PAUSES);
        let heard: Vec<f32> = (0..20).map(|_| step(&mut input)).collect();
        assert!((heard[19] - 0.5).abs() < 0.01, "{heard:?}");
        assert_eq!((input.stats().reopened(), fake.0.lock().unwrap().opened), (1, 2));
        let events = events.lock().unwrap();
        assert!(
            matches!(&events[..], [DeviceEvent::Lost(_), DeviceEvent::Failed(..), DeviceEvent::Opened]),
            "{events:?}"
        );
    }

    /// A quarter of a second, and after the refusal half a second; the clock was read a little after it started.
    const FIRST_PAUSES: Duration = Duration::from_millis(650);

    #[test]
    fn too_much_is_dropped_and_too_little_is_silence() {
        let fake = Fake::default();
        let mut input = DeviceInput::open("mic", Box::new(fake.clone()), Box::new(|_| {})).unwrap();
        fake.0.lock().unwrap().callback.as_mut().unwrap().run(&[0.5f32; 48_000]);
        let mut out = Vec::new();
        (0..3).for_each(|_| input.read(&mut out));
        assert_eq!((input.stats().overruns(), input.stats().underruns()), (1, 0));
        assert!((out[960] - 0.5).abs() < 0.01);
        (0..5).for_each(|_| input.read(&mut out));
        assert_eq!((out.len(), input.stats().underruns()), (8 * 480, 1));
        assert_eq!(out.last(), Some(&0.0));
    }
}
