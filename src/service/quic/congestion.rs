//! How much may be on its way: as much as there is.
//!
//! Live sound has a rate of its own, at most 15 kbit/s, which [`crate::jitter::RateControl`] lowers when the receiver reports losses.
//! A window over that would hold bundles back after losses, until they are too late to be played.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

/// More than a stream ever has on its way. Above 2^32 nothing is paced, either.
const WINDOW: u64 = 1 << 40;

/// Leaves the rate to whoever makes the stages.
#[derive(Debug, Clone)]
pub(super) struct Open;

impl ControllerFactory for Open {
    fn build(self: Arc<Self>, _: Instant, _: u16) -> Box<dyn Controller> {
        Box::new(Self)
    }
}

impl Controller for Open {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        WINDOW
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
