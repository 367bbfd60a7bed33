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

/// What a connection's coded bundles cost in its first seconds is charged to its address: a client that connects again
/// and again must not cost more than one that stays.
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

/// Decodes what one publisher sends.
pub(super) struct Intake {
    since: Instant,
    /// Length of the bundles that were decoded.
    media: Duration,
    /// Away while it works in a thread of its own.
    decoder: Option<Box<SessionDecoder>>,
    _room: OwnedSemaphorePermit,
}

impl Intake {
    pub(super) fn new(decoder: SessionDecoder, room: OwnedSemaphorePermit, since: Instant) -> Self {
        Self { since, media: Duration::ZERO, decoder: Some(Box::new(decoder)), _room: room }
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
        self.media += shared.engine.profile().media_time(bundle.frames);
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

    /// Charges work for a bundle that nobody can use, or for any while the publisher is new.
    pub(super) fn charge(&self, is_wrong: bool, work: Duration, visit: &Visit) {
        let now = Instant::now();
        if is_wrong || now.saturating_duration_since(self.since) < PROOF {
            visit.charge(work, now);
        }
    }

    /// How long the next bundle has to wait.
    fn turn(&self, now: Instant, shared: &Shared, visit: &Visit) -> Duration {
        let age = now.saturating_duration_since(self.since);
        let ahead = self.media.saturating_sub(shared.config.borrow().limits.max_lag + AHEAD);
        let spent = visit.wait(now).min(PROOF.saturating_sub(age));
        ahead.saturating_sub(age).max(spent)
    }
}
