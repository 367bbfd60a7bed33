//! What the daemon does now, as a table for people and as JSON for programs.

use serde::Serialize;

use super::Shared;
use super::access::View;
use super::hub::StreamState;
use super::quic::ListenerState;
use super::shared::DeviceState;
use crate::profile::Profile;
use crate::table;

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

/// What whoever asks may see.
#[derive(Serialize)]
pub(super) struct State {
    version: &'static str,
    ready: bool,
    #[serde(skip)]
    unready: Option<String>,
    engine_slots_used: usize,
    engine_slots: usize,
    /// Steps of the search; None where there is none.
    effort: Option<u32>,
    streams: Vec<Stream>,
    devices: Vec<Device>,
    quic_listeners: Vec<ListenerState>,
}

#[derive(Serialize)]
struct Stream {
    stream: String,
    published: bool,
    listeners: usize,
    bundles: u64,
    payload_bytes: u64,
    age_s: Option<f64>,
    silent_s: f64,
    saved_s: Option<f64>,
}

impl From<StreamState> for Stream {
    fn from(s: StreamState) -> Self {
        Self {
            stream: s.name.to_string(),
            published: s.published,
            listeners: s.listeners,
            bundles: s.bundles,
            payload_bytes: s.bytes,
            age_s: s.age.map(|a| a.as_secs_f64()),
            silent_s: s.silent as f64 / f64::from(Profile::FRAMES_PER_SECOND),
            saved_s: s.saved_s,
        }
    }
}

#[derive(Serialize)]
struct Device {
    device: String,
    direction: &'static str,
    stream: String,
    open: bool,
    ring_s: f64,
    overruns: u64,
    underruns: u64,
    reopened: u64,
    drift_ppm: f64,
}

impl From<&DeviceState> for Device {
    fn from(d: &DeviceState) -> Self {
        let s = &d.stats;
        Self {
            device: d.port.device.to_string(),
            direction: d.direction,
            stream: d.port.stream.to_string(),
            open: s.is_open(),
            ring_s: s.fill_s(),
            overruns: s.overruns(),
            underruns: s.underruns(),
            reopened: s.reopened(),
            drift_ppm: s.drift_ppm(),
        }
    }
}

impl State {
    pub(super) fn of(shared: &Shared, view: &View) -> Self {
        let ((engine_slots_used, engine_slots), unready) = (shared.engine.slots(), unready(shared));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            ready: unready.is_none(),
            unready,
            engine_slots_used,
            engine_slots,
            effort: shared.engine.effort(),
            streams: shared.hub.list().into_iter().filter(|s| view.shows(&s.name)).map(Stream::from).collect(),
            devices: shared.devices.iter().filter(|d| view.shows(&d.port.stream)).map(Device::from).collect(),
            quic_listeners: shared.counters.quic.listeners(view),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).map_or_else(|e| format!("{{\"error\":\"{e}\"}}\n"), |json| json + "\n")
    }

    /// For people: empty tables are left out, but for the streams'.
    pub(super) fn table(&self) -> String {
        let state = self.unready.as_deref().unwrap_or("ready");
        let effort = self.effort.map_or_else(String::new, |steps| format!("; effort {steps}"));
        let (version, used, slots) = (self.version, self.engine_slots_used, self.engine_slots);
        let mut page = format!("undertone {version}: {state}; {used} of {slots} engine slots{effort}\n");
        let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
        let or_dash = |v: Option<f64>, digits: usize| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"));
        let head = ["stream", "published", "listeners", "bundles", "bytes", "age ms", "silent s", "saved s"];
        let streams = self.streams.iter().map(|s| {
            let numbers = [s.listeners.to_string(), s.bundles.to_string(), s.payload_bytes.to_string()];
            let times = [or_dash(s.age_s.map(|a| a * 1e3), 0), format!("{:.1}", s.silent_s), or_dash(s.saved_s, 1)];
            [s.stream.clone(), yes(s.published)].into_iter().chain(numbers).chain(times).collect()
        });
        page += &table::lines(&head, &streams.collect::<Vec<Vec<_>>>());
        let head = ["device", "direction", "stream", "open", "ring ms", "overruns", "underruns", "ppm"];
        let devices = self.devices.iter().map(|d| {
            let names = [d.device.clone(), d.direction.to_owned(), d.stream.clone(), yes(d.open)];
            let ring = format!("{:.0}", d.ring_s * 1e3);
            let numbers = [ring, d.overruns.to_string(), d.underruns.to_string(), format!("{:.0}", d.drift_ppm)];
            names.into_iter().chain(numbers).collect()
        });
        if !self.devices.is_empty() {
            page = page + "\n" + &table::lines(&head, &devices.collect::<Vec<Vec<_>>>());
        }
        let head = ["listener over QUIC", "stages", "loss %", "jitter ms"];
        let listeners = self.quic_listeners.iter().map(|l| {
            let numbers = [format!("{:.1}", l.loss * 100.0), format!("{:.1}", l.jitter_s * 1e3)];
            [l.stream.to_string(), l.stages.to_string()].into_iter().chain(numbers).collect()
        });
        if !self.quic_listeners.is_empty() {
            page = page + "\n" + &table::lines(&head, &listeners.collect::<Vec<Vec<_>>>());
        }
        page
    }
}
