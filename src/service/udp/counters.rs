//! What happens to datagrams, for operators.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::jitter::Report;
use crate::profile::Profile;
use crate::service::access::View;
use crate::session::StreamName;

/// A listener as operators see it.
#[derive(Debug, Clone)]
pub(super) struct ListenerState {
    pub(super) stream: StreamName,
    pub(super) stages: u8,
    pub(super) loss: f64,
    pub(super) jitter: Duration,
}

/// What happened to datagrams since the start.
#[derive(Debug, Default)]
pub(crate) struct UdpCounters {
    /// Not of the protocol, too large, or of no session.
    pub(super) ignored: AtomicU64,
    /// Hellos answered with a cookie.
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

impl UdpCounters {
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

    /// For people: nothing unless somebody listens.
    pub(in crate::service) fn table(&self, page: &mut String, view: &View) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let shown: Vec<_> = listeners.values().filter(|l| view.shows(&l.stream)).collect();
        if shown.is_empty() {
            return;
        }
        let _ = writeln!(page, "\n{:<32} {:>9} {:>9} {:>9}", "listener over UDP", "stages", "loss %", "jitter ms");
        for l in shown {
            let (name, jitter_ms) = (l.stream.as_str(), l.jitter.as_secs_f64() * 1e3);
            let _ = writeln!(page, "{name:<32} {:>9} {:>9.1} {jitter_ms:>9.1}", l.stages, l.loss * 100.0);
        }
    }

    /// For programs: an array.
    pub(in crate::service) fn json(&self, view: &View) -> String {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let listener = |l: &ListenerState| {
            let jitter_s = l.jitter.as_secs_f64();
            format!(
                "{{\"stream\":\"{}\",\"stages\":{},\"loss\":{:.4},\"jitter_s\":{jitter_s}}}",
                l.stream, l.stages, l.loss
            )
        };
        format!(
            "[{}]",
            listeners.values().filter(|l| view.shows(&l.stream)).map(listener).collect::<Vec<_>>().join(",")
        )
    }

    /// Prometheus' text format.
    pub(in crate::service) fn page(&self, page: &mut String, view: &View) {
        for (name, help, value) in [
            ("ignored_total", "Datagrams that are not of the protocol, too large, or of no session.", &self.ignored),
            ("unproven_total", "Hellos that were answered with a cookie only.", &self.unproven),
            ("overflow_total", "Datagrams dropped for lack of room.", &self.overflow),
            ("packets_lost_total", "Bundles that receivers missed.", &self.lost),
            ("packets_late_total", "Bundles that came after their frames had been given up.", &self.late),
            ("packets_reordered_total", "Bundles that others overtook.", &self.reordered),
            ("packets_duplicated_total", "Bundles that came twice.", &self.duplicated),
            ("concealed_ms_total", "Sound that receivers had to guess.", &self.concealed_ms),
            ("rebuilt_ms_total", "Sound that receivers played from coarse copies.", &self.rebuilt_ms),
        ] {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(page, "# HELP undertone_udp_{name} {help}\n# TYPE undertone_udp_{name} counter");
            let _ = writeln!(page, "undertone_udp_{name} {value}");
        }
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        type Value = fn(&ListenerState) -> f64;
        let gauges: [(&str, &str, Value); 3] = [
            ("stages", "Stages that a listener gets now.", |l| f64::from(l.stages)),
            ("loss", "Smoothed share of bundles that a listener misses.", |l| l.loss),
            ("jitter_seconds", "Interarrival jitter of a listener.", |l| l.jitter.as_secs_f64()),
        ];
        for (name, help, value) in gauges {
            let name = format!("undertone_udp_listener_{name}");
            let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (number, l) in listeners.iter().filter(|(_, l)| view.shows(&l.stream)) {
                let _ = writeln!(page, "{name}{{listener=\"{number}\",stream=\"{}\"}} {}", l.stream, value(l));
            }
        }
    }
}
