//! What coded sessions agree on, and coded bundles on their way in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use super::{AHEAD, CODE, Coder, Connection, PROOF, Task, stopped};
use crate::service::Counters;
use crate::service::codings::Kind;
use crate::service::cost::thread_time;
use crate::session::{Close, Hello, Message, Reason, SessionDecoder, ThinReader};

impl Connection<'_> {
    /// Settles whether the session is coded: the peers' models must agree, and there must be room.
    pub(super) fn agree(&mut self, hello: &Hello, mut ack: Message) -> Message {
        if let Message::HelloAck { wire, .. } = &ack {
            self.wire = *wire;
            self.thin.1 = ThinReader::new(false, *wire);
        }
        let (Some(wanted), Message::HelloAck { coding, .. }) = (hello.coding, &mut ack) else { return ack };
        let here = self.shared.coding.as_ref();
        if coding.is_none() {
            let ours = here.map_or_else(|| "none".to_owned(), |c| HEXLOWER.encode(&c.tag.id));
            info!(wanted = HEXLOWER.encode(&wanted.id), ours, "token models differ: bundles are packed");
        } else if let Some((c, permit)) = here.and_then(|c| Some((c, Arc::clone(&c.room).try_acquire_owned().ok()?))) {
            let model = Arc::clone(&c.model);
            self.thin.1 = ThinReader::new(true, self.wire);
            self.coder = match &self.task {
                Task::Subscribe(s) => {
                    let kind = Kind { wire: self.wire, stages: s.stages, latency: hello.latency };
                    Coder::Subscriber(Box::new(s.listener.codings().join(model, kind)), permit)
                }
                _ => Coder::Publisher(Some(Box::new(SessionDecoder::new(model).on(self.wire))), permit),
            };
            return ack;
        } else {
            warn!("all of limits.coded_sessions are in use: bundles are packed");
            *coding = None;
        }
        Counters::add(&self.shared.counters.fallbacks);
        ack
    }

    /// A coded bundle becomes a packed one, off the threads that serve connections; with what that cost.
    ///
    /// Not before its time: a client may cost what real time costs, and a new one what its address has not spent.
    pub(super) async fn decoded(&mut self, message: Message) -> Result<(Message, Duration), Close> {
        let Message::Coded { sequence, bundle, checked } = message else {
            if let (Message::Bundle { bundle, .. }, Coder::Publisher(Some(coder), _)) = (&message, &mut self.coder)
                && bundle.is_background()
            {
                coder.silence();
            }
            return Ok((message, Duration::ZERO));
        };
        if !matches!(self.coder, Coder::Publisher(..)) {
            return Ok((Message::Coded { sequence, bundle, checked }, Duration::ZERO));
        }
        tokio::select! {
            () = tokio::time::sleep(self.turn(Instant::now())) => {}
            () = self.shared.stop_input.cancelled() => return Err(self.shutting_down()),
        }
        self.media += self.shared.engine.profile().media_time(bundle.frames);
        let Coder::Publisher(coder, _) = &mut self.coder else { return Err(stopped()) };
        let Some(mut decoder) = coder.take() else { return Err(stopped()) };
        let least = CODE * u32::from(bundle.frames) * u32::from(bundle.stages.value());
        let work = spawn_blocking(move || {
            let before = thread_time();
            let result = decoder.decode(&bundle, checked);
            (result, decoder, thread_time().saturating_sub(before))
        });
        let (result, decoder, took) = work.await.map_err(|_| stopped())?;
        let cost = took.max(least);
        *coder = Some(decoder);
        match result {
            Ok(bundle) => Ok((Message::Bundle { sequence, bundle }, cost)),
            Err(e) => {
                self.guest.visit.charge(cost, Instant::now());
                Err(Close::new(Reason::Protocol, e.to_string()))
            }
        }
    }

    /// How long the next coded bundle has to wait.
    fn turn(&self, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.since);
        let ahead = self.media.saturating_sub(self.shared.config.borrow().limits.max_lag + AHEAD);
        let spent = self.guest.visit.wait(now).min(PROOF.saturating_sub(age));
        ahead.saturating_sub(age).max(spent)
    }
}
