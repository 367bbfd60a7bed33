//! What a listener asked for besides stages, over TCP and QUIC alike.

use std::borrow::Cow;
use std::time::Instant;

use super::ending::Ending;
use super::hub::{Heard, Listener};
use super::plainly::Plainly;
use crate::bitstream::BitstreamError;
use crate::profile::Profile;
use crate::session::{Close, Hello, Joiner, PackedBundle, Reason};
use crate::units::StageCount;

/// What becomes of a stream's bundles on their way to one listener.
pub(super) struct Wishes {
    /// Goes on when the publisher has ended the stream.
    pub(super) ending: Option<Ending>,
    /// Makes long bundles of short ones, for who would rather wait.
    joiner: Option<Joiner>,
    /// Who knows nothing of silence gets bundles of it.
    plainly: Option<Plainly>,
}

impl Wishes {
    /// Of a greeting; tells the listener's end of the hub what it needs to know.
    pub(super) fn new(hello: &Hello, knows_silence: bool, listener: &mut Listener) -> Self {
        let joiner = hello.latency.map(|frames| {
            listener.want_frames(frames);
            Joiner::new(frames, Profile::FRAME_TIME)
        });
        let plainly = (!knows_silence).then(|| {
            listener.fill_silence(Profile::FRAME_TIME);
            Plainly::default()
        });
        Self { ending: hello.continuation.map(Ending::new), joiner, plainly }
    }

    /// What is to be sent of what the hub has; None for silence of which nothing is known.
    pub(super) fn audible<'a>(&mut self, heard: &'a Heard) -> Result<Option<Cow<'a, PackedBundle>>, Close> {
        match &mut self.plainly {
            Some(plainly) => plainly.bundle(heard).map_err(unfit),
            None => Ok(Some(Cow::Borrowed(&**heard))),
        }
    }

    /// What is to be sent now that a bundle has come, oldest first and with no more stages than that.
    pub(super) fn ready(
        &mut self,
        bundle: &PackedBundle,
        stages: StageCount,
        now: Instant,
    ) -> Result<Vec<PackedBundle>, Close> {
        let bundle = bundle.limited(stages).map_err(unfit)?;
        if let Some(ending) = self.ending.as_mut().filter(|_| !bundle.is_background()) {
            ending.heard(&bundle);
        }
        let Some(joiner) = &mut self.joiner else { return Ok(vec![bundle]) };
        let mut ready = Vec::new();
        joiner.push(bundle, now, &mut ready).map_err(unfit)?;
        Ok(ready)
    }

    /// What waits for others to join it.
    pub(super) fn held(&mut self) -> Option<PackedBundle> {
        self.joiner.as_mut().and_then(Joiner::flush)
    }

    /// When that is to be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.joiner.as_ref().and_then(Joiner::due)
    }
}

/// A bundle that does not fit ends its session.
pub(super) fn unfit(e: BitstreamError) -> Close {
    Close::new(Reason::Protocol, e.to_string())
}
