//! Figures for Prometheus.

use std::fmt::{self, Debug};
use std::sync::atomic::Ordering;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Shared;
use super::access::View;
use super::cluster::Cluster;
use super::page::Page;
use crate::capture::device::DeviceStats;
use crate::profile::Profile;

/// The kind of what [`prometheus`] gives.
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Prometheus' text format, version 0.0.4.
pub(super) fn prometheus(shared: &Shared, view: View) -> String {
    let mut registry = Registry::with_prefix("undertone");
    registry.register_collector(Box::new(State { shared: shared.clone(), view }));
    let mut page = String::with_capacity(8 << 10);
    // Writing into a string cannot fail.
    let _ = prometheus_text::encode(&mut page, &registry);
    page
}

/// What is told of the daemon's state at the moment that it is asked for.
struct State {
    shared: Shared,
    view: View,
}

impl Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page::new(encoder);
        self.daemon(&mut page)?;
        self.engine(&mut page)?;
        if let Some(cluster) = &self.shared.cluster {
            nats(&mut page, cluster)?;
        }
        self.streams(&mut page)?;
        self.devices(&mut page)?;
        self.shared.counters.quic.page(&mut page, &self.view)
    }
}

impl State {
    fn daemon(&self, page: &mut Page<'_>) -> fmt::Result {
        let c = &self.shared.counters;
        let (streams, listeners) = self.shared.hub.count();
        page.gauge("streams", "Streams published now.", streams as f64)?;
        page.gauge("listeners", "Listeners of all streams.", listeners as f64)?;
        let running = c.recorded.running.load(Ordering::Relaxed);
        page.gauge("recordings", "Streams that are recorded.", running as f64)?;
        for (name, help, value) in [
            ("connections", "Connections accepted.", &c.connections),
            ("refused", "Connections and sessions refused: no room, a taken name, no right.", &c.refused),
            ("hostile", "Sessions closed for what the peer sent or did not send.", &c.hostile),
            ("slow_listeners", "Listeners closed because they did not keep up.", &c.slow),
            ("stale_bundles", "Bundles of live sound that were dropped: later than limits.max_lag_ms.", &c.stale),
            ("skipped_frames", "Frames that listeners did without because they did not keep up.", &c.skipped),
            ("bundles", "Bundles published.", &c.bundles),
            ("coded_bundles", "Coded bundles sent to listeners.", &c.coded),
            ("coder_runs", "Bundles coded for them: once for all who get the same.", &c.coder_runs),
            ("padding_bytes", "Bytes sent to listeners that only make messages equally long.", &c.padding),
            ("recorded_bytes", "Bytes written to recordings.", &c.recorded.bytes),
            ("recorded_files", "Files of recordings begun.", &c.recorded.files),
            ("recorded_files_deleted", "Recordings deleted to stay below record.disk_mb.", &c.recorded.deleted),
            ("recorded_lost_bundles", "Bundles that a disk did not take in time.", &c.recorded.lost),
            ("recording_errors", "Times that a recording failed or fell behind.", &c.recorded.errors),
        ] {
            page.counter(name, help, value.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn engine(&self, page: &mut Page<'_>) -> fmt::Result {
        let engine = &self.shared.engine;
        let ((used, slots), counters, phases) = (engine.slots(), engine.counters(), engine.phases());
        page.gauge("engine_slots_used", "Streams that are encoded or decoded here.", used as f64)?;
        page.gauge("engine_slots", "Streams that may be encoded or decoded here.", slots as f64)?;
        let help = "Share of their stages that streams encoded here have; below 1 the engine does not keep up.";
        page.gauge("stage_share", help, engine.stage_share())?;
        if let Some(steps) = engine.effort() {
            let help = "Steps of the search for streams encoded here: as many as there is time for.";
            page.gauge("effort", help, f64::from(steps))?;
        }
        for (name, help, value) in [
            ("engine_jobs", "Jobs finished.", counters.jobs),
            ("searched_bundles", "Bundles that were searched for.", engine.searched()),
            ("engine_batches", "Network calls.", counters.batches),
            ("engine_cancelled", "Jobs dropped because their stream was gone.", counters.cancelled),
            ("engine_late", "Jobs that finished after their deadline.", counters.late),
            ("engine_tight", "Jobs that took more than half of the time they had.", counters.tight),
        ] {
            page.counter(name, help, value)?;
        }
        let help = "Time by phase: queue (a job), compute (a batch), send (a message).";
        let send = &self.shared.counters.send;
        let all = [("queue", &phases.queue), ("compute", &phases.compute), ("send", send)];
        page.histograms("phase_seconds", help, all)
    }

    fn streams(&self, page: &mut Page<'_>) -> fmt::Result {
        let bits = (1..).zip(&self.shared.counters.stage_bits);
        let bits = bits.map(|(stage, bits): (u32, _)| ([("stage", stage)], bits.load(Ordering::Relaxed) as f64));
        page.family("stage_bits", (MetricType::Counter, "Bits of code published, by stage of the quantiser."), bits)?;
        let shown: Vec<_> = self.shared.hub.list().into_iter().filter(|s| self.view.shows(&s.name)).collect();
        let help =
            "How long ago what listeners get was recorded, as far as this daemon can tell: most of the last second.";
        let ages = shown.iter().filter_map(|s| Some(([("stream", s.name.as_str())], s.age?.as_secs_f64())));
        page.family("stream_age_seconds", (MetricType::Gauge, help), ages)?;
        let seconds = |frames: u64| frames as f64 / f64::from(Profile::FRAMES_PER_SECOND);
        let silent = shown.iter().map(|s| ([("stream", s.name.as_str())], seconds(s.silent)));
        let help = "Silence of a stream, which was described and not sent.";
        page.family("stream_silent_seconds", (MetricType::Counter, help), silent)
    }

    fn devices(&self, page: &mut Page<'_>) -> fmt::Result {
        use MetricType::{Counter, Gauge};
        type Figure = (&'static str, MetricType, &'static str, fn(&DeviceStats) -> f64);
        let figures: [Figure; 6] = [
            ("open", Gauge, "Whether the device is open.", |s| f64::from(u8::from(s.is_open()))),
            ("ring_seconds", Gauge, "Audio between the device and the codec.", DeviceStats::fill_s),
            ("overruns", Counter, "Times that samples were dropped for lack of room.", |s| s.overruns() as f64),
            ("underruns", Counter, "Times that silence took the place of late samples.", |s| s.underruns() as f64),
            ("reopened", Counter, "Times that the device was lost and opened again.", |s| s.reopened() as f64),
            ("drift_ppm", Gauge, "How much faster the audio's source is than its sink.", DeviceStats::drift_ppm),
        ];
        let shown: Vec<_> = self.shared.devices.iter().filter(|d| self.view.shows(&d.port.stream)).collect();
        for (name, kind, help, value) in figures.into_iter().filter(|_| !shown.is_empty()) {
            let values = shown.iter().map(|d| {
                let (device, stream) = (d.port.device.to_string(), d.port.stream.as_str().to_owned());
                let labels = [("direction", d.direction.to_owned()), ("device", device), ("stream", stream)];
                (labels, value(&d.stats))
            });
            page.family(&format!("device_{name}"), (kind, help), values)?;
        }
        Ok(())
    }
}

fn nats(page: &mut Page<'_>, cluster: &Cluster) -> fmt::Result {
    let c = cluster.bus().counters();
    let connected = f64::from(u8::from(cluster.bus().is_connected()));
    page.gauge("nats_connected", "1 while NATS can be reached.", connected)?;
    page.gauge("nats_queued", "Bundles on their way to NATS.", cluster.queued() as f64)?;
    page.gauge("nats_relayed_streams", "Streams fetched from other daemons.", cluster.relayed() as f64)?;
    let help = "Layers of streams fetched from other daemons.";
    page.gauge("nats_subscriptions", help, cluster.layers() as f64)?;
    for (name, help, value) in [
        ("nats_published", "Bundles published to other daemons.", &c.published),
        ("nats_messages", "Messages of these bundles.", &c.messages),
        ("nats_bytes", "Bytes of these messages.", &c.bytes),
        ("nats_dropped", "Bundles not published: NATS was away or too slow.", &c.dropped),
        ("nats_received", "Bundles of other daemons passed on to listeners.", &c.received),
        ("nats_lost", "Bundles of other daemons that never came.", &c.lost),
        ("nats_malformed", "Messages that made no sense or were of another model.", &c.malformed),
        ("nats_overflowed", "Times that a subscription was full.", &c.overflowed),
        ("nats_connects", "Connections to NATS made, the first one included.", &c.connects),
    ] {
        page.counter(name, help, value.load(Ordering::Relaxed))?;
    }
    Ok(())
}
