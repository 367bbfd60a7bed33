//! `undertone bench load`: more and more duplex streams through a daemon, until it says no and past that.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::coded::{self, Broadcast};
use super::machine::{command, machine};
use super::rig::{Meter, Rig, Setup, State, file, percentile, stream};
use crate::cli::encode::parse_kbps;
use crate::cli::loading::ModelFolder;
use crate::engine::EngineOptions;
use crate::referee::{Chart, Scale, svg};
use crate::table;
use crate::units::StageCount;

/// How long new streams may take to start before a step is measured.
const SETTLE: Duration = Duration::from_millis(1_500);

/// The same where they are coded: the coder is held back for connections that have just come.
const SETTLE_CODED: Duration = Duration::from_secs(12);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Duplex streams (PCM in, decoded PCM out) that a step adds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    step: u16,
    /// Streams at most
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=2_000))]
    max: u16,
    /// Seconds a step is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=600))]
    seconds: u16,
    /// Steps that are still made after the first one that misses the goal or is refused a stream
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=100))]
    past: u16,
    /// Rate of the streams, kbit/s
    #[arg(long, default_value = "3", value_parser = parse_kbps)]
    kbps: StageCount,
    /// Streams that come coded and leave coded, in bundles of 100 ms, instead of samples: what a relay does
    #[arg(long, conflicts_with = "searches")]
    coded: bool,
    /// Let the daemon search in the time that is left (codec.effort = "auto")
    #[arg(long)]
    searches: bool,
    /// Engine threads of the daemon [default: one a core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: Option<u16>,
    /// Whether engine threads stay on cores of their own
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pin: bool,
    /// Microseconds that a network call waits for company
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=20_000))]
    gather_us: u32,
    /// Duplex streams that the daemon has slots for
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    slots: u16,
    /// Milliseconds after which a frame's return counts as missed
    #[arg(long, default_value_t = 20.0)]
    deadline_ms: f32,
    /// The goal for p99 in milliseconds: the knee is the last step that meets it
    #[arg(long, default_value_t = 10.0)]
    goal_ms: f32,
    /// Folder for load.csv, load.json and load.svg
    #[arg(long, default_value = "out/bench-load")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelFolder,
}

/// What a step gave.
#[derive(Debug, Default, Clone)]
struct LoadStep {
    asked: usize,
    running: usize,
    refused: usize,
    lost: usize,
    frames: usize,
    p50: f32,
    p99: f32,
    max: f32,
    missed: usize,
    rss_mib: f64,
    /// Memory a running stream takes beyond that of an idle daemon.
    mib_a_stream: f64,
    /// Cores that the daemon kept busy.
    cores: f64,
    stage_share: f64,
    /// p99 of how late the measuring side itself was.
    own_p99: f32,
}

const HEAD: &str = "asked,running,refused,lost,frames,p50_ms,p99_ms,max_ms,missed,rss_mib,mib_a_stream,cores,stage_share,own_lateness_p99_ms";

impl LoadStep {
    fn numbers(&self) -> [String; 14] {
        [
            self.asked.to_string(),
            self.running.to_string(),
            self.refused.to_string(),
            self.lost.to_string(),
            self.frames.to_string(),
            format!("{:.2}", self.p50),
            format!("{:.2}", self.p99),
            format!("{:.2}", self.max),
            self.missed.to_string(),
            format!("{:.1}", self.rss_mib),
            format!("{:.3}", self.mib_a_stream),
            format!("{:.2}", self.cores),
            format!("{:.3}", self.stage_share),
            format!("{:.2}", self.own_p99),
        ]
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let csv = file(&args.out, "load.csv")?;
    let overlap = args.model.load()?.profile.overlap_samples();
    outln!(
        "{}\n{}\nThe daemon and this measurement share the machine. Latency: from a frame's last sample to its return.\n",
        command(),
        machine()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let steps = runtime.block_on(steps(args, overlap))?;
    let rows: Vec<_> = steps.iter().map(LoadStep::numbers).collect();
    let head: Vec<_> = HEAD.split(',').collect();
    out!("{}", table::lines(&head, &rows));
    std::fs::write(&csv, table::csv(&head, &rows)?).with_context(|| csv.display().to_string())?;
    let knee = steps.iter().take_while(|s| met(s, args)).last().map_or(0, |s| s.running);
    std::fs::write(args.out.join("load.json"), json(&steps, knee))?;
    std::fs::write(args.out.join("load.svg"), picture(&steps)?)?;
    outln!("\nknee: {knee} duplex streams with p99 below {} ms\nwritten to {}", args.goal_ms, args.out.display());
    Ok(())
}

fn met(step: &LoadStep, args: &Args) -> bool {
    step.p99 <= args.goal_ms && step.refused + step.lost == 0 && step.frames > 0
}

async fn steps(args: &Args, overlap: usize) -> Result<Vec<LoadStep>> {
    let default = EngineOptions::default();
    let engine = EngineOptions {
        threads: args.threads.map_or(default.threads, usize::from),
        slots: 2 * usize::from(args.slots),
        gather: Duration::from_micros(u64::from(args.gather_us)),
        pin: args.pin,
        ..default
    };
    let (model, ports) = (args.model.path.as_deref(), usize::from(args.max));
    let setup =
        Setup { model, kbps: args.kbps, searches: args.searches, ports, coded: args.coded, engine, out: &args.out };
    let rig = Rig::start(&setup)?;
    let idle_mib = rig.rss_mib();
    outln!("idle daemon: {idle_mib:.1} MiB");
    let broadcast = match args.coded {
        true => Some(Arc::new(Broadcast::new(&args.model.load()?, args.kbps)?)),
        false => None,
    };
    let mut numbers = 0..usize::from(args.max);
    let (mut streams, mut out, mut past): (Vec<Arc<Meter>>, Vec<LoadStep>, u16) = (Vec::new(), Vec::new(), 0);
    loop {
        let before = streams.len();
        for number in numbers.by_ref().take(usize::from(args.step)) {
            streams.push(match &broadcast {
                Some(what) => coded::stream(&rig.codes, number, what),
                None => stream(&rig.ports[number], number, overlap),
            });
            // A crowd at one moment is another experiment.
            sleep(Duration::from_millis(20)).await;
        }
        if streams.len() == before {
            break;
        }
        sleep(if args.coded { SETTLE_CODED } else { SETTLE }).await;
        streams.iter().for_each(|m| drop(m.take()));
        let (start, cpu) = (Instant::now(), rig.cpu_s());
        sleep(Duration::from_secs(u64::from(args.seconds))).await;
        let step = measure(args, &rig, &streams, idle_mib, (start, cpu))?;
        errln!("{} of {} streams: p50 {:.2} ms, p99 {:.2} ms", step.running, step.asked, step.p50, step.p99);
        let met = met(&step, args);
        out.push(step);
        // Who was refused does not come again: the next step brings others.
        streams.retain(|m| matches!(m.state(), State::Waiting | State::Running));
        if !met || past > 0 {
            if past >= args.past {
                break;
            }
            past += 1;
        }
    }
    streams.iter().for_each(|m| m.stop());
    Ok(out)
}

fn measure(
    args: &Args,
    rig: &Rig,
    streams: &[Arc<Meter>],
    idle_mib: f64,
    (start, cpu): (Instant, f64),
) -> Result<LoadStep> {
    let count = |state| streams.iter().filter(|m| m.state() == state).count();
    let (mut latencies, mut own): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
    for meter in streams {
        let (back, late) = meter.take();
        latencies.extend(back);
        own.extend(late);
    }
    let cores = (rig.cpu_s() - cpu) / start.elapsed().as_secs_f64();
    latencies.sort_by(f32::total_cmp);
    own.sort_by(f32::total_cmp);
    let (running, rss_mib) = (count(State::Running), rig.rss_mib());
    let beyond = streams.iter().filter(|m| m.frames.load(Ordering::Relaxed) == 0 && m.state() == State::Waiting);
    Ok(LoadStep {
        asked: streams.len(),
        running,
        refused: count(State::Refused),
        lost: count(State::Lost) + beyond.count(),
        frames: latencies.len(),
        p50: percentile(&latencies, 0.5),
        p99: percentile(&latencies, 0.99),
        max: percentile(&latencies, 1.0),
        missed: latencies.iter().filter(|&&ms| ms > args.deadline_ms).count(),
        rss_mib,
        mib_a_stream: (rss_mib - idle_mib) / running.max(1) as f64,
        cores,
        stage_share: rig.metric("undertone_stage_share")?,
        own_p99: percentile(&own, 0.99),
    })
}

fn json(steps: &[LoadStep], knee: usize) -> String {
    let number = |v: String| serde_json::from_str(&v).unwrap_or(Value::Null);
    let step =
        |s: &LoadStep| HEAD.split(',').zip(s.numbers().map(number)).map(|(k, v)| (k.to_owned(), v)).collect::<Value>();
    let steps: Vec<Value> = steps.iter().map(step).collect();
    format!("{:#}\n", json!({"command": command(), "machine": machine(), "knee": knee, "steps": steps}))
}

fn picture(steps: &[LoadStep]) -> std::io::Result<String> {
    let line = |value: &dyn Fn(&LoadStep) -> f64| steps.iter().map(|s| (s.asked as f64, value(s))).collect::<Vec<_>>();
    let x_name = "duplex streams asked for";
    svg(&[
        Chart {
            title: "latency of a frame, ms",
            x_name,
            y: Scale::Log,
            lines: vec![
                ("p50", line(&|s| s.p50.into())).into(),
                ("p99", line(&|s| s.p99.into())).into(),
                ("longest", line(&|s| s.max.into())).into(),
            ],
            ..Chart::default()
        },
        Chart {
            title: "streams",
            x_name,
            lines: vec![
                ("running", line(&|s| s.running as f64)).into(),
                ("refused", line(&|s| s.refused as f64)).into(),
                ("lost", line(&|s| s.lost as f64)).into(),
            ],
            ..Chart::default()
        },
        Chart {
            title: "shares, %",
            x_name,
            lines: vec![
                ("missed frames", line(&|s| 100.0 * s.missed as f64 / s.frames.max(1) as f64)).into(),
                ("stages kept", line(&|s| 100.0 * s.stage_share)).into(),
                ("daemon's core", line(&|s| 100.0 * s.cores)).into(),
            ],
            ..Chart::default()
        },
        Chart { title: "memory, MiB", x_name, lines: vec![("RSS", line(&|s| s.rss_mib)).into()], ..Chart::default() },
    ])
}
