//! Bundles on their way to a subscriber.

use std::time::Instant;

use super::{Coder, Connection, Task};
use crate::bitstream::Form;
use crate::service::Counters;
use crate::service::ending::Continued;
use crate::service::hub::Heard;
use crate::service::tls::Socket;
use crate::service::wishes::unfit;
use crate::session::{Close, Control, Message, PackedBundle, Reason};
use crate::units::{MessageRate, StageCount};

impl Connection<'_> {
    /// Sends a bundle to a subscriber, with no more stages than it wants.
    pub(super) async fn forward(&mut self, heard: &Heard, socket: &mut Socket) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        let skipped = self.shared.skipped(&mut s.listener, &s.name);
        if skipped > 0 {
            self.forward_held(socket).await?;
            self.send(&Message::Control(Control { skipped, ..Control::default() }), socket).await?;
        }
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        if let Some(bundle) = s.wishes.audible(heard)? {
            self.forward_codes(&bundle, socket).await?;
        }
        if let Task::Subscribe(s) = &self.task {
            s.listener.delivered(heard);
        }
        Ok(())
    }

    async fn forward_codes(&mut self, bundle: &PackedBundle, socket: &mut Socket) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        for bundle in s.wishes.ready(bundle, s.stages, Instant::now())? {
            self.forward_joined(bundle, socket).await?;
        }
        Ok(())
    }

    /// Sends what waits for bundles to join.
    pub(super) async fn forward_held(&mut self, socket: &mut Socket) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        match s.wishes.held() {
            Some(bundle) => self.forward_joined(bundle, socket).await,
            None => Ok(()),
        }
    }

    async fn forward_joined(&mut self, bundle: PackedBundle, socket: &mut Socket) -> Result<(), Close> {
        let graded = match self.coder {
            Coder::Packed => self.wire.graded,
            _ => self.wire.is_graded_when_coded(),
        };
        let constant = matches!(&self.task, Task::Subscribe(s) if s.listener.constant().is_some());
        let parts = match graded {
            true => vec![bundle],
            // How many messages there are would say something.
            false if constant => vec![bundle.even().map_err(unfit)?],
            false => bundle.plain_runs().map_err(unfit)?,
        };
        for bundle in parts {
            let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
            if let Some(rate) = s.listener.constant() {
                self.forward_padded(rate, &bundle, socket).await?;
                continue;
            }
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

    /// Sends a bundle as a message of the size that all of this session have: stages that do not fit are left out. In such a stream
    /// silence is not described; who does so nevertheless is not heard.
    async fn forward_padded(
        &mut self,
        rate: MessageRate,
        bundle: &PackedBundle,
        socket: &mut Socket,
    ) -> Result<(), Close> {
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        if bundle.is_background() {
            return Ok(());
        }
        let (number, rate) = (s.sequence, rate.min(MessageRate::of_stages(s.stages)));
        s.sequence += 1;
        // A last bundle of fewer frames is as long as the others, too.
        s.padded = s.padded.max(padded_size(rate, bundle.frames, self.wire.thin));
        let size = s.padded;
        for stages in (1..=bundle.stages.value()).rev().filter_map(|n| StageCount::new(n).ok()) {
            let bundle = bundle.limited(stages).map_err(unfit)?;
            let (mut trial, mut thin) = (None, self.thin.0.clone());
            let message = match &mut self.coder {
                Coder::Subscriber(coder, _) => {
                    let made = coder.encode(&bundle, &self.shared.counters.coder_runs).await.map_err(Close::from)?;
                    let (bundle, checked) = made.bundle();
                    trial = Some(made);
                    Message::Coded { sequence: number, bundle, checked }
                }
                _ => Message::Bundle { sequence: number, bundle: bundle.clone() },
            };
            let bytes = payload(&message);
            let message = if self.wire.thin { thin.thin(message) } else { message };
            if !self.put_padded(&message, size) {
                continue;
            }
            if let (Coder::Subscriber(coder, _), Some(trial)) = (&mut self.coder, trial) {
                coder.sent(trial);
                Counters::add(&self.shared.counters.coded);
            }
            self.thin.0 = thin;
            if let Task::Subscribe(s) = &mut self.task {
                s.listener.took(bundle.codes(), bytes);
            }
            return self.send_out(socket).await;
        }
        Err(Close::new(Reason::Protocol, format!("not even one stage fits {size} bytes")))
    }

    /// Sends the continuation that the subscriber asked for, in real time.
    pub(super) async fn continuation(&mut self, socket: &mut Socket) -> Result<(), Close> {
        self.forward_held(socket).await?;
        let Task::Subscribe(s) = &mut self.task else { return Ok(()) };
        let Some(ending) = s.wishes.ending.take() else { return Ok(()) };
        let Some(mut made) = Continued::start(ending, self.shared).await? else { return Ok(()) };
        while let Some(bundle) = made.next().await? {
            self.forward_codes(&bundle, socket).await?;
        }
        self.forward_held(socket).await
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
        if bundle.is_background() {
            coder.silence();
            return Ok(Message::Bundle { sequence, bundle });
        }
        let trial = coder.encode(&bundle, &self.shared.counters.coder_runs).await.map_err(Close::from)?;
        let (bundle, checked) = trial.bundle();
        coder.sent(trial);
        Counters::add(&self.shared.counters.coded);
        Ok(Message::Coded { sequence, bundle, checked })
    }
}

/// Bytes of a message that one stage fits into whatever it is, besides its codes and their check sum.
const HEAD_THIN: usize = 8;
const HEAD: usize = 32;

/// Bytes of all messages of a session whose bundles have so many frames: those of the rate, and at least those of one stage.
fn padded_size(rate: MessageRate, frames: u8, thin: bool) -> usize {
    let head = if thin { HEAD_THIN } else { HEAD };
    rate.bytes(frames).max(head + 2 + PackedBundle::payload_len(frames, StageCount::ONE, Form::Graded))
}

/// Bytes of codes in a message.
fn payload(message: &Message) -> usize {
    match message {
        Message::Bundle { bundle, .. } => bundle.payload.len(),
        Message::Coded { bundle, .. } => bundle.payload.len(),
        _ => 0,
    }
}
