//! What becomes of a device: that it is lost is noticed here, and when it is tried again is decided.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::stats::Link;

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
