//! Looking after a device: noticing that it is lost, and getting it back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::stats::{DeviceStats, Link};

/// Pause before a lost device is opened again; it doubles with every failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// A device whose callback was not called for so long is taken for lost, whatever it says.
const STALLED: Duration = Duration::from_secs(3);

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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

/// Whether an open device still works.
pub(super) struct Health {
    pub(super) link: Arc<Link>,
    pub(super) calls: u64,
    pub(super) called_at: Instant,
}

impl Health {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self { link, calls: 0, called_at: Instant::now() }
    }

    /// Why the device is lost, if it is.
    pub(super) fn problem(&mut self, now: Instant) -> Option<String> {
        if self.link.failed.load(Ordering::Acquire) {
            return Some(self.link.failure.lock().unwrap_or_else(PoisonError::into_inner).clone());
        }
        let calls = self.link.calls.load(Ordering::Relaxed);
        if calls != self.calls {
            (self.calls, self.called_at) = (calls, now);
        }
        (now.duration_since(self.called_at) > STALLED).then(|| format!("it did nothing for {STALLED:?}"))
    }

    pub(super) fn note(&self) -> Option<String> {
        self.link.note.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether a device is there.
pub(super) enum State<O> {
    Open(Box<O>),
    Lost(BackOff),
}

/// What looking after a device changes besides its state.
pub(super) struct Care<'a> {
    pub(super) stats: &'a DeviceStats,
    pub(super) was_open: &'a mut bool,
    pub(super) report: &'a mut Report,
}

impl<O> State<O> {
    /// Notices that the device is lost, and tries to get it back.
    pub(super) fn look_after(
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
pub(super) struct BackOff {
    pub(super) at: Instant,
    pub(super) pause: Duration,
}

impl BackOff {
    pub(super) fn new(now: Instant) -> Self {
        Self { at: now + FIRST_PAUSE, pause: FIRST_PAUSE }
    }

    /// After another failure; returns the pause.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.at = now + self.pause;
        self.pause
    }
}
