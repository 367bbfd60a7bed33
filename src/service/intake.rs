//! Coded bundles of a publisher: what is agreed on, and what their decoding may cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::access::Visit;
use super::codings::stopped;
use super::cost::thread_time;
use super::{Counters, Shared};
use crate::bitstream::CodedBundle;
use crate::session::{Close, Hello, Message, PackedBundle, Reason, SessionDecoder};
use crate::token::TokenModel;

/// What a connection's coded bundles cost ahead of real time is charged to its address in its first seconds: a client that
/// connects again and again must not cost more than one that stays. What comes in its time is not, or a gateway that
/// connects with all its streams at once would have to wait for itself.
const PROOF: Duration = Duration::from_secs(5);

/// How far coded bundles may be ahead of real time, besides what live sound may lag, before their decoding waits.
const AHEAD: Duration = Duration::from_millis(1_500);

/// What decoding a code takes at least, about (docs/performance.md). What it really takes is asked of the system, not of the
/// clock: on a busy machine honest clients would pay for the time in which others had the core.
const CODE: Duration = Duration::from_micros(20);

impl Shared {
    /// Settles whether a session is coded: the peers' models must agree, and there must be room, which is held from here on.
    pub(super) fn room_to_code(
        &self,
        hello: &Hello,
        ack: &mut Message,
    ) -> Option<(Arc<TokenModel>, OwnedSemaphorePermit)> {
        let (Some(wanted), Message::HelloAck { coding, .. }) = (hello.coding, ack) else { return None };
        let here = self.coding.as_ref();
        if coding.is_none() {
            let ours = here.map_or_else(|| "none".to_owned(), |c| HEXLOWER.encode(&c.tag.id));
            info!(wanted = HEXLOWER.encode(&wanted.id), ours, "token models differ: bundles are packed");
        } else if let Some(room) = here.and_then(|c| Some((c, Arc::clone(&c.room).try_acquire_owned().ok()?))) {
            return Some((Arc::clone(&room.0.model), room.1));
        } else {
            warn!("all of limits.coded_sessions are in use: bundles are packed");
            *coding = None;
        }
        Counters::add(&self.counters.fallbacks);
        None
    }
}

/// How far a publisher's bundles are ahead of real time.
struct Pace {
    since: Instant,
    /// Length of the bundles that were decoded, and of the last one.
    media: Duration,
    last: Duration,
}

impl Pace {
    /// Work for the last bundle that its sender's address owes: the share of it that came before its time.
    fn owed(&self, work: Duration, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.since);
        let early = self.media.saturating_sub(age).min(self.last);
        if age >= PROOF || early.is_zero() { Duration::ZERO } else { work.mul_f64(early.div_duration_f64(self.last)) }
    }
}

/// Decodes what one publisher sends.
pub(super) struct Intake {
    pace: Pace,
    /// Away while it works in a thread of its own.
    decoder: Option<Box<SessionDecoder>>,
    _room: OwnedSemaphorePermit,
}

impl Intake {
    pub(super) fn new(decoder: SessionDecoder, room: OwnedSemaphorePermit, since: Instant) -> Self {
        let pace = Pace { since, media: Duration::ZERO, last: Duration::ZERO };
        Self { pace, decoder: Some(Box::new(decoder)), _room: room }
    }

    /// Frames are left out, as after a description of silence.
    pub(super) fn silence(&mut self) {
        if let Some(decoder) = &mut self.decoder {
            decoder.silence();
        }
    }

    /// A coded bundle becomes a packed one, off the threads that serve connections; with what that cost.
    ///
    /// Not before its time: a client may cost what real time costs, and a new one what its address has not spent.
    pub(super) async fn decode(
        &mut self,
        bundle: CodedBundle,
        checked: bool,
        shared: &Shared,
        visit: &Visit,
    ) -> Result<(PackedBundle, Duration), Close> {
        tokio::select! {
            () = tokio::time::sleep(self.turn(Instant::now(), shared, visit)) => {}
            () = shared.stop_input.cancelled() => return Err(stopped()),
        }
        self.pace.last = shared.engine.profile().media_time(bundle.frames);
        self.pace.media += self.pace.last;
        let Some(mut decoder) = self.decoder.take() else { return Err(stopped()) };
        let least = CODE * u32::from(bundle.frames) * u32::from(bundle.stages.value());
        let work = spawn_blocking(move || {
            let before = thread_time();
            let result = decoder.decode(&bundle, checked);
            (result, decoder, thread_time().saturating_sub(before))
        });
        let (result, decoder, took) = work.await.map_err(|_| stopped())?;
        let cost = took.max(least);
        self.decoder = Some(decoder);
        result.map(|bundle| (bundle, cost)).map_err(|e| {
            visit.charge(cost, Instant::now());
            Close::new(Reason::Protocol, e.to_string())
        })
    }

    /// Charges work for a bundle that nobody can use, or for one that came before its time while the publisher is new.
    pub(super) fn charge(&self, is_wrong: bool, work: Duration, visit: &Visit) {
        let now = Instant::now();
        let owed = if is_wrong { work } else { self.pace.owed(work, now) };
        if !owed.is_zero() {
            visit.charge(owed, now);
        }
    }

    /// How long the next bundle has to wait.
    fn turn(&self, now: Instant, shared: &Shared, visit: &Visit) -> Duration {
        let age = now.saturating_duration_since(self.pace.since);
        let ahead = self.pace.media.saturating_sub(shared.config.borrow().limits.max_lag + AHEAD);
        let spent = visit.wait(now).min(PROOF.saturating_sub(age));
        ahead.saturating_sub(age).max(spent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUNDLE: Duration = Duration::from_millis(100);
    const WORK: Duration = Duration::from_millis(8);

    /// What a publisher owes in all whose bundles come `every` so often, for so many.
    fn owed(every: Duration, bundles: u32) -> Duration {
        let since = Instant::now();
        let mut pace = Pace { since, media: Duration::ZERO, last: BUNDLE };
        (1..=bundles)
            .map(|n| {
                pace.media += BUNDLE;
                pace.owed(WORK, since + every * n)
            })
            .sum()
    }

    #[test]
    fn what_comes_in_its_time_costs_an_address_nothing_and_what_comes_at_once_all() {
        assert_eq!(owed(BUNDLE, 100), Duration::ZERO);
        assert_eq!(owed(BUNDLE * 2, 100), Duration::ZERO);
        assert_eq!(owed(Duration::ZERO, 10), WORK * 10);
        // Twice as fast: the first bundle is half early, the others wholly, until 5 s are over.
        assert_eq!(owed(BUNDLE / 2, 100), WORK / 2 + WORK * 98);
        assert_eq!(owed(BUNDLE / 2, 200), WORK / 2 + WORK * 98);
    }
}
