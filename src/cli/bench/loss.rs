//! `undertone bench loss`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::machine::{command, machine};
use super::plan::{Entry, How, Plan, write_results};
use super::recordings::recordings;

use crate::cli::encode::parse_kbps;
use crate::referee::{LossModel, parse_trace};
use crate::referee::{OpusSettings, Payload, Repair, summarise, summary_lines, write_report};
use crate::units::StageCount;

/// Packets of a generated trace; it repeats after them.
const TRACE_PACKETS: usize = 5_000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of recordings
    dir: PathBuf,
    /// Folder for results
    #[arg(long, default_value = "out/bench-loss")]
    out: PathBuf,
    /// Losses in per cent
    #[arg(long, value_delimiter = ',', default_value = "0,5,10,20")]
    loss: Vec<u8>,
    /// Mean length of a burst in packets; 1 loses packets independently
    #[arg(long, default_value_t = 1.0)]
    burst: f64,
    /// Recorded trace instead: a file with a character a packet, 0 arrived, 1 lost
    #[arg(long, value_name = "FILE", conflicts_with_all = ["loss", "burst"])]
    trace: Option<PathBuf>,
    /// Seed of generated traces
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rates of undertone in kbit/s
    #[arg(long, value_delimiter = ',', default_value = "6,8", value_parser = parse_kbps)]
    kbps: Vec<StageCount>,
    /// Rates of Opus in kbit/s, constant rate, redundancy included
    #[arg(long, value_delimiter = ',', default_value = "8,16,24,32", value_parser = clap::value_parser!(u32).range(6..=64))]
    opus_kbps: Vec<u32>,
    /// Packets that undertone repeats coarsely with each packet, 0 to 4
    #[arg(long, value_delimiter = ',', default_value = "0,2", value_parser = clap::value_parser!(u8).range(0..=4))]
    copies: Vec<u8>,
    /// Length of a packet in milliseconds, the same for both codecs: 20 or 60
    #[arg(long, default_value_t = 20, value_parser = parse_packet)]
    packet_ms: usize,
    #[command(flatten)]
    how: How,
}

fn parse_packet(s: &str) -> Result<usize, String> {
    match s {
        "20" => Ok(20),
        "60" => Ok(60),
        _ => Err(format!("{s} ms, allowed 20 and 60")),
    }
}

fn traces(args: &Args) -> Result<Vec<(String, Vec<bool>)>> {
    if let Some(path) = &args.trace {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let trace = parse_trace(&text).with_context(|| path.display().to_string())?;
        return Ok(vec![(" recorded loss".to_owned(), trace)]);
    }
    let trace = |&percent: &u8| {
        ensure!(percent < 100, "loss of {percent} % out of range, allowed 0 to 99");
        let loss = f64::from(percent) / 100.0;
        let model = if args.burst == 1.0 {
            LossModel::Uniform { loss }
        } else {
            LossModel::Gilbert { loss, burst: args.burst }
        };
        Ok((format!(" {percent:02} % loss"), model.trace(TRACE_PACKETS, args.seed)?))
    };
    args.loss.iter().map(trace).collect()
}

fn entries(args: &Args, expected_loss: u8) -> Vec<Entry> {
    let frames_per_packet = (args.packet_ms / 20) as u8;
    let mut entries = Vec::new();
    for &stages in &args.kbps {
        let ours = |&copies| Entry::Undertone { stages, frames_per_packet, payload: Payload::Datagrams { copies } };
        entries.extend(args.copies.iter().map(ours));
    }
    for &rate in &args.opus_kbps {
        for repair in [Repair::Plc, Repair::Lbrr, Repair::Dred] {
            entries.push(Entry::Opus(OpusSettings {
                bits_per_second: rate * 1_000,
                cbr: true,
                packet_ms: args.packet_ms,
                nolace: true,
                music: false,
                repair,
                expected_loss,
            }));
        }
    }
    entries
}

fn notes(args: &Args, recordings: usize, expected_loss: u8) -> Vec<String> {
    vec![
        format!("{} recordings. Command: {}. Machine: {}.", recordings, command(), machine()),
        format!(
            "Packets of {} ms for both, the same packets lost. Opus 1.6.1 at constant rate, NoLACE and deep PLC on (decoder complexity 7), told to expect {expected_loss} % \
             loss; LBRR and DRED (up to 1 s) inside the rate shown. LBRR and DRED are read from the next packet that arrives, so a gap is filled when it ends. \
             undertone sends datagrams as over QUIC, with two stages of the packets before as copies where it says so; what is lost in spite of them \
             is concealed by the token model. Both are counted with IPv4 and UDP headers, undertone with those of QUIC besides (encrypted), Opus with RTP (not).",
            args.packet_ms
        ),
    ]
}

pub(super) fn run(args: &Args) -> Result<()> {
    let files = recordings(&args.dir, args.how.every)?;
    let model = args.how.model()?;
    let traces = traces(args)?;
    let worst = traces.iter().map(|(_, t)| t.iter().filter(|&&l| l).count() * 100 / t.len()).max().unwrap_or(0);
    // The encoder is told the worst loss of the run, as an adaptive sender would find it.
    let expected_loss = worst.clamp(1, 100) as u8;
    let plan = Plan {
        model: &model,
        tokens: model.tokens()?,
        how: &args.how,
        refine: 0,
        entries: entries(args, expected_loss),
        traces,
        out: &args.out,
        scorer: None,
    };
    let rows = plan.run(&files)?;
    let summary = summarise(&rows);
    let notes = notes(args, files.len(), expected_loss);
    let report = write_report("undertone and Opus under packet loss", &notes, &summary, &[], &[])?;
    write_results(&args.out, &rows, &summary, &report)?;
    let numbers =
        [(0, "payload", 2), (2, "IP", 2), (10, "lost", 3), (3, "PESQ-WB", 3), (4, "ESTOI", 3), (5, "LSD dB", 2)];
    out!("{}", summary_lines(&summary, &numbers));
    outln!("{}", args.out.join("report.html").display());
    Ok(())
}
