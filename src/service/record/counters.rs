//! What recording did, for operators.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::info;

/// What happened.
#[derive(Debug, Default)]
pub(in crate::service) struct Recorded {
    pub(in crate::service) running: AtomicU64,
    pub(in crate::service) bytes: AtomicU64,
    pub(in crate::service) files: AtomicU64,
    pub(in crate::service) deleted: AtomicU64,
    pub(in crate::service) errors: AtomicU64,
    pub(in crate::service) lost: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
}

/// Why recordings cannot be written now.
#[derive(Debug)]
struct Trouble {
    why: String,
    at: Instant,
}

impl Recorded {
    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why recordings cannot be written now; None if they can. It names no file.
    pub(in crate::service) fn failing(&self) -> Option<String> {
        self.trouble().as_ref().map(|t| t.why.clone())
    }

    pub(super) fn failed(&self, why: String) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        *self.trouble() = Some(Trouble { why, at: Instant::now() });
    }

    /// A write that began then was done.
    pub(super) fn recovered(&self, began: Instant) {
        let mut trouble = self.trouble();
        if trouble.as_ref().is_some_and(|t| t.at <= began) {
            info!("recordings can be written again");
            *trouble = None;
        }
    }
}
