//! What a lossy network brings -> an even stream, and back: how much the network carries.
//!
//! [`Playout`] puts packets in order, waits for late ones as long as the jitter it measures asks for, and says which frames
//! are lost. [`Report`] is what a receiver tells its sender, [`RateControl`] what the sender makes of it. Time is an argument.

mod delay;
mod gaps;
mod playout;
mod rate;
mod sequences;

pub use delay::PlayoutOptions;
pub use gaps::Gaps;
pub use playout::{Played, Playout};
pub use rate::{RateControl, Report};
