//! A listener's session: from the hub to datagrams.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Coder, Connection, Said, TICK, frame_ms};
use crate::jitter::Report;
use crate::service::Counters;
use crate::service::ending::Continued;
use crate::service::hub::{Ended, Heard, Listener};
use crate::service::quic::counters::ListenerState;
use crate::service::quic::flow::{Outgoing, Part};
use crate::service::until::until;
use crate::service::wishes::{Wishes, unfit};
use crate::session::{Close, PackedBundle, Reason};
use crate::units::StageCount;

impl Connection {
    pub(super) fn wanted(&self) -> StageCount {
        let most = self.shared.engine.profile().stages;
        self.stages.map_or(most, |s| s.min(most))
    }

    /// What operators see of a listener.
    fn note(&self, number: u64, out: &Outgoing, jitter: Duration) {
        let (stages, loss) = (out.rate.stages().value(), out.rate.loss());
        let (stream, jitter_s) = (self.hello.stream.clone(), jitter.as_secs_f64());
        let state = ListenerState { stream, stages, loss, jitter_s };
        self.shared.counters.quic.listener(number, Some(state));
    }

    /// Sends the stream to a listener, and says how much that was.
    pub(super) async fn send_out(&mut self, listener: Listener, number: u64) -> Result<(), Close> {
        let mut out = Outgoing::new(self.wanted(), self.wire, Instant::now());
        let result = self.forward(listener, &mut out, number).await;
        let _ = self.link.tell(&out.count()).await;
        result
    }

    /// What a listener asked for.
    fn way<'a>(&self, mut listener: Listener, out: &'a mut Outgoing) -> Way<'a> {
        listener.want(self.wanted());
        let wishes = Wishes::new(&self.hello, self.wire.silence, &mut listener);
        Way { wanted: self.wanted(), listener, out, wishes }
    }

    async fn forward(&mut self, listener: Listener, out: &mut Outgoing, number: u64) -> Result<(), Close> {
        let profile = self.shared.engine.profile();
        let mut way = self.way(listener, out);
        self.note(number, way.out, Duration::ZERO);
        let mut last = Report::default();
        let mut tick = tokio::time::interval(TICK);
        loop {
            let due = way.wishes.due();
            let next = tokio::select! {
                biased;
                () = self.shared.stop_output.cancelled() => {
                    while let Some(heard) = way.listener.queued() {
                        self.send_heard(&heard, &mut way).await?;
                    }
                    self.send_held(&mut way).await?;
                    return Err(Self::close(Reason::ShuttingDown, "the server is shutting down"));
                }
                Ok(()) = self.config.changed() => None,
                received = self.link.receive() => {
                    if let Said::Report(report) = self.heard(received)? {
                        way.out.rate.report(&report, Instant::now());
                        self.shared.counters.quic.seen(&last, &report, way.out.sent(), frame_ms(&profile));
                        last = report;
                        self.note(number, way.out, report.jitter);
                    }
                    way.want(self.wanted());
                    continue;
                }
                () = until(due) => {
                    self.send_held(&mut way).await?;
                    continue;
                }
                _ = tick.tick() => None,
                next = way.listener.next() => Some(next),
            };
            // Asked whatever woke us: it may be what the reload did to the publisher.
            self.still_allowed()?;
            match next {
                Some(Ok(heard)) => {
                    self.shared.skipped(&mut way.listener, &self.hello.stream);
                    self.send_heard(&heard, &mut way).await?;
                    way.listener.delivered(&heard);
                }
                Some(Err(Ended::Stream)) => {
                    self.continuation(&mut way).await?;
                    return Err(Self::close(Reason::StreamEnded, "the publisher ended the stream"));
                }
                Some(Err(Ended::Slow)) => {
                    return Err(Self::close(Reason::SlowConsumer, "bundles were not taken fast enough"));
                }
                None => self.tick(way.out).await?,
            }
        }
    }

    async fn tick(&mut self, out: &mut Outgoing) -> Result<(), Close> {
        let now = Instant::now();
        out.rate.tick(now);
        self.still_there(now)?;
        match out.announcement(now) {
            Some(announcement) => self.tell(&announcement).await,
            None => Ok(()),
        }
    }

    /// Sends what the hub has for a listener.
    async fn send_heard(&mut self, heard: &Heard, way: &mut Way<'_>) -> Result<(), Close> {
        match way.wishes.audible(heard)? {
            Some(bundle) => self.send_bundle(&bundle, way).await,
            None => Ok(()),
        }
    }

    /// Sends a bundle to a listener, or keeps it until others have joined it.
    async fn send_bundle(&mut self, bundle: &PackedBundle, way: &mut Way<'_>) -> Result<(), Close> {
        for bundle in way.wishes.ready(bundle, self.wanted(), Instant::now())? {
            self.send_joined(&bundle, way).await?;
        }
        Ok(())
    }

    /// Sends what waits for bundles to join.
    async fn send_held(&mut self, way: &mut Way<'_>) -> Result<(), Close> {
        match way.wishes.held() {
            Some(bundle) => self.send_joined(&bundle, way).await,
            None => Ok(()),
        }
    }

    async fn send_joined(&mut self, bundle: &PackedBundle, way: &mut Way<'_>) -> Result<(), Close> {
        for part in way.out.pack(bundle, way.listener.constant(), Instant::now()).map_err(unfit)? {
            self.send_part(part, &mut way.listener).await?;
        }
        Ok(())
    }

    async fn send_part(&mut self, part: Part, listener: &mut Listener) -> Result<(), Close> {
        for attempt in part.attempts() {
            let attempt = attempt.map_err(unfit)?;
            let made = match &mut self.coder {
                Coder::Listener(coder, _) if !attempt.bundle.is_background() => {
                    let trial = coder.encode(&attempt.bundle, &self.shared.counters.coder_runs).await;
                    let (coded, checked) = trial.map_err(Close::from)?.bundle();
                    let bytes = coded.payload.len();
                    let made = attempt.coded(coded, checked);
                    if made.is_some() {
                        Counters::add(&self.shared.counters.coded);
                        listener.took(attempt.bundle.codes(), bytes);
                    }
                    made
                }
                _ => attempt.packed(),
            };
            if let Some((datagram, padding)) = made {
                self.shared.counters.padding.fetch_add(padding as u64, Ordering::Relaxed);
                self.send(datagram);
                return Ok(());
            }
        }
        Err(Self::close(Reason::Protocol, "not even one stage fits a datagram of this stream's size"))
    }

    /// Sends the continuation that the listener asked for, in real time.
    async fn continuation(&mut self, way: &mut Way<'_>) -> Result<(), Close> {
        self.send_held(way).await?;
        let Some(ending) = way.wishes.ending.take() else { return Ok(()) };
        let Some(mut made) = Continued::start(ending, &self.shared).await? else { return Ok(()) };
        loop {
            let next = made.next();
            tokio::pin!(next);
            let next = loop {
                tokio::select! {
                    received = self.link.receive() => {
                        self.heard(received)?;
                    }
                    next = &mut next => break next?,
                }
            };
            let Some(bundle) = next else { return self.send_held(way).await };
            self.send_bundle(&bundle, way).await?;
        }
    }
}

/// The way of a stream to a listener.
struct Way<'a> {
    wanted: StageCount,
    listener: Listener,
    out: &'a mut Outgoing,
    wishes: Wishes,
}

impl Way<'_> {
    fn want(&mut self, stages: StageCount) {
        if std::mem::replace(&mut self.wanted, stages) != stages {
            self.out.want(stages);
            self.listener.want(stages);
        }
    }
}
