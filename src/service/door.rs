//! What a connection must pass before anything is done for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::access::Gate;

/// What a connection must pass.
pub(super) struct Door {
    pub(super) room: Arc<Room>,
    pub(super) gate: Arc<Gate>,
    pub(super) refusals: Arc<Semaphore>,
}

/// Connections in use.
#[derive(Default)]
pub(super) struct Room {
    used: AtomicUsize,
}

/// A place for one connection; dropping it frees the place.
pub(super) struct Permit(Arc<Room>);

impl Room {
    pub(super) fn enter(self: &Arc<Self>, max: usize) -> Option<Permit> {
        let more = |used| (used < max).then_some(used + 1);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::AcqRel);
    }
}
