//! What a device did, and what the system's threads tell about it.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a device did since it was first opened; read by anybody at any time.
#[derive(Debug, Default)]
pub struct DeviceStats {
    pub(super) open: AtomicBool,
    pub(super) fill_us: AtomicU64,
    pub(super) overruns: AtomicU64,
    pub(super) underruns: AtomicU64,
    pub(super) reopened: AtomicU64,
    pub(super) drift_ppb: AtomicI64,
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

    pub(super) fn measured(&self, fill_s: f64, ppm: f64) {
        self.fill_us.store((fill_s * 1e6) as u64, Ordering::Relaxed);
        self.drift_ppb.store((ppm * 1e3) as i64, Ordering::Relaxed);
    }
}

/// What the system's threads tell about one opened device. Only its error callback may lock.
#[derive(Debug, Default)]
pub struct Link {
    pub(super) calls: AtomicU64,
    pub(super) delay_us: AtomicU64,
    pub(super) failed: AtomicBool,
    pub(super) failure: Mutex<String>,
    pub(super) note: Mutex<Option<String>>,
    /// Nothing more comes for now: a ring that runs dry is no fault, and its rest is played whatever its length.
    pub(super) resting: AtomicBool,
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
