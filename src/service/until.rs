//! Waiting for a moment that may never be due.

use std::time::Instant;

/// Until then; for ever without a moment.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
