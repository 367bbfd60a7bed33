//! Sound devices: microphones in, loudspeakers out.
//!
//! The device's callback runs in a thread of the system's and only moves samples through a lock-free ring ([`CaptureCallback`],
//! [`PlaybackCallback`]). The other end of the ring belongs to whoever calls [`DeviceInput::read`] or
//! [`DeviceOutput::write`]: there the clocks are compared and corrected, a device that vanished is replaced by silence,
//! and reopened with growing pauses.

mod care;
mod host;
mod input;
mod kept;
mod output;
mod ring;
mod stats;

pub use care::{DeviceError, DeviceEvent, Report};
pub use host::{CpalBackend, DeviceInfo, list};
pub use input::DeviceInput;
pub use output::DeviceOutput;
pub use ring::{CaptureCallback, PlaybackCallback, capture_ring, playback_ring};
pub use stats::{DeviceStats, Link};

use std::sync::Arc;

use crate::units::SampleRate;

/// Name that stands for the system's default device.
pub const DEFAULT: &str = "default";

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
    /// # Errors
    /// [`DeviceError`].
    fn open_input(&mut self, name: &str, link: &Arc<Link>, make: MakeCapture<'_>) -> Result<Opened, DeviceError>;

    /// Opens a device and lets it call the callback from now on; failures are told to `link`.
    ///
    /// # Errors
    /// [`DeviceError`].
    fn open_output(&mut self, name: &str, link: &Arc<Link>, make: MakePlayback<'_>) -> Result<Opened, DeviceError>;
}
