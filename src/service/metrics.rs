//! What the daemon tells about itself: Prometheus text, a table, JSON.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::Shared;
use super::access::View;
use super::cluster::Cluster;
use crate::capture::device::DeviceStats;
use crate::engine::Histogram;
use crate::profile::Profile;

/// Why no new work should come; None if it may.
pub(super) fn unready(shared: &Shared) -> Option<String> {
    if let Some(reason) = shared.engine.ended() {
        return Some(format!("the engine ended: {reason}"));
    }
    if shared.stop_input.is_cancelled() {
        return Some("shutting down".to_owned());
    }
    shared.counters.recorded.failing().map(|why| format!("recording fails: {why}"))
}

/// Writing into a String cannot fail, so results are dropped here.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP undertone_{name} {help}\n# TYPE undertone_{name} {kind}");
    }

    fn number(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.head(name, kind, help);
        let _ = writeln!(self.0, "undertone_{name} {value}");
    }

    fn histogram(&mut self, phase: &str, times: &Histogram) {
        let (buckets, count, sum) = times.read();
        for (end, n) in buckets {
            let _ = writeln!(self.0, "undertone_phase_seconds_bucket{{phase=\"{phase}\",le=\"{end}\"}} {n}");
        }
        let _ = writeln!(self.0, "undertone_phase_seconds_bucket{{phase=\"{phase}\",le=\"+Inf\"}} {count}");
        let _ = writeln!(self.0, "undertone_phase_seconds_sum{{phase=\"{phase}\"}} {sum}");
        let _ = writeln!(self.0, "undertone_phase_seconds_count{{phase=\"{phase}\"}} {count}");
    }
}

/// The kind of what `prometheus` gives.
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Prometheus' text format, version 0.0.4.
pub(super) fn prometheus(shared: &Shared, view: &View) -> String {
    let mut page = Page(String::with_capacity(8 << 10));
    let c = &shared.counters;
    let (streams, listeners) = shared.hub.count();
    let (used, slots) = shared.engine.slots();
    let engine = shared.engine.counters();
    page.number("streams", "gauge", "Streams published now.", streams as f64);
    page.number("listeners", "gauge", "Listeners of all streams.", listeners as f64);
    page.number("engine_slots_used", "gauge", "Streams that are encoded or decoded here.", used as f64);
    page.number("engine_slots", "gauge", "Streams that may be encoded or decoded here.", slots as f64);
    let help = "Share of their stages that streams encoded here have; below 1 the engine does not keep up.";
    page.number("stage_share", "gauge", help, shared.engine.stage_share());
    if let Some(steps) = shared.engine.effort() {
        let help = "Steps of the search for streams encoded here: as many as there is time for.";
        page.number("effort", "gauge", help, f64::from(steps));
    }
    let running = c.recorded.running.load(Ordering::Relaxed);
    page.number("recordings", "gauge", "Streams that are recorded.", running as f64);
    for (name, help, value) in [
        ("connections_total", "Connections accepted.", &c.connections),
        ("refused_total", "Connections and sessions refused: no room, a taken name, no right.", &c.refused),
        ("hostile_total", "Sessions closed for what the peer sent or did not send.", &c.hostile),
        ("slow_listeners_total", "Listeners closed because they did not keep up.", &c.slow),
        ("stale_bundles_total", "Bundles of live sound that were dropped: later than limits.max_lag_ms.", &c.stale),
        ("skipped_frames_total", "Frames that listeners did without because they did not keep up.", &c.skipped),
        ("bundles_total", "Bundles published.", &c.bundles),
        ("coded_bundles_total", "Coded bundles sent to listeners.", &c.coded),
        ("coder_runs_total", "Bundles coded for them: once for all who get the same.", &c.coder_runs),
        ("recorded_bytes_total", "Bytes written to recordings.", &c.recorded.bytes),
        ("recorded_files_total", "Files of recordings begun.", &c.recorded.files),
        ("recorded_files_deleted_total", "Recordings deleted to stay below record.disk_mb.", &c.recorded.deleted),
        ("recorded_lost_bundles_total", "Bundles that a disk did not take in time.", &c.recorded.lost),
        ("recording_errors_total", "Times that a recording failed or fell behind.", &c.recorded.errors),
    ] {
        page.number(name, "counter", help, value.load(Ordering::Relaxed) as f64);
    }
    for (name, help, value) in [
        ("engine_jobs_total", "Jobs finished.", engine.jobs),
        ("searched_bundles_total", "Bundles that were searched for.", shared.engine.searched()),
        ("engine_batches_total", "Network calls.", engine.batches),
        ("engine_cancelled_total", "Jobs dropped because their stream was gone.", engine.cancelled),
        ("engine_late_total", "Jobs that finished after their deadline.", engine.late),
        ("engine_tight_total", "Jobs that took more than half of the time they had.", engine.tight),
    ] {
        page.number(name, "counter", help, value as f64);
    }
    if let Some(cluster) = &shared.cluster {
        nats(&mut page, cluster);
    }
    page.head("stage_bits_total", "counter", "Bits of code published, by stage of the quantiser.");
    for (stage, bits) in c.stage_bits.iter().enumerate() {
        let bits = bits.load(Ordering::Relaxed);
        let _ = writeln!(page.0, "undertone_stage_bits_total{{stage=\"{}\"}} {bits}", stage + 1);
    }
    ages(&mut page, shared, view);
    silences(&mut page, shared, view);
    devices(&mut page, shared, view);
    c.udp.page(&mut page.0, view);
    page.head("phase_seconds", "histogram", "Time by phase: queue (a job), compute (a batch), send (a message).");
    let phases = shared.engine.phases();
    page.histogram("queue", &phases.queue);
    page.histogram("compute", &phases.compute);
    page.histogram("send", &c.send);
    page.0
}

/// How late each stream is.
fn ages(page: &mut Page, shared: &Shared, view: &View) {
    let help = "How long ago what listeners get was recorded, as far as this daemon can tell: most of the last second.";
    page.head("stream_age_seconds", "gauge", help);
    for s in shared.hub.list().into_iter().filter(|s| view.shows(&s.name)) {
        if let Some(age) = s.age {
            let _ = writeln!(page.0, "undertone_stream_age_seconds{{stream=\"{}\"}} {}", s.name, age.as_secs_f64());
        }
    }
}

/// How much of each stream was silence.
fn silences(page: &mut Page, shared: &Shared, view: &View) {
    let help = "Silence of a stream, which was described and not sent.";
    page.head("stream_silent_seconds_total", "counter", help);
    for s in shared.hub.list().into_iter().filter(|s| view.shows(&s.name)) {
        let seconds = s.silent as f64 / f64::from(Profile::FRAMES_PER_SECOND);
        let _ = writeln!(page.0, "undertone_stream_silent_seconds_total{{stream=\"{}\"}} {seconds}", s.name);
    }
}

/// One line a device and figure. Names have no characters that need escaping (src/config/device.rs).
fn devices(page: &mut Page, shared: &Shared, view: &View) {
    type Figure = (&'static str, &'static str, &'static str, fn(&DeviceStats) -> f64);
    let figures: [Figure; 6] = [
        ("open", "gauge", "Whether the device is open.", |s| f64::from(u8::from(s.is_open()))),
        ("ring_seconds", "gauge", "Audio between the device and the codec.", DeviceStats::fill_s),
        ("overruns_total", "counter", "Times that samples were dropped for lack of room.", |s| s.overruns() as f64),
        ("underruns_total", "counter", "Times that silence took the place of late samples.", |s| s.underruns() as f64),
        ("reopened_total", "counter", "Times that the device was lost and opened again.", |s| s.reopened() as f64),
        ("drift_ppm", "gauge", "How much faster the audio's source is than its sink.", DeviceStats::drift_ppm),
    ];
    let shown: Vec<_> = shared.devices.iter().filter(|d| view.shows(&d.port.stream)).collect();
    for (name, kind, help, value) in figures.into_iter().filter(|_| !shown.is_empty()) {
        page.head(&format!("device_{name}"), kind, help);
        for d in &shown {
            let (direction, port, value) = (d.direction, &d.port, value(&d.stats));
            let labels = format!("direction=\"{direction}\",device=\"{}\",stream=\"{}\"", port.device, port.stream);
            let _ = writeln!(page.0, "undertone_device_{name}{{{labels}}} {value}");
        }
    }
}

fn nats(page: &mut Page, cluster: &Cluster) {
    let c = cluster.bus().counters();
    let connected = f64::from(u8::from(cluster.bus().is_connected()));
    page.number("nats_connected", "gauge", "1 while NATS can be reached.", connected);
    page.number("nats_queued", "gauge", "Bundles on their way to NATS.", cluster.queued() as f64);
    page.number("nats_relayed_streams", "gauge", "Streams fetched from other daemons.", cluster.relayed() as f64);
    page.number(
        "nats_subscriptions",
        "gauge",
        "Layers of streams fetched from other daemons.",
        cluster.layers() as f64,
    );
    for (name, help, value) in [
        ("nats_published_total", "Bundles published to other daemons.", &c.published),
        ("nats_messages_total", "Messages of these bundles.", &c.messages),
        ("nats_bytes_total", "Bytes of these messages.", &c.bytes),
        ("nats_dropped_total", "Bundles not published: NATS was away or too slow.", &c.dropped),
        ("nats_received_total", "Bundles of other daemons passed on to listeners.", &c.received),
        ("nats_lost_total", "Bundles of other daemons that never came.", &c.lost),
        ("nats_malformed_total", "Messages that made no sense or were of another model.", &c.malformed),
        ("nats_overflowed_total", "Times that a subscription was full.", &c.overflowed),
        ("nats_connects_total", "Connections to NATS made, the first one included.", &c.connects),
    ] {
        page.number(name, "counter", help, value.load(Ordering::Relaxed) as f64);
    }
}

/// For people.
pub(super) fn table(shared: &Shared, view: &View) -> String {
    let (used, slots) = shared.engine.slots();
    let mut page = Page(String::new());
    let state = unready(shared).unwrap_or_else(|| "ready".to_owned());
    let effort = shared.engine.effort().map_or_else(String::new, |steps| format!("; effort {steps}"));
    let _ =
        writeln!(page.0, "undertone {}: {state}; {used} of {slots} engine slots{effort}", env!("CARGO_PKG_VERSION"));
    let _ = writeln!(
        page.0,
        "{:<32} {:>9} {:>9} {:>10} {:>12} {:>7} {:>9} {:>8}",
        "stream", "published", "listeners", "bundles", "bytes", "age ms", "silent s", "saved s"
    );
    for s in shared.hub.list().into_iter().filter(|s| view.shows(&s.name)) {
        let published = if s.published { "yes" } else { "no" };
        let name = s.name.as_str();
        let age = s.age.map_or_else(|| "-".to_owned(), |a| format!("{:.0}", a.as_secs_f64() * 1e3));
        let silent = s.silent as f64 / f64::from(Profile::FRAMES_PER_SECOND);
        let saved = s.saved_s.map_or_else(|| "-".to_owned(), |s| format!("{s:.1}"));
        let _ = writeln!(
            page.0,
            "{name:<32} {published:>9} {:>9} {:>10} {:>12} {age:>7} {silent:>9.1} {saved:>8}",
            s.listeners, s.bundles, s.bytes
        );
    }
    let shown: Vec<_> = shared.devices.iter().filter(|d| view.shows(&d.port.stream)).collect();
    if !shown.is_empty() {
        let _ = writeln!(
            page.0,
            "\n{:<32} {:>9} {:<20} {:>5} {:>8} {:>9} {:>9} {:>8}",
            "device", "direction", "stream", "open", "ring ms", "overruns", "underruns", "ppm"
        );
    }
    for d in shown {
        let (s, open) = (&d.stats, if d.stats.is_open() { "yes" } else { "no" });
        let _ = writeln!(
            page.0,
            "{:<32} {:>9} {:<20} {open:>5} {:>8.0} {:>9} {:>9} {:>8.0}",
            d.port.device,
            d.direction,
            d.port.stream.as_str(),
            s.fill_s() * 1e3,
            s.overruns(),
            s.underruns(),
            s.drift_ppm()
        );
    }
    shared.counters.udp.table(&mut page.0, view);
    page.0
}

/// For programs. Names of streams have no characters that JSON escapes.
pub(super) fn json(shared: &Shared, view: &View) -> String {
    let (used, slots) = shared.engine.slots();
    let stream = |s: super::hub::StreamState| {
        format!(
            "{{\"stream\":\"{}\",\"published\":{},\"listeners\":{},\"bundles\":{},\"payload_bytes\":{},\"age_s\":{},\
             \"silent_s\":{},\"saved_s\":{}}}",
            s.name,
            s.published,
            s.listeners,
            s.bundles,
            s.bytes,
            s.age.map_or_else(|| "null".to_owned(), |a| a.as_secs_f64().to_string()),
            s.silent as f64 / f64::from(Profile::FRAMES_PER_SECOND),
            s.saved_s.map_or_else(|| "null".to_owned(), |s| format!("{s:.2}"))
        )
    };
    let listed = shared.hub.list().into_iter().filter(|s| view.shows(&s.name));
    let streams = listed.map(stream).collect::<Vec<_>>().join(",");
    let device = |d: &super::shared::DeviceState| {
        let s = &d.stats;
        format!(
            "{{\"device\":\"{}\",\"direction\":\"{}\",\"stream\":\"{}\",\"open\":{},\"ring_s\":{},\"overruns\":{},\
             \"underruns\":{},\"reopened\":{},\"drift_ppm\":{}}}",
            d.port.device,
            d.direction,
            d.port.stream,
            s.is_open(),
            s.fill_s(),
            s.overruns(),
            s.underruns(),
            s.reopened(),
            s.drift_ppm()
        )
    };
    let effort = shared.engine.effort().map_or_else(|| "null".to_owned(), |steps| steps.to_string());
    let shown = shared.devices.iter().filter(|d| view.shows(&d.port.stream));
    let devices = shown.map(device).collect::<Vec<_>>().join(",");
    format!(
        "{{\"version\":\"{}\",\"ready\":{},\"engine_slots_used\":{used},\"engine_slots\":{slots},\"effort\":{effort},\"streams\":[{streams}],\"devices\":[{devices}],\"udp_listeners\":{}}}\n",
        env!("CARGO_PKG_VERSION"),
        unready(shared).is_none(),
        shared.counters.udp.json(view),
    )
}
