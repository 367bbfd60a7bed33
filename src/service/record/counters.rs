//! What recording did, for operators.

use std::sync::atomic::AtomicU64;

/// What happened.
#[derive(Debug, Default)]
pub(in crate::service) struct Recorded {
    pub(in crate::service) running: AtomicU64,
    pub(in crate::service) bytes: AtomicU64,
    pub(in crate::service) files: AtomicU64,
    pub(in crate::service) deleted: AtomicU64,
    pub(in crate::service) errors: AtomicU64,
}
