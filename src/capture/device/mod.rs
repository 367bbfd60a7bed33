//! Sound devices: microphones in, loudspeakers out.
//!
//! The device's callback runs in a thread of the system's and only moves samples through a lock-free ring ([`CaptureCallback`],
//! [`PlaybackCallback`]). The other end of the ring belongs to whoever calls [`DeviceInput::read`] or
//! [`DeviceOutput::write`]: there the clocks are compared and corrected, a device that vanished is replaced by silence,
//! and reopened with growing pauses.

mod host;
mod input;
mod output;
mod ring;

pub use host::{CpalBackend, DeviceInfo, list};
pub use input::DeviceInput;
pub use output::DeviceOutput;
pub use ring::{CaptureCallback, PlaybackCallback, capture_ring, playback_ring};

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::units::SampleRate;

/// Name that stands for the system's default device.
pub const DEFAULT: &str = "default";

/// Length of a ring in milliseconds of the device's clock: more than any callback, less than anybody would wait for.
const RING_MS: usize = 1_500;

/// Pause before a lost device is opened again; it doubles with every failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A device whose callback was not called for so long is taken for lost, whatever it says.
const STALLED: Duration = Duration::from_secs(3);

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No device has that name.
    #[error("no {direction} device is called {name:?}; `undertone devices` lists them")]
    Unknown {
        /// `input` or `output`.
        direction: &'static str,
        /// The name.
        name: String,
    },
    /// The sound system refused.
    #[error("{name}: {reason}")]
    System {
        /// The device or sound system.
        name: String,
        /// What it said.
        reason: String,
    },
}

/// What happened to a device, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// It stopped; silence takes its place.
    Lost(String),
    /// It could not be opened and will be tried again after the pause.
    Failed(String, Duration),
    /// It is open, for the first time or again.
    Opened,
    /// Something that does not stop it.
    Note(String),
}

impl std::fmt::Display for DeviceEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lost(reason) => write!(f, "lost ({reason}); silence until it is back"),
            Self::Failed(reason, pause) => write!(f, "cannot be opened ({reason}); tried again in {pause:?}"),
            Self::Opened => write!(f, "open"),
            Self::Note(text) => write!(f, "{text}"),
        }
    }
}

/// Who is told what happened to a device.
pub type Report = Box<dyn FnMut(&DeviceEvent) + Send>;

/// What a device did since it was first opened; read by anybody at any time.
#[derive(Debug, Default)]
pub struct DeviceStats {
    open: AtomicBool,
    fill_us: AtomicU64,
    overruns: AtomicU64,
    underruns: AtomicU64,
    reopened: AtomicU64,
    drift_ppb: AtomicI64,
}

impl DeviceStats {
    /// Whether the device is open.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Audio in the ring, in seconds.
    pub fn fill_s(&self) -> f64 {
        self.fill_us.load(Ordering::Relaxed) as f64 * 1e-6
    }

    /// How often samples were dropped because the ring was too full.
    pub fn overruns(&self) -> u64 {
        self.overruns.load(Ordering::Relaxed)
    }

    /// How often silence took the place of samples because the ring had too few.
    pub fn underruns(&self) -> u64 {
        self.underruns.load(Ordering::Relaxed)
    }

    /// How often the device was opened again after it was lost.
    pub fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }

    /// How much faster the ring's writer is than its reader, in parts per million.
    pub fn drift_ppm(&self) -> f64 {
        self.drift_ppb.load(Ordering::Relaxed) as f64 * 1e-3
    }

    fn measured(&self, fill_s: f64, ppm: f64) {
        self.fill_us.store((fill_s * 1e6) as u64, Ordering::Relaxed);
        self.drift_ppb.store((ppm * 1e3) as i64, Ordering::Relaxed);
    }
}

/// What the system's threads tell about one opened device. Only its error callback may lock.
#[derive(Debug, Default)]
pub struct Link {
    calls: AtomicU64,
    delay_us: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<String>,
    note: Mutex<Option<String>>,
    /// Nothing more comes for now: a ring that runs dry is no fault, and its rest is played whatever its length.
    resting: AtomicBool,
}

impl Link {
    /// The device is gone.
    pub fn fail(&self, reason: String) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = reason;
        self.failed.store(true, Ordering::Release);
    }

    /// Something people should know.
    pub fn note(&self, text: String) {
        *self.note.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// How far the device plays behind its callback.
    pub fn set_delay(&self, delay: Duration) {
        self.delay_us.store(delay.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// An open device; dropping it closes it.
pub type Opened = Box<dyn Send>;

/// Makes the callback once rate and channels are known.
pub type MakeCapture<'a> = &'a mut dyn FnMut(SampleRate, u16) -> CaptureCallback;

/// Makes the callback once rate and channels are known.
pub type MakePlayback<'a> = &'a mut dyn FnMut(SampleRate, u16) -> PlaybackCallback;

/// A sound system: the machine's ([`CpalBackend`]), or a test's.
pub trait Backend: Send {
    /// Opens a device and lets it call the callback from now on; failures are told to `link`.
    ///
    /// Errors: [`DeviceError`].
    fn open_input(&mut self, name: &str, link: &Arc<Link>, make: MakeCapture<'_>) -> Result<Opened, DeviceError>;

    /// Opens a device and lets it call the callback from now on; failures are told to `link`.
    ///
    /// Errors: [`DeviceError`].
    fn open_output(&mut self, name: &str, link: &Arc<Link>, make: MakePlayback<'_>) -> Result<Opened, DeviceError>;
}

/// Whether an open device still works.
struct Health {
    link: Arc<Link>,
    calls: u64,
    called_at: Instant,
}

impl Health {
    fn new(link: Arc<Link>) -> Self {
        Self { link, calls: 0, called_at: Instant::now() }
    }

    /// Why the device is lost, if it is.
    fn problem(&mut self, now: Instant) -> Option<String> {
        if self.link.failed.load(Ordering::Acquire) {
            return Some(self.link.failure.lock().unwrap_or_else(PoisonError::into_inner).clone());
        }
        let calls = self.link.calls.load(Ordering::Relaxed);
        if calls != self.calls {
            (self.calls, self.called_at) = (calls, now);
        }
        (now.duration_since(self.called_at) > STALLED).then(|| format!("it did nothing for {STALLED:?}"))
    }

    fn note(&self) -> Option<String> {
        self.link.note.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether a device is there.
enum State<O> {
    Open(Box<O>),
    Lost(BackOff),
}

/// What looking after a device changes besides its state.
struct Care<'a> {
    stats: &'a DeviceStats,
    was_open: &'a mut bool,
    report: &'a mut Report,
}

impl<O> State<O> {
    /// Notices that the device is lost, and tries to get it back.
    fn look_after(
        &mut self,
        now: Instant,
        care: Care<'_>,
        health: impl Fn(&mut O) -> &mut Health,
        open: impl FnOnce() -> Result<O, DeviceError>,
    ) {
        match self {
            Self::Open(device) => {
                let health = health(device);
                if let Some(note) = health.note() {
                    (care.report)(&DeviceEvent::Note(note));
                }
                if let Some(reason) = health.problem(now) {
                    care.stats.open.store(false, Ordering::Relaxed);
                    (care.report)(&DeviceEvent::Lost(reason));
                    *self = Self::Lost(BackOff::new(now));
                }
            }
            Self::Lost(back_off) if now >= back_off.at => match open() {
                Ok(device) => {
                    care.stats.reopened.fetch_add(u64::from(*care.was_open), Ordering::Relaxed);
                    *care.was_open = true;
                    (care.report)(&DeviceEvent::Opened);
                    *self = Self::Open(Box::new(device));
                }
                Err(e) => {
                    let pause = back_off.failed(Instant::now());
                    (care.report)(&DeviceEvent::Failed(e.to_string(), pause));
                }
            },
            Self::Lost(_) => {}
        }
    }
}

/// When a lost device is tried again.
struct BackOff {
    at: Instant,
    pause: Duration,
}

impl BackOff {
    fn new(now: Instant) -> Self {
        Self { at: now + FIRST_PAUSE, pause: FIRST_PAUSE }
    }

    /// After another failure; returns the pause.
    fn failed(&mut self, now: Instant) -> Duration {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.at = now + self.pause;
        self.pause
    }
}
