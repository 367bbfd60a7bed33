//! A device that is opened again whenever it is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::care::{BackOff, Health};
use super::{Backend, DeviceError, DeviceEvent, DeviceStats, Report};

/// An open device, whatever it does.
pub(super) trait Opening: Sized {
    fn open(name: &str, backend: &mut dyn Backend, stats: &Arc<DeviceStats>) -> Result<Self, DeviceError>;

    fn health(&mut self) -> &mut Health;
}

enum State<O> {
    Open(Box<O>),
    Lost(BackOff),
}

/// A device with all that it takes to open it again.
pub(super) struct Kept<O> {
    name: String,
    backend: Box<dyn Backend>,
    state: State<O>,
    was_open: bool,
    pub(super) stats: Arc<DeviceStats>,
    report: Report,
}

impl<O> std::fmt::Debug for Kept<O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("name", &self.name).field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl<O: Opening> Kept<O> {
    pub(super) fn open(name: &str, mut backend: Box<dyn Backend>, report: Report) -> Result<Self, DeviceError> {
        let stats = Arc::new(DeviceStats::default());
        let state = State::Open(Box::new(O::open(name, backend.as_mut(), &stats)?));
        Ok(Self { name: name.to_owned(), backend, state, was_open: true, stats, report })
    }

    /// One that the first look tries to open.
    pub(super) fn when_there(name: &str, backend: Box<dyn Backend>, report: Report) -> Self {
        let mut back_off = BackOff::new(Instant::now());
        back_off.at = Instant::now();
        let (state, stats) = (State::Lost(back_off), Arc::default());
        Self { name: name.to_owned(), backend, state, was_open: false, stats, report }
    }

    /// The device if it is open, and what it did.
    pub(super) fn now(&mut self) -> (Option<&mut O>, &DeviceStats) {
        match &mut self.state {
            State::Open(device) => (Some(device), &self.stats),
            State::Lost(_) => (None, &self.stats),
        }
    }

    /// Notices that the device is lost, and tries to get it back; gives what [`Kept::now`] does.
    pub(super) fn look_after(&mut self, now: Instant) -> (Option<&mut O>, &DeviceStats) {
        match &mut self.state {
            State::Open(device) => {
                let health = device.health();
                if let Some(note) = health.note() {
                    (self.report)(&DeviceEvent::Note(note));
                }
                if let Some(reason) = health.problem(now) {
                    self.stats.open.store(false, Ordering::Relaxed);
                    (self.report)(&DeviceEvent::Lost(reason));
                    self.state = State::Lost(BackOff::new(now));
                }
            }
            State::Lost(back_off) if now >= back_off.at => {
                match O::open(&self.name, self.backend.as_mut(), &self.stats) {
                    Ok(device) => {
                        self.stats.reopened.fetch_add(u64::from(self.was_open), Ordering::Relaxed);
                        self.was_open = true;
                        (self.report)(&DeviceEvent::Opened);
                        self.state = State::Open(Box::new(device));
                    }
                    Err(e) => {
                        let pause = back_off.failed(Instant::now());
                        (self.report)(&DeviceEvent::Failed(e.to_string(), pause));
                    }
                }
            }
            State::Lost(_) => {}
        }
        self.now()
    }
}
