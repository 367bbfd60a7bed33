//! `undertone bench soak`: a daemon near its limit for a long time, with streams that come and go and clients that misbehave.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::time::sleep_until;

use super::machine::{command, machine};
use super::rig::{Meter, Rig, Setup, State, file, misbehave, percentile, stream};
use crate::cli::encode::parse_kbps;
use crate::cli::loading::ModelFolder;
use crate::engine::EngineOptions;
use crate::referee::{Chart, Scale, svg};
use crate::table;
use crate::units::StageCount;

/// Ports for clients that misbehave, and for streams that start while others end.
const SPARE: usize = 4;

/// How often memory and latencies are read.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Streams at the knee, as `bench load` found; 80 % of them run
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    knee: u16,
    /// Seconds between two replacements: the oldest stream leaves and another joins
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=3_600))]
    replace_s: u16,
    /// Rate of the streams, kbit/s
    #[arg(long, default_value = "3", value_parser = parse_kbps)]
    kbps: StageCount,
    /// Engine threads of the daemon [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Milliseconds after which a frame's return counts as missed
    #[arg(long, default_value_t = 20.0)]
    deadline_ms: f32,
    /// Folder for soak.csv and soak.svg
    #[arg(long, default_value = "out/bench-soak")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelFolder,
}

/// Five seconds of it.
struct Look {
    at_s: f64,
    rss_mib: f64,
    p50: f32,
    p99: f32,
    max: f32,
    frames: usize,
    missed: usize,
}

impl Look {
    fn numbers(&self) -> [String; 7] {
        let [rss, p50, p99, max] =
            [self.rss_mib, self.p50.into(), self.p99.into(), self.max.into()].map(|v: f64| format!("{v:.2}"));
        [format!("{:.0}", self.at_s), rss, p50, p99, max, self.frames.to_string(), self.missed.to_string()]
    }
}

#[derive(Default)]
struct Totals {
    joins: usize,
    leaves: usize,
    bad: usize,
    /// Good streams that were refused.
    refused: usize,
    /// Good streams that were cut after frames had come back.
    cut: usize,
}

impl Totals {
    fn note(&mut self, state: State) {
        self.refused += usize::from(state == State::Refused);
        self.cut += usize::from(state == State::Lost);
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let length = args.minutes * 60.0;
    ensure!((5.0..=604_800.0).contains(&length), "--minutes {}: allowed 0.1 to 10080", args.minutes);
    let csv = file(&args.out, "soak.csv")?;
    let overlap = args.model.load()?.profile.overlap_samples();
    outln!("{}\n{}", command(), machine());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (rows, totals) = runtime.block_on(soak(args, overlap, Duration::from_secs_f64(length)))?;
    let head = ["at_s", "rss_mib", "p50_ms", "p99_ms", "max_ms", "frames", "missed"];
    let numbers: Vec<_> = rows.iter().map(Look::numbers).collect();
    std::fs::write(&csv, table::csv(&head, &numbers)?).with_context(|| csv.display().to_string())?;
    std::fs::write(args.out.join("soak.svg"), picture(&rows)?)?;
    let (frames, missed) = (rows.iter().map(|r| r.frames).sum::<usize>(), rows.iter().map(|r| r.missed).sum::<usize>());
    // The first fifth is warm-up: buffers find their size.
    let settled = &rows[rows.len() / 5..];
    let (first, last) = (settled.first().map_or(0.0, |r| r.rss_mib), settled.last().map_or(0.0, |r| r.rss_mib));
    outln!(
        "\n{frames} frames, {missed} later than {} ms; {} joins, {} leaves, {} bad clients, {} good streams refused, {} cut\n\
         RSS after the first fifth {first:.1} MiB, at the end {last:.1} MiB\nwritten to {}",
        args.deadline_ms,
        totals.joins,
        totals.leaves,
        totals.bad,
        totals.refused,
        totals.cut,
        args.out.display()
    );
    Ok(())
}

async fn soak(args: &Args, overlap: usize, length: Duration) -> Result<(Vec<Look>, Totals)> {
    let wanted = (usize::from(args.knee) * 4 / 5).max(1);
    let slots = 2 * (usize::from(args.knee) + SPARE);
    let default = EngineOptions::default();
    let engine = EngineOptions { threads: args.threads.map_or(default.threads, usize::from), slots, ..default };
    let model = args.model.path.as_deref();
    let setup =
        Setup { model, kbps: args.kbps, searches: false, ports: wanted + SPARE, coded: false, engine, out: &args.out };
    let rig = Rig::start(&setup)?;
    outln!("{wanted} duplex streams for {:.1} minutes", length.as_secs_f64() / 60.0);
    let mut crowd = Crowd::new(wanted, overlap);
    let (mut rows, start, mut second) = (Vec::new(), Instant::now(), 0u32);
    while start.elapsed() < length {
        crowd.join(&rig);
        if second > 0 && second.is_multiple_of(u32::from(args.replace_s)) {
            crowd.replace();
        }
        // Of a hundred connections at least one is bad: 1 % of the streams that run, every second.
        for n in 0..wanted.div_ceil(100) {
            let address = rig.ports[wanted + SPARE - 1].0.clone();
            tokio::spawn(async move { misbehave(&address, second as usize + n).await });
            crowd.totals.bad += 1;
        }
        second += 1;
        sleep_until((start + Duration::from_secs(u64::from(second))).into()).await;
        crowd.sort_out();
        if start.elapsed() >= LOOK * (rows.len() as u32 + 1) {
            let row = look(args, &rig, start, &crowd.streams);
            if rows.len().is_multiple_of(12) {
                let [at, rss, p50, p99, max, frames, missed] = row.numbers();
                outln!("{at} s: RSS {rss} MiB, p50 {p50}, p99 {p99}, longest {max} ms, missed {missed} of {frames}");
            }
            rows.push(row);
        }
    }
    crowd.streams.iter().for_each(|(_, m)| m.stop());
    Ok((rows, crowd.totals))
}

/// The good streams, each at a port of the rig.
struct Crowd {
    wanted: usize,
    /// Samples before the first one that was encoded.
    overlap: usize,
    streams: Vec<(usize, Arc<Meter>)>,
    leaving: Vec<(usize, Arc<Meter>)>,
    /// Ports beyond the wanted ones, for streams that come while others still leave.
    spare: Vec<usize>,
    totals: Totals,
}

impl Crowd {
    fn new(wanted: usize, overlap: usize) -> Self {
        let (streams, leaving, totals) = (Vec::new(), Vec::new(), Totals::default());
        Self { wanted, overlap, streams, leaving, spare: (wanted..wanted + SPARE - 1).collect(), totals }
    }

    /// Lets some of those who are missing in: over some seconds, not in one moment.
    fn join(&mut self, rig: &Rig) {
        for _ in 0..8.min(self.wanted - self.streams.len().min(self.wanted)) {
            let used = |port| self.streams.iter().chain(&self.leaving).any(|(p, _)| *p == port);
            let free = (0..self.wanted).find(|&p| !used(p));
            let Some(port) = free.or_else(|| self.spare.pop()) else { break };
            self.streams.push((port, stream(&rig.ports[port], self.totals.joins, self.overlap)));
            self.totals.joins += 1;
        }
    }

    /// Sends the oldest stream away, once all are there.
    fn replace(&mut self) {
        if self.streams.len() == self.wanted {
            let (port, meter) = self.streams.remove(0);
            meter.stop();
            self.totals.leaves += 1;
            self.leaving.push((port, meter));
        }
    }

    /// Notes who is gone, and takes the spare ports back.
    fn sort_out(&mut self) {
        let Self { wanted, spare, totals, .. } = self;
        let mut gone = |port: usize, state| {
            totals.note(state);
            if port >= *wanted {
                spare.push(port);
            }
            false
        };
        self.leaving.retain(|(port, m)| match m.state() {
            State::Waiting | State::Running => true,
            state => gone(*port, state),
        });
        self.streams.retain(|(port, m)| match m.state() {
            state @ (State::Refused | State::Lost) => gone(*port, state),
            _ => true,
        });
    }
}

fn look(args: &Args, rig: &Rig, start: Instant, streams: &[(usize, Arc<Meter>)]) -> Look {
    let mut all: Vec<f32> = streams.iter().flat_map(|(_, m)| m.take().0).collect();
    all.sort_by(f32::total_cmp);
    Look {
        at_s: start.elapsed().as_secs_f64(),
        rss_mib: rig.rss_mib(),
        p50: percentile(&all, 0.5),
        p99: percentile(&all, 0.99),
        max: percentile(&all, 1.0),
        frames: all.len(),
        missed: all.iter().filter(|&&ms| ms > args.deadline_ms).count(),
    }
}

fn picture(rows: &[Look]) -> std::io::Result<String> {
    let line = |value: &dyn Fn(&Look) -> f64| rows.iter().map(|r| (r.at_s / 60.0, value(r))).collect::<Vec<_>>();
    let x_name = "minutes";
    let missed = |r: &Look| 100.0 * r.missed as f64 / r.frames.max(1) as f64;
    svg(&[
        Chart { title: "memory, MiB", x_name, lines: vec![("RSS", line(&|r| r.rss_mib)).into()], ..Chart::default() },
        Chart {
            title: "latency of a frame, ms",
            x_name,
            y: Scale::Log,
            lines: vec![
                ("p50", line(&|r| r.p50.into())).into(),
                ("p99", line(&|r| r.p99.into())).into(),
                ("longest", line(&|r| r.max.into())).into(),
            ],
            ..Chart::default()
        },
        Chart { title: "missed frames, %", x_name, lines: vec![("missed", line(&missed)).into()], ..Chart::default() },
    ])
}
