//! A publisher's session: from datagrams to the hub.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Coder, Connection, REPORT, STRAGGLERS, Said, TICK, frame_ms};
use crate::jitter::{Pace, Pacing, Passed, Played, PlayoutOptions, Report, Spans};
use crate::profile::Profile;
use crate::service::hub::{Heard, Publisher};
use crate::service::quic::flow::{Incoming, trimmed};
use crate::service::quic::link::{LinkError, Received};
use crate::service::wishes::unfit;
use crate::session::{Close, Control, Event, Message, PackedBundle, Reason};
use crate::wire::{Datagram, WireError};

impl Connection {
    /// Takes a stream from a publisher.
    pub(super) async fn take_in(&mut self, publisher: Publisher) -> Result<(), Close> {
        let mut input = Input {
            publisher,
            pacing: Pacing::new(Pace::Live, self.shared.config.borrow().limits.max_lag),
            spans: Spans::default(),
            stale: 0,
            incoming: Incoming::new(PlayoutOptions { eager: true, ..PlayoutOptions::default() }),
            next: 0,
            frames: None,
            last: Report::default(),
            sent: 0,
            done: None,
            reads: true,
        };
        let mut reported = Instant::now();
        loop {
            let now = Instant::now();
            input.play(self, now)?;
            if let Some(close) = input.is_done(now) {
                input.flush(self).await?;
                input.report(self);
                return Err(close);
            }
            let wake = input.wake().map_or(now + TICK, |wake| wake.min(now + TICK));
            tokio::select! {
                biased;
                () = self.shared.stop_input.cancelled() => {
                    input.flush(self).await?;
                    return Err(Self::close(Reason::ShuttingDown, "the server is shutting down"));
                }
                Ok(()) = self.config.changed() => self.still_allowed()?,
                received = self.link.receive(), if input.reads => self.take(received, &mut input).await?,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            if now.duration_since(reported) >= REPORT {
                reported = now;
                let report = input.report(self);
                self.send(Datagram::Report(report).encode());
            }
            self.still_there(now)?;
            if input.done.is_none() {
                self.tell_frames(&mut input).await?;
            }
        }
    }

    /// Takes what came from the publisher.
    async fn take(&mut self, received: Result<Received, LinkError>, input: &mut Input) -> Result<(), Close> {
        match self.heard(received) {
            Ok(Said::Bundle { message, copies }) => {
                let (sequence, bundle) = self.decoded(message).await?;
                input.incoming.push(sequence, &bundle, &copies, Instant::now()).map_err(unfit)
            }
            Ok(Said::Brief(brief)) => {
                let protocol = |e: WireError| Self::close(Reason::Protocol, e.to_string());
                match input.incoming.whole(brief).map_err(protocol)? {
                    Some((sequence, bundle)) => {
                        input.incoming.push(sequence, &bundle, &[], Instant::now()).map_err(unfit)
                    }
                    None => Ok(()),
                }
            }
            Ok(Said::Sent(n)) => {
                input.incoming.announce(n);
                input.sent = n;
                Ok(())
            }
            Ok(Said::Report(_) | Said::Nothing) => Ok(()),
            // Once it is done, or has hung up; and what came before is still heard.
            Err(close) if close.reason == Reason::Done => {
                input.reads = input.done.is_none();
                input.done.get_or_insert((close, Instant::now() + STRAGGLERS));
                Ok(())
            }
            Err(close) => Err(close),
        }
    }

    /// Tells the publisher how long bundles its listeners want, when that has changed.
    async fn tell_frames(&mut self, input: &mut Input) -> Result<(), Close> {
        let wanted = input.publisher.wanted_frames();
        if wanted.is_none() || std::mem::replace(&mut input.frames, wanted) == wanted {
            return Ok(());
        }
        self.tell(&Message::Control(Control { bundle_frames: wanted, ..Control::default() })).await
    }

    /// A publisher's bundle as it is passed on, with its number.
    async fn decoded(&mut self, message: Message) -> Result<(u64, PackedBundle), Close> {
        match (message, &mut self.coder) {
            (Message::Bundle { sequence, bundle }, _) => Ok((sequence, bundle)),
            (Message::Coded { sequence, bundle, checked }, Coder::Publisher(intake)) => {
                let (bundle, work) = intake.decode(bundle, checked, &self.shared, &self.visit).await?;
                intake.charge(false, work, &self.visit);
                Ok((sequence, bundle))
            }
            _ => Err(Self::close(Reason::Protocol, "a coded bundle, but no token model was agreed on")),
        }
    }
}

/// A publisher's bundles on their way to the hub.
struct Input {
    publisher: Publisher,
    pacing: Pacing<PackedBundle>,
    spans: Spans,
    /// Bundles that were dropped because they were too late, as far as they are counted.
    stale: u64,
    incoming: Incoming,
    /// Frame that follows what was passed on.
    next: u64,
    /// Frames of a bundle that listeners want, as the publisher was told.
    frames: Option<u8>,
    /// What was reported last.
    last: Report,
    /// Bundles that the publisher said it had sent.
    sent: u64,
    /// Why it is done, and until when the rest is waited for.
    done: Option<(Close, Instant)>,
    reads: bool,
}

impl Input {
    /// Takes what the playout buffer gives, and passes on what may be.
    fn play(&mut self, connection: &mut Connection, now: Instant) -> Result<(), Close> {
        while let Some(played) = self.incoming.pop(now) {
            if let Played::Packet(bundle) = played {
                self.take(bundle, connection, now)?;
            }
        }
        self.pass_on(connection, now)
    }

    /// Why the publisher is done, once there is nothing more to wait for.
    fn is_done(&mut self, now: Instant) -> Option<Close> {
        let Self { incoming, sent, done, .. } = self;
        done.take_if(|(_, until)| incoming.has_all(*sent) || now >= *until).map(|(close, _)| close)
    }

    fn wake(&self) -> Option<Instant> {
        [self.incoming.wake(), self.pacing.wake()].into_iter().flatten().min()
    }

    /// What came so far, which is counted.
    fn report(&mut self, connection: &Connection) -> Report {
        let (report, ms) = (self.incoming.report(), frame_ms(&connection.shared.engine.profile()));
        connection.shared.counters.quic.seen(&self.last, &report, report.expected, ms);
        self.last = report;
        report
    }

    fn take(&mut self, bundle: PackedBundle, connection: &mut Connection, now: Instant) -> Result<(), Close> {
        let Some(bundle) = trimmed(bundle, self.next) else { return Ok(()) };
        let message = Message::Bundle { sequence: 0, bundle };
        let profile = connection.shared.engine.profile();
        if let Event::Bundle(bundle) = connection.session.handle(message, &profile, now)? {
            self.next = bundle.first_frame.saturating_add(u64::from(bundle.frames));
            let frames = self.spans.frames(bundle.first_frame, bundle.frames, bundle.is_background());
            let (span, own) = (Profile::FRAME_TIME * frames as u32, profile.media_time(bundle.frames));
            self.pacing.push_after_silence(bundle, span, own, now);
            let stale = self.pacing.dropped() - std::mem::replace(&mut self.stale, self.pacing.dropped());
            connection.shared.counters.stale.fetch_add(stale, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Passes on what may be.
    fn pass_on(&mut self, connection: &Connection, now: Instant) -> Result<(), Close> {
        while let Some(passed) = self.pacing.pop(now) {
            self.send(passed, connection);
        }
        if self.publisher.is_overruled() {
            return Err(Connection::close(Reason::Busy, "an earlier publisher of this stream is on another daemon"));
        }
        Ok(())
    }

    fn send(&self, passed: Passed<PackedBundle>, connection: &Connection) {
        let media = connection.shared.engine.profile().media_time(passed.item.frames);
        connection.shared.counters.bundle(&passed.item);
        self.publisher.send(Heard::new(passed.item, media, passed.recorded, true));
    }

    /// Passes on what waits for something that will not come.
    async fn flush(&mut self, connection: &mut Connection) -> Result<(), Close> {
        let late = Instant::now() + Duration::from_secs(3_600);
        while !self.incoming.is_empty() {
            match self.incoming.pop(late) {
                Some(Played::Packet(bundle)) => self.take(bundle, connection, Instant::now())?,
                Some(Played::Lost { .. } | Played::Quiet { .. } | Played::Restart) => {}
                None => break,
            }
        }
        while let Some(wake) = self.pacing.wake() {
            tokio::select! {
                () = connection.shared.stop_input.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => self.pass_on(connection, Instant::now())?,
            }
        }
        while let Some(passed) = self.pacing.flush() {
            self.send(passed, connection);
        }
        Ok(())
    }
}
