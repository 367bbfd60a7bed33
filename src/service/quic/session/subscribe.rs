//! A listener's session: from the hub to datagrams.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::{Coder, Connection, Said, TICK, frame_ms, unfit};
use crate::jitter::Report;
use crate::profile::Profile;
use crate::service::Counters;
use crate::service::hub::{Ended, Heard, Listener};
use crate::service::plainly::Plainly;
use crate::service::quic::counters::ListenerState;
use crate::service::quic::flow::Outgoing;
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

    async fn forward(&mut self, mut listener: Listener, out: &mut Outgoing, number: u64) -> Result<(), Close> {
        let (profile, mut wanted) = (self.shared.engine.profile(), self.wanted());
        listener.want(wanted);
        self.note(number, out, Duration::ZERO);
        // Who knows nothing of silence gets bundles of it.
        let mut plainly = (!self.wire.silence).then(|| {
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
                        let Some(bundle) = audible(&mut plainly, &heard).map_err(unfit)? else { continue };
                        self.send_bundle(&bundle, out, &mut listener).await?;
                    }
                    return Err(Self::close(Reason::ShuttingDown, "the server is shutting down"));
                }
                Ok(()) = self.config.changed() => None,
                received = self.link.receive() => {
                    if let Said::Report(report) = self.heard(received)? {
                        out.rate.report(&report, Instant::now());
                        self.shared.counters.quic.seen(&last, &report, out.sent(), frame_ms(&profile));
                        last = report;
                        self.note(number, out, report.jitter);
                    }
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
            self.still_allowed()?;
            let now = Instant::now();
            match next {
                Some(Ok(heard)) => {
                    self.shared.skipped(&mut listener, &self.hello.stream);
                    if let Some(bundle) = audible(&mut plainly, &heard).map_err(unfit)? {
                        self.send_bundle(&bundle, out, &mut listener).await?;
                    }
                    listener.delivered(&heard);
                }
                Some(Err(Ended::Stream)) => {
                    return Err(Self::close(Reason::StreamEnded, "the publisher ended the stream"));
                }
                Some(Err(Ended::Slow)) => {
                    return Err(Self::close(Reason::SlowConsumer, "bundles were not taken fast enough"));
                }
                None => {
                    out.rate.tick(now);
                    self.still_there(now)?;
                    if let Some(announcement) = out.announcement(now) {
                        self.tell(&announcement).await?;
                    }
                }
            }
        }
    }

    /// Sends a bundle to a listener.
    async fn send_bundle(
        &mut self,
        bundle: &PackedBundle,
        out: &mut Outgoing,
        listener: &mut Listener,
    ) -> Result<(), Close> {
        // Packed, so many stages always have one size; of more, their number would say something.
        let constant = listener.constant();
        let bundle = bundle.limited(constant.unwrap_or(bundle.stages)).map_err(unfit)?;
        for part in out.pack(&bundle, Instant::now()).map_err(unfit)? {
            let datagram = match &mut self.coder {
                Coder::Listener(coder, _) if !part.bundle.is_background() => {
                    if constant.is_some() {
                        part.plain(self.wire.is_graded_when_coded()).map_err(unfit)?
                    } else {
                        let trial = coder.encode(&part.bundle, &self.shared.counters.coder_runs).await;
                        let (coded, checked) = trial.map_err(Close::from)?.bundle();
                        Counters::add(&self.shared.counters.coded);
                        listener.took(part.bundle.codes(), coded.payload.len());
                        part.coded(coded, checked)
                    }
                }
                _ => part.packed(),
            };
            self.send(datagram);
        }
        Ok(())
    }
}

/// What a listener is sent of a bundle.
fn audible<'a>(
    plainly: &mut Option<Plainly>,
    heard: &'a Heard,
) -> Result<Option<Cow<'a, PackedBundle>>, crate::bitstream::BitstreamError> {
    plainly.as_mut().map_or_else(|| Ok(Some(Cow::Borrowed(&**heard))), |p| p.bundle(heard))
}
