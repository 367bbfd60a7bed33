//! One session over UDP.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::UdpCounters;
use super::counters::ListenerState;
use super::flow::{Incoming, Outgoing, REPORT, trimmed};
use super::peer::Peer;
use crate::config::Config;
use crate::jitter::{Keep, Pace, Pacing, Passed, Played, PlayoutOptions, Report, Spans};
use crate::profile::Profile;
use crate::service::access::{Flood, Pass, authorize};
use crate::service::hub::{Ended, Heard, Listener, Publisher};
use crate::service::plainly::Plainly;
use crate::service::{Counters, Shared};
use crate::session::{Close, Event, Hello, Message, PackedBundle, Reason, Role, ServerSession, Wire};
use crate::units::StageCount;
use crate::wire::Datagram;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(50);

/// A listener that is silent for this long gets nothing more: it reports every second.
const LISTENER_SILENCE: Duration = Duration::from_secs(10);

/// How often the last words are said, and how long after each an answer is waited for.
const LAST_WORDS: u32 = 4;
const LAST_WORDS_EVERY: Duration = Duration::from_millis(100);

/// How long a publisher that is done is waited for, should its last bundles still be on their way.
const STRAGGLERS: Duration = Duration::from_millis(500);

struct Connection {
    shared: Shared,
    /// Changes of the configuration; a token may be taken back.
    config: watch::Receiver<Arc<Config>>,
    pass: Pass,
    peer: Peer,
    hello: Hello,
    /// Most stages that a listener asks for now.
    stages: Option<StageCount>,
    ack: Message,
    session: ServerSession,
    inbox: mpsc::Receiver<Datagram>,
    flood: Flood,
    heard: Instant,
    /// Bundles sent.
    sent: u64,
}

/// The next datagram; when the port is no longer read there is none.
async fn receive(inbox: &mut mpsc::Receiver<Datagram>) -> Datagram {
    match inbox.recv().await {
        Some(datagram) => datagram,
        None => std::future::pending().await,
    }
}

/// Serves a client whose address is proven, to the end.
pub(super) async fn serve(shared: Shared, mut peer: Peer, mut hello: Hello, mut inbox: mpsc::Receiver<Datagram>) {
    // Every datagram is decoded alone, so bundles are packed; and a continuation needs a stream that ends surely.
    hello.coding = None;
    hello.continuation = None;
    let now = Instant::now();
    let mut config = shared.config.clone();
    config.mark_unchanged();
    let mut session = ServerSession::new(shared.config.borrow().limits.timeouts, None, Wire::DATAGRAMS, now);
    let opened = session.handle(Message::Hello(hello.clone()), &shared.engine.profile(), now);
    let opened = opened.and_then(|event| {
        let tokens = &shared.config.borrow().tokens;
        authorize(tokens, &hello).map(|()| event)
    });
    let mut sent = 0;
    let close = match opened {
        Ok(Event::Opened(hello, ack)) => {
            let flood = Flood::new(now);
            let shared = shared.clone();
            let stages = hello.stages;
            let mut connection = Connection {
                shared,
                config,
                pass: Pass::of(&hello),
                peer,
                hello,
                stages,
                ack,
                session,
                inbox,
                flood,
                heard: now,
                sent: 0,
            };
            let close = connection.run().await;
            Connection { peer, inbox, sent, .. } = connection;
            close
        }
        Ok(_) => return,
        Err(close) => Err(close),
    };
    let Err(close) = close else { return };
    match close.reason {
        Reason::Protocol | Reason::Timeout | Reason::Model => Counters::add(&shared.counters.hostile),
        Reason::Busy | Reason::Full | Reason::Denied => Counters::add(&shared.counters.refused),
        Reason::SlowConsumer => Counters::add(&shared.counters.slow),
        Reason::StreamEnded | Reason::Done | Reason::ShuttingDown => {}
    }
    match close.reason {
        Reason::StreamEnded | Reason::Done | Reason::ShuttingDown => {
            info!(peer = %peer.address, reason = %close, "UDP session ended");
        }
        _ => warn!(peer = %peer.address, reason = %close, "UDP session closed"),
    }
    // Who is gone is told once, as who asked to be closed and answers no more.
    let words = if close.reason == Reason::Timeout { 1 } else { LAST_WORDS };
    let content = Some(Message::Close(close));
    let last = Datagram { session: peer.session, content, bundles_sent: Some(sent), ..Datagram::default() };
    goodbye(&peer, &mut inbox, &last, words).await;
}

/// Says the last words until the peer has answered with its own.
async fn goodbye(peer: &Peer, inbox: &mut mpsc::Receiver<Datagram>, last: &Datagram, words: u32) {
    let bytes = last.encode();
    for _ in 0..words {
        peer.send(&bytes);
        let answered = async { while !matches!(receive(inbox).await.content, Some(Message::Close(_))) {} };
        if tokio::time::timeout(LAST_WORDS_EVERY, answered).await.is_ok() {
            return;
        }
    }
}

impl Connection {
    fn close(reason: Reason, text: impl Into<String>) -> Close {
        Close::new(reason, text)
    }

    /// Gives the reason of the end.
    async fn run(&mut self) -> Result<(), Close> {
        let name = self.hello.stream.clone();
        info!(peer = %self.peer.address, stream = %name, role = ?self.hello.role, "UDP session open");
        match self.hello.role {
            Role::Publish => {
                let publisher = self.shared.publish(&name).await;
                let publisher = publisher
                    .ok_or_else(|| Self::close(Reason::Busy, format!("somebody else publishes stream {name}")))?;
                self.send(&Datagram::message(self.peer.session, self.ack.clone()));
                self.take_in(publisher).await
            }
            Role::Subscribe => {
                let listener = self.shared.listen(&name, Keep::Newest);
                self.send(&Datagram::message(self.peer.session, self.ack.clone()));
                let number = self.shared.counters.udp.number();
                let result = self.send_out(listener, number).await;
                self.shared.counters.udp.listener(number, None);
                result
            }
        }
    }

    fn send(&self, datagram: &Datagram) {
        self.send_bytes(&datagram.encode());
    }

    fn send_bytes(&self, bytes: &[u8]) {
        let start = Instant::now();
        if !self.peer.send(bytes) {
            UdpCounters::count(&self.shared.counters.udp.overflow);
        }
        self.shared.counters.send.add(start.elapsed());
    }

    /// What either role may say. A bundle is left to the caller.
    fn heard(&mut self, datagram: Datagram) -> Result<Option<(u64, PackedBundle)>, Close> {
        let now = Instant::now();
        self.heard = now;
        match datagram.content {
            None => {}
            // The session itself stays open until what is on its way has come.
            Some(Message::Close(_)) => return Err(Self::close(Reason::Done, "as asked")),
            Some(Message::Bundle { sequence, bundle }) if self.hello.role == Role::Publish => {
                return Ok(Some((sequence, bundle)));
            }
            Some(Message::Hello(mut again)) => {
                self.flood.message(now)?;
                (again.coding, again.continuation) = (None, None);
                if again != self.hello {
                    return Err(Self::close(Reason::Done, "another session begins at this address"));
                }
                // Our answer was lost.
                self.send(&Datagram::message(self.peer.session, self.ack.clone()));
            }
            Some(message) => {
                self.flood.message(now)?;
                match self.session.handle(message, &self.shared.engine.profile(), now)? {
                    Event::Stages(stages) => self.stages = Some(stages),
                    Event::Opened(..) | Event::Bundle(_) | Event::Alive | Event::Done => {}
                }
            }
        }
        Ok(None)
    }

    /// Whether the token would still open this session.
    fn still_allowed(&mut self) -> Result<(), Close> {
        self.pass.check(&self.config.borrow_and_update().tokens)
    }

    fn wanted(&self) -> StageCount {
        let most = self.shared.engine.profile().stages;
        self.stages.map_or(most, |s| s.min(most))
    }

    /// What operators see of a listener.
    fn note(&self, number: u64, out: &Outgoing, jitter: Duration) {
        let (stages, loss) = (out.rate.stages().value(), out.rate.loss());
        let (stream, jitter_s) = (self.hello.stream.clone(), jitter.as_secs_f64());
        let state = ListenerState { stream, stages, loss, jitter_s };
        self.shared.counters.udp.listener(number, Some(state));
    }

    /// Sends the stream to a listener.
    async fn send_out(&mut self, mut listener: Listener, number: u64) -> Result<(), Close> {
        let (profile, mut wanted) = (self.shared.engine.profile(), self.wanted());
        let wire = self.hello.wire.common(Wire::DATAGRAMS);
        let failed = |e: crate::bitstream::BitstreamError| Self::close(Reason::Protocol, e.to_string());
        let mut out = Outgoing::new(self.peer.session, wanted, wire, Instant::now()).map_err(failed)?;
        listener.want(wanted);
        self.note(number, &out, Duration::ZERO);
        // Who knows nothing of silence gets bundles of it.
        let mut plainly = (!wire.silence).then(|| {
            listener.fill_silence(Profile::FRAME_TIME);
            Plainly::default()
        });
        let mut last = Report::default();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let next = tokio::select! {
                biased;
                () = self.shared.stop_output.cancelled() => {
                    while let Some(heard) = listener.queued() {
                        let Some(bundle) = audible(&mut plainly, &heard).map_err(failed)? else { continue };
                        out.pack(&bundle, Instant::now()).map_err(failed)?.iter().for_each(|d| self.send_bytes(d));
                    }
                    self.sent = out.sent();
                    return Err(Self::close(Reason::ShuttingDown, "the server is shutting down"));
                }
                Ok(()) = self.config.changed() => None,
                datagram = receive(&mut self.inbox) => {
                    if let Some(report) = datagram.report {
                        self.flood.message(Instant::now())?;
                        out.rate.report(&report, Instant::now());
                        self.shared.counters.udp.seen(&last, &report, out.sent(), frame_ms(&profile));
                        last = report;
                        self.note(number, &out, report.jitter);
                    }
                    self.heard(datagram)?;
                    if self.wanted() != wanted {
                        wanted = self.wanted();
                        out.want(wanted);
                        listener.want(wanted);
                    }
                    continue;
                }
                _ = tick.tick() => None,
                next = listener.next() => Some(next),
            };
            // Asked whatever woke us: it may be what the reload did to the publisher.
            if let Err(close) = self.still_allowed() {
                self.sent = out.sent();
                return Err(close);
            }
            let now = Instant::now();
            match next {
                Some(Ok(heard)) => {
                    self.shared.skipped(&mut listener, &self.hello.stream);
                    if let Some(bundle) = audible(&mut plainly, &heard).map_err(failed)? {
                        // Packed, so many stages always have one size; of more, their number would say something.
                        let bundle = bundle.limited(listener.constant().unwrap_or(bundle.stages)).map_err(failed)?;
                        out.pack(&bundle, now).map_err(failed)?.iter().for_each(|d| self.send_bytes(d));
                    }
                    listener.delivered(&heard);
                }
                Some(Err(ended)) => {
                    self.sent = out.sent();
                    return Err(match ended {
                        Ended::Stream => Self::close(Reason::StreamEnded, "the publisher ended the stream"),
                        Ended::Slow => Self::close(Reason::SlowConsumer, "bundles were not taken fast enough"),
                    });
                }
                None => {
                    out.rate.tick(now);
                    let limit = self.shared.config.borrow().limits.timeouts.idle.min(LISTENER_SILENCE);
                    if now.duration_since(self.heard) > limit {
                        return Err(Self::close(Reason::Timeout, format!("no report within {limit:?}")));
                    }
                    if let Some(announcement) = out.announcement(now) {
                        self.send(&announcement);
                    }
                }
            }
        }
    }

    /// Takes a stream from a publisher.
    async fn take_in(&mut self, publisher: Publisher) -> Result<(), Close> {
        let profile = self.shared.engine.profile();
        let mut input = Input {
            publisher,
            pacing: Pacing::new(Pace::Live, self.shared.config.borrow().limits.max_lag),
            spans: Spans::default(),
            stale: 0,
            incoming: Incoming::new(PlayoutOptions { eager: true, ..PlayoutOptions::default() }),
            next: 0,
        };
        let (mut last, mut reported) = (Report::default(), Instant::now());
        // What the publisher said when it was done, and until when the rest is waited for.
        let mut done: Option<(Close, u64, Instant)> = None;
        loop {
            let now = Instant::now();
            while let Some(played) = input.incoming.pop(now) {
                if let Played::Packet(bundle) = played {
                    input.take(bundle, self, now)?;
                }
            }
            input.pass_on(self, now)?;
            if let Some((close, sent, until)) = done.take() {
                if input.incoming.has_all(sent) || now >= until {
                    input.flush(self).await?;
                    let report = input.incoming.report();
                    self.shared.counters.udp.seen(&last, &report, report.expected, frame_ms(&profile));
                    return Err(close);
                }
                done = Some((close, sent, until));
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
                datagram = receive(&mut self.inbox) => {
                    if let Some(sent) = datagram.bundles_sent {
                        input.incoming.announce(sent);
                    }
                    let (sent, copies) = (datagram.bundles_sent.unwrap_or(0), datagram.copies.clone());
                    match self.heard(datagram) {
                        Ok(Some((sequence, bundle))) => {
                            let pushed = input.incoming.push(sequence, &bundle, &copies, Instant::now());
                            pushed.map_err(|e| Self::close(Reason::Protocol, e.to_string()))?;
                        }
                        Ok(None) => {}
                        Err(close) if close.reason == Reason::Done && done.is_none() => {
                            done = Some((close, sent, Instant::now() + STRAGGLERS));
                        }
                        // The publisher repeats itself until it is answered.
                        Err(_) if done.is_some() => {}
                        Err(close) => return Err(close),
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            if now.duration_since(reported) >= REPORT {
                reported = now;
                let report = input.incoming.report();
                self.shared.counters.udp.seen(&last, &report, report.expected, frame_ms(&profile));
                last = report;
                self.send(&Datagram { session: self.peer.session, report: Some(report), ..Datagram::default() });
            }
            let limit = self.shared.config.borrow().limits.timeouts.idle;
            if now.duration_since(self.heard) > limit {
                return Err(Self::close(Reason::Timeout, format!("nothing heard within {limit:?}")));
            }
        }
    }
}

/// What a listener is sent of a bundle.
fn audible<'a>(
    plainly: &mut Option<Plainly>,
    heard: &'a Heard,
) -> Result<Option<Cow<'a, PackedBundle>>, crate::bitstream::BitstreamError> {
    plainly.as_mut().map_or_else(|| Ok(Some(Cow::Borrowed(&**heard))), |p| p.bundle(heard))
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

fn frame_ms(profile: &crate::codec::Profile) -> u64 {
    profile.media_time(1).as_millis() as u64
}
