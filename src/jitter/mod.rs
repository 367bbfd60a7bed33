//! What a lossy network brings -> an even stream, and back: how much the network carries.
//!
//! [`Playout`] puts packets in order, waits for late ones as long as the jitter it measures asks for, and says which frames
//! are lost. [`Report`] is what a receiver tells its sender, [`RateControl`] what the sender makes of it. [`Pacing`] holds
//! a publisher to real time, [`Backlog`] what waits for a listener, [`Gaps`] what is made up for lost sound, [`Quiet`] what for silence. Time is an argument.

mod backlog;
mod delay;
mod gaps;
mod moment;
mod pacing;
mod playout;
mod quiet;
mod rate;
mod sequences;

pub use backlog::{Backlog, Keep, Stamp};
pub use delay::PlayoutOptions;
pub use gaps::Gaps;
pub use moment::Moment;
pub use pacing::{BURST, Pace, Pacing, Passed, Schedule};
pub use playout::{Played, Playout};
pub use quiet::{Placed, Quiet, Spans};
pub use rate::{RateControl, Report};
