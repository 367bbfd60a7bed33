//! Where a local stream leaves for other daemons.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::bitstream::PackedBundle;
use crate::bus::{Bus, BusCounters};

/// What is so now.
#[derive(Default)]
pub(super) struct Gauges {
    /// Bundles in the queues of all taps.
    pub(super) queued: AtomicUsize,
    /// Streams that are fetched, and their layers.
    pub(super) relayed: AtomicUsize,
    pub(super) layers: AtomicUsize,
}

/// The way of a local stream to the other daemons.
pub(super) struct Tap {
    pub(super) queue: mpsc::Sender<Arc<PackedBundle>>,
    pub(super) overruled: Arc<AtomicBool>,
    pub(super) bus: Bus,
    pub(super) gauges: Arc<Gauges>,
}

impl Tap {
    pub(super) fn send(&self, bundle: &Arc<PackedBundle>) {
        // Counted before it can be taken out.
        self.gauges.queued.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(Arc::clone(bundle)).is_err() {
            self.gauges.queued.fetch_sub(1, Ordering::Relaxed);
            BusCounters::add(&self.bus.counters().dropped, 1);
        }
    }

    pub(super) fn is_overruled(&self) -> bool {
        self.overruled.load(Ordering::Acquire)
    }
}
