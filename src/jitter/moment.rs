//! Points in time, by whatever clock there is.

use std::ops::Add;
use std::time::{Duration, Instant};

/// A point in time. A browser has no [`Instant`]: there, it is the time since the page was opened.
pub trait Moment: Copy + Ord + Add<Duration, Output = Self> {
    /// Time since an earlier moment; none if that is later.
    fn since(self, earlier: Self) -> Duration;
}

impl Moment for Instant {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl Moment for Duration {
    fn since(self, earlier: Self) -> Duration {
        self.saturating_sub(earlier)
    }
}
