//! What happens to datagrams, for operators.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::MetricType;
use serde::Serialize;

use crate::jitter::Report;
use crate::profile::Profile;
use crate::service::access::View;
use crate::service::page::Page;
use crate::session::StreamName;

/// A listener as operators see it.
#[derive(Debug, Clone, Serialize)]
pub(in crate::service) struct ListenerState {
    #[serde(serialize_with = "name")]
    pub(in crate::service) stream: StreamName,
    pub(in crate::service) stages: u8,
    pub(in crate::service) loss: f64,
    pub(in crate::service) jitter_s: f64,
}

fn name<S: serde::Serializer>(name: &StreamName, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name.as_str())
}

/// What happened to datagrams since the start.
#[derive(Debug, Default)]
pub(crate) struct QuicCounters {
    /// Connections that were asked to prove their address.
    pub(super) unproven: AtomicU64,
    /// Dropped because a session, or the system, had no room for them.
    pub(super) overflow: AtomicU64,
    /// What receivers of bundles saw, this server included.
    lost: AtomicU64,
    late: AtomicU64,
    reordered: AtomicU64,
    duplicated: AtomicU64,
    concealed_ms: AtomicU64,
    rebuilt_ms: AtomicU64,
    /// By number of the session; there are never more than connections.
    listeners: Mutex<BTreeMap<u64, ListenerState>>,
    sessions: AtomicU64,
}

impl QuicCounters {
    /// A number for a session that tells nothing about it.
    pub(super) fn number(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what a receiver saw between two reports. It counts at most what was sent to it: it may claim anything.
    pub(super) fn seen(&self, before: &Report, after: &Report, sent: u64, frame_ms: u64) {
        let add = |counter: &AtomicU64, before: u64, after: u64, most: u64| {
            counter.fetch_add(after.saturating_sub(before).min(most), Ordering::Relaxed);
        };
        add(&self.lost, before.lost(), after.lost(), sent);
        add(&self.late, before.late, after.late, sent);
        add(&self.reordered, before.reordered, after.reordered, sent);
        add(&self.duplicated, before.duplicated, after.duplicated, sent);
        let frames = sent.saturating_mul(u64::from(Profile::MAX_FRAMES_PER_BUNDLE)).saturating_mul(frame_ms);
        let ms = |n: u64| n.saturating_mul(frame_ms);
        add(&self.concealed_ms, ms(before.concealed_frames), ms(after.concealed_frames), frames);
        add(&self.rebuilt_ms, ms(before.rebuilt_frames), ms(after.rebuilt_frames), frames);
    }

    pub(super) fn listener(&self, number: u64, state: Option<ListenerState>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            Some(state) => listeners.insert(number, state),
            None => listeners.remove(&number),
        };
    }

    /// The listeners that whoever asks may see.
    pub(in crate::service) fn listeners(&self, view: &View) -> Vec<ListenerState> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.values().filter(|l| view.shows(&l.stream)).cloned().collect()
    }

    /// For Prometheus.
    pub(in crate::service) fn page(&self, page: &mut Page<'_>, view: &View) -> fmt::Result {
        for (name, help, value) in [
            ("unproven", "Connections that were asked to prove their address first.", &self.unproven),
            ("overflow", "Datagrams dropped for lack of room.", &self.overflow),
            ("packets_lost", "Bundles that receivers missed.", &self.lost),
            ("packets_late", "Bundles that came after their frames had been given up.", &self.late),
            ("packets_reordered", "Bundles that others overtook.", &self.reordered),
            ("packets_duplicated", "Bundles that came twice.", &self.duplicated),
            ("concealed_ms", "Sound that receivers had to guess.", &self.concealed_ms),
            ("rebuilt_ms", "Sound that receivers played from coarse copies.", &self.rebuilt_ms),
        ] {
            page.counter(&format!("quic_{name}"), help, value.load(Ordering::Relaxed))?;
        }
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        type Value = fn(&ListenerState) -> f64;
        let gauges: [(&str, &str, Value); 3] = [
            ("stages", "Stages that a listener gets now.", |l| f64::from(l.stages)),
            ("loss", "Smoothed share of bundles that a listener misses.", |l| l.loss),
            ("jitter_seconds", "Interarrival jitter of a listener.", |l| l.jitter_s),
        ];
        for (name, help, value) in gauges {
            let shown = listeners.iter().filter(|(_, l)| view.shows(&l.stream));
            let values = shown.map(|(number, l)| {
                let labels = [("listener", number.to_string()), ("stream", l.stream.as_str().to_owned())];
                (labels, value(l))
            });
            page.family(&format!("quic_listener_{name}"), (MetricType::Gauge, help), values)?;
        }
        Ok(())
    }
}
