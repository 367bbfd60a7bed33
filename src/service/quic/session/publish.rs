//! A publisher's session: from datagrams to the hub.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Coder, Connection, REPORT, STRAGGLERS, Said, TICK, frame_ms, unfit};
use crate::jitter::{Pace, Pacing, Passed, Played, PlayoutOptions, Report, Spans};
use crate::profile::Profile;
use crate::service::hub::{Heard, Publisher};
use crate::service::quic::flow::{Incoming, trimmed};
use crate::session::{Close, Control, Event, Message, PackedBundle, Reason};
use crate::wire::{Datagram, WireError};

impl Connection {
    /// Takes a stream from a publisher.
    pub(super) async fn take_in(&mut self, publisher: Publisher) -> Result<(), Close> {
        let profile = self.shared.engine.profile();
        let mut input = Input {
            publisher,
            pacing: Pacing::new(Pace::Live, self.shared.config.borrow().limits.max_lag),
            spans: Spans::default(),
            stale: 0,
            incoming: Incoming::new(PlayoutOptions { eager: true, ..PlayoutOptions::default() }),
            next: 0,
            frames: None,
        };
        let (mut last, mut reported) = (Report::default(), Instant::now());
        // Bundles that the publisher said it had sent, why it is done, and until when the rest is waited for.
        let (mut sent, mut done, mut reads) = (0, None::<(Close, Instant)>, true);
        loop {
            let now = Instant::now();
            while let Some(played) = input.incoming.pop(now) {
                if let Played::Packet(bundle) = played {
                    input.take(bundle, self, now)?;
                }
            }
            input.pass_on(self, now)?;
            if let Some((close, _)) = done.take_if(|(_, until)| input.incoming.has_all(sent) || now >= *until) {
                input.flush(self).await?;
                let report = input.incoming.report();
                self.shared.counters.quic.seen(&last, &report, report.expected, frame_ms(&profile));
                return Err(close);
            }
            let soon = now + TICK;
            let wake = [input.incoming.wake(), input.pacing.wake()].into_iter().flatten().fold(soon, Instant::min);
            tokio::select! {
                biased;
                () = self.shared.stop_input.cancelled() => {
                    input.flush(self).await?;
                    return Err(Self::close(Reason::ShuttingDown, "the server is shutting down"));
                }
                Ok(()) = self.config.changed() => self.still_allowed()?,
                received = self.link.receive(), if reads => {
                    match self.heard(received) {
                        Ok(Said::Bundle { message, copies }) => match self.decoded(message).await {
                            Ok((sequence, bundle)) => {
                                let pushed = input.incoming.push(sequence, &bundle, &copies, Instant::now());
                                pushed.map_err(unfit)?;
                            }
                            Err(close) => return Err(close),
                        },
                        Ok(Said::Brief(brief)) => {
                            let protocol = |e: WireError| Self::close(Reason::Protocol, e.to_string());
                            if let Some((sequence, bundle)) = input.incoming.whole(brief).map_err(protocol)? {
                                input.incoming.push(sequence, &bundle, &[], Instant::now()).map_err(unfit)?;
                            }
                        }
                        Ok(Said::Sent(n)) => {
                            input.incoming.announce(n);
                            sent = n;
                        }
                        Ok(Said::Report(_) | Said::Nothing) => {}
                        // Once it is done, or has hung up; and what came before is still heard.
                        Err(close) if close.reason == Reason::Done => {
                            reads = done.is_none();
                            done.get_or_insert((close, Instant::now() + STRAGGLERS));
                        }
                        Err(close) => return Err(close),
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            if now.duration_since(reported) >= REPORT {
                reported = now;
                let report = input.incoming.report();
                self.shared.counters.quic.seen(&last, &report, report.expected, frame_ms(&profile));
                last = report;
                self.send(Datagram::Report(report).encode());
            }
            self.still_there(now)?;
            if done.is_none() {
                self.tell_frames(&mut input).await?;
            }
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
}

impl Input {
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
