//! Bundles on their way to a subscriber.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Coder, Connection, Task, stopped, unfit};
use crate::service::hub::Heard;
use crate::service::pacer::Pacer;
use crate::service::plainly::Plainly;
use crate::service::tls::Socket;
use crate::session::{Close, Control, Joiner, Message, PackedBundle, Reason};

impl Connection<'_> {
    /// Sends a bundle to a subscriber, with no more stages than it wants.
    pub(super) async fn forward(&mut self, heard: &Heard, socket: &mut Socket) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        let skipped = self.shared.skipped(&mut s.listener, &s.name);
        if skipped > 0 {
            self.forward_held(socket).await?;
            self.send(&Message::Control(Control { skipped, ..Control::default() }), socket).await?;
        }
        let made = match plainly(&mut self.task) {
            Some(plainly) => plainly.bundle(heard).map_err(unfit)?,
            None => Some(Cow::Borrowed(&**heard)),
        };
        if let Some(bundle) = made {
            self.forward_codes(&bundle, socket).await?;
        }
        if let Task::Subscribe(s) = &self.task {
            s.listener.delivered(heard);
        }
        Ok(())
    }

    async fn forward_codes(&mut self, bundle: &PackedBundle, socket: &mut Socket) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        let bundle = bundle.limited(s.stages).map_err(unfit)?;
        if let Some(ending) = s.ending.as_mut().filter(|_| !bundle.is_background()) {
            ending.heard(&bundle);
        }
        let mut ready = Vec::new();
        match &mut s.joiner {
            Some(joiner) => joiner.push(bundle, Instant::now(), &mut ready).map_err(unfit)?,
            None => ready.push(bundle),
        }
        for bundle in ready {
            self.forward_joined(bundle, socket).await?;
        }
        Ok(())
    }

    /// Sends what waits for bundles to join.
    pub(super) async fn forward_held(&mut self, socket: &mut Socket) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        match s.joiner.as_mut().and_then(Joiner::flush) {
            Some(bundle) => self.forward_joined(bundle, socket).await,
            None => Ok(()),
        }
    }

    async fn forward_joined(&mut self, bundle: PackedBundle, socket: &mut Socket) -> Result<(), Close> {
        let graded = match self.coder {
            Coder::Packed => self.wire.graded,
            _ => self.wire.is_graded_when_coded(),
        };
        let parts = if graded { vec![bundle] } else { bundle.plain_runs().map_err(unfit)? };
        for bundle in parts {
            let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
            let number = s.sequence;
            s.sequence += 1;
            let codes = if bundle.is_background() { 0 } else { bundle.codes() };
            let message = self.coded(number, bundle).await?;
            if let (Task::Subscribe(s), 1..) = (&mut self.task, codes) {
                s.listener.took(codes, payload(&message));
            }
            let message = if self.wire.thin { self.thin.0.thin(message) } else { message };
            self.send(&message, socket).await?;
        }
        Ok(())
    }

    /// Sends the continuation that the subscriber asked for, in real time.
    pub(super) async fn continuation(&mut self, socket: &mut Socket) -> Result<(), Close> {
        self.forward_held(socket).await?;
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        let (Some(ending), Some(coding)) = (s.ending.take(), &self.shared.coding) else { return Ok(()) };
        let Ok(_permit) = Arc::clone(&coding.room).try_acquire_owned() else {
            warn!("all of limits.coded_sessions are in use: a stream is not continued");
            return Ok(());
        };
        let (mut pacer, profile, model) = (Pacer::default(), self.shared.engine.profile(), Arc::clone(&coding.model));
        let Some(mut source) = spawn_blocking(move || ending.start(model)).await.map_err(|_| stopped())? else {
            return Ok(());
        };
        loop {
            let work = spawn_blocking(move || (source.next(), source));
            let (bundle, back) = work.await.map_err(|_| stopped())?;
            source = back;
            let Some(bundle) = bundle else { return self.forward_held(socket).await };
            tokio::select! {
                () = self.shared.stop_output.cancelled() => return Ok(()),
                () = pacer.wait(profile.media_time(bundle.frames)) => {}
            }
            self.forward_codes(&bundle, socket).await?;
        }
    }

    pub(super) async fn flush_queue(&mut self, socket: &mut Socket) -> Result<(), Close> {
        self.flush();
        while let Task::Subscribe(s) = &mut self.task {
            let Some(heard) = s.listener.queued() else { break };
            self.forward(&heard, socket).await?;
        }
        self.forward_held(socket).await
    }

    async fn coded(&mut self, sequence: u64, bundle: PackedBundle) -> Result<Message, Close> {
        let Coder::Subscriber(coder, _) = &mut self.coder else { return Ok(Message::Bundle { sequence, bundle }) };
        let Some(mut encoder) = coder.take() else { return Err(stopped()) };
        if bundle.is_background() {
            encoder.silence();
            *coder = Some(encoder);
            return Ok(Message::Bundle { sequence, bundle });
        }
        let work = spawn_blocking(move || (encoder.encode(&bundle), encoder));
        let (result, encoder) = work.await.map_err(|_| stopped())?;
        *coder = Some(encoder);
        let (bundle, checked) = result.map_err(|e| Close::new(Reason::Protocol, e.to_string()))?;
        Ok(Message::Coded { sequence, bundle, checked })
    }
}

/// Bytes of codes in a message.
fn payload(message: &Message) -> usize {
    match message {
        Message::Bundle { bundle, .. } => bundle.payload.len(),
        Message::Coded { bundle, .. } => bundle.payload.len(),
        _ => 0,
    }
}

/// What makes silence audible for a subscriber that knows nothing of it.
fn plainly(task: &mut Task) -> Option<&mut Plainly> {
    match task {
        Task::Subscribe(s) => s.plainly.as_mut(),
        _ => None,
    }
}
