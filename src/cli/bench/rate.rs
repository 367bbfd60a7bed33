//! `undertone bench rate`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::machine::{command, machine, stem};
use super::peer::Peer;
use super::plan::{Entry, How, ITEMS, Plan, write_results};
use super::recordings::{kind, read, recordings};
use super::scorer::Scorer;
use crate::cli::encode::parse_kbps;
use crate::profile::Profile;
use crate::recording::REFINE_STEPS;
use crate::referee::{
    Listening, OpusSettings, Payload, Repair, Row, equivalent_rate, summarise, summary_lines, write_report,
    write_spectrograms,
};
use crate::units::StageCount;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder of recordings (as in `undertone encode`); names that start with "music" are music
    dir: PathBuf,
    /// Folder for results
    #[arg(long, default_value = "out/bench-rate")]
    out: PathBuf,
    /// Rates of undertone in kbit/s
    #[arg(long, value_delimiter = ',', default_value = "0.5,1,1.5,2,3,4,5,6,7,8", value_parser = parse_kbps)]
    kbps: Vec<StageCount>,
    /// Rates of Opus in kbit/s
    #[arg(long, value_delimiter = ',', default_value = "6,8,9,12,16,24,32", value_parser = clap::value_parser!(u32).range(6..=64))]
    opus_kbps: Vec<u32>,
    /// Opus only at VBR 20 ms and CBR 60 ms with NoLACE, and plain VBR 20 ms
    #[arg(long)]
    quick: bool,
    /// Frames of 20 ms in a packet of undertone
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(Profile::MAX_FRAMES_PER_BUNDLE)))]
    bundle: u8,
    #[command(flatten)]
    how: How,
    /// Steps of analysis by synthesis in files; rows without it are there as well
    #[arg(long, value_name = "N", default_value_t = REFINE_STEPS, value_parser = clap::value_parser!(u32).range(0..=200))]
    refine: u32,
    /// Another program that scores: its first line names the metric, then it answers each line "KIND<TAB>ORIGINAL<TAB>DECODED" (WAV
    /// files) by a number, higher for better
    #[arg(long, value_name = "COMMAND")]
    scorer: Option<String>,
    /// Another codec as two shell commands: `$IN` names what a command reads, `$OUT` what it writes. ENCODE makes a file of codes of a
    /// WAV file (mono, 24 kHz), DECODE a recording of that. May be given several times
    #[arg(long, num_args = 3, value_names = ["NAME", "ENCODE", "DECODE"])]
    peer: Vec<String>,
}

/// The curve that "sounds like Opus" refers to.
const REFERENCE: &str = "Opus VBR 20 ms NoLACE";

fn entries(args: &Args, has_tokens: bool, searches: bool) -> Vec<Entry> {
    let mut all: Vec<Entry> = [Payload::Packed, Payload::Coded]
        .into_iter()
        .filter(|p| *p == Payload::Packed || has_tokens)
        .flat_map(|payload| {
            let entry = move |&stages| Entry::Undertone { stages, frames_per_packet: args.bundle, payload };
            args.kbps.iter().map(entry)
        })
        .collect();
    if has_tokens {
        let kinds = if searches { &[true, false][..] } else { &[false] };
        let file = |&searched: &bool| args.kbps.iter().map(move |s| Entry::File { kbps: s.kbps(), searched });
        all.extend(kinds.iter().flat_map(file));
    }
    for &rate in &args.opus_kbps {
        for (cbr, packet_ms) in [(false, 20), (false, 60), (true, 20), (true, 60)] {
            for nolace in [false, true] {
                if args.quick && !matches!((cbr, packet_ms, nolace), (false, 20, _) | (true, 60, true)) {
                    continue;
                }
                all.push(Entry::Opus(OpusSettings {
                    bits_per_second: rate * 1_000,
                    cbr,
                    packet_ms,
                    nolace,
                    music: false,
                    repair: Repair::Plc,
                    expected_loss: 0,
                }));
            }
        }
    }
    all
}

pub(super) fn run(args: &Args) -> Result<()> {
    let files = recordings(&args.dir, args.how.every)?;
    let model = args.how.model()?;
    let mut entries = entries(args, model.tokens()?.is_some(), args.refine > 0 && model.refiner(0)?.is_some());
    entries.extend(Peer::parse(&args.peer)?.into_iter().map(|peer| Entry::Peer(peer, args.out.join(ITEMS))));
    let plan = Plan {
        model: &model,
        tokens: model.tokens()?,
        how: &args.how,
        refine: args.refine,
        entries,
        traces: vec![(String::new(), Vec::new())],
        out: &args.out,
        scorer: args.scorer.clone(),
    };
    let other = args.scorer.as_deref().map(|command| Ok::<_, anyhow::Error>(Scorer::start(command)?.name.clone()));
    let other = other.transpose()?;
    let rows = plan.run(&files)?;
    let summary = summarise(&rows);
    let equivalents = equivalents(args, &rows, other.as_deref());
    let mut notes = notes(args, &model.profile.name, files.len());
    notes.extend(other.as_ref().map(|name| format!("Other score: {name}.")));
    let listening = listening(args, &plan, &files)?;
    let report = write_report("undertone and Opus by rate", &notes, &summary, &equivalents, &listening)?;
    write_results(&args.out, &rows, &summary, &report)?;
    let rates = [(0, "payload", 2), (1, "message", 2), (2, "IP", 2)];
    let scores = [(3, "PESQ-WB", 3), (4, "ESTOI", 3), (5, "LSD dB", 2)];
    let other = other.as_deref().map(|name| (Row::NUMBERS.len() - 1, name, 3));
    let times = [(6, "encode x", 0), (7, "decode x", 0), (8, "delay ms", 0)];
    let numbers: Vec<_> = rates.into_iter().chain(scores).chain(other).chain(times).collect();
    out!("{}", summary_lines(&summary, &numbers));
    for (kind, what, rate) in &equivalents {
        if let Some(r) = rate {
            outln!("{kind}: {what} sounds like Opus at {:.1} kbit/s ({:.1} to {:.1})", r.mean, r.low, r.high);
        }
    }
    outln!("{}", args.out.join("report.html").display());
    Ok(())
}

fn equivalents(
    args: &Args,
    rows: &[Row],
    other: Option<&str>,
) -> Vec<(String, String, Option<crate::referee::Interval>)> {
    let coded = rows.iter().any(|r| r.system.starts_with("undertone coded"));
    let ours = format!("undertone {} {} ms", if coded { "coded" } else { "packed" }, u32::from(args.bundle) * 20);
    let mut out = Vec::new();
    for kind in ["speech", "music"] {
        let others = other.map(|name| (Row::NUMBERS.len() - 1, name));
        for (metric, name) in [(3, "PESQ-WB"), (4, "ESTOI")].into_iter().chain(others) {
            for stages in args.kbps.iter().filter(|_| rows.iter().any(|r| r.kind == kind)) {
                let rate = equivalent_rate(rows, kind, (&ours, stages.kbps()), REFERENCE, metric);
                out.push((kind.to_owned(), format!("{} kbit/s by {name}", stages.kbps()), rate));
            }
        }
    }
    out
}

fn notes(args: &Args, model: &str, items: usize) -> Vec<String> {
    vec![
        format!("{} recordings. Command: {}. Machine: {}.", items, command(), machine()),
        format!(
            "undertone {} with model {model}, beam {}; Opus 1.6.1 (bundled libopus, encoder complexity 10, decoder complexity 0, or 7 with NoLACE), \
             24 kHz mono, VoIP mode for speech, audio mode for music. Both get the same samples.",
            env!("CARGO_PKG_VERSION"),
            args.how.beam.value()
        ),
        "Rates are bytes of all packets. Payload: coded sound. Message: with protobuf framing (undertone) or RTP (Opus, 12 bytes). \
         IP: with IPv4 and TCP with time stamps (undertone, 52 bytes a packet) or IPv4 and UDP (Opus, 28 bytes)."
            .to_owned(),
        "Scores after alignment by correlation within 200 ms: PESQ-WB (P.862.2), ESTOI, log-spectral distance (lower is better). Means with 95 % bootstrap \
         intervals over recordings. Speed is length over processor time of one core. Delay is algorithmic: packet and overlap or look-ahead."
            .to_owned(),
    ]
}

/// The first recording of each kind through a few entries, with spectrograms.
fn listening(args: &Args, plan: &Plan<'_>, files: &[PathBuf]) -> Result<Vec<Listening>> {
    const SECONDS: usize = 8;
    let best = plan.entries.iter().find(|e| matches!(e, Entry::File { .. })).or(plan.entries.first());
    let best = best.map(Entry::system).unwrap_or_default();
    let near = |wanted: f64, ours: bool| {
        plan.entries
            .iter()
            .filter(|e| e.system() == if ours { best.as_str() } else { REFERENCE })
            .min_by(|a, b| (a.nominal() - wanted).abs().total_cmp(&(b.nominal() - wanted).abs()))
    };
    let mut chosen: Vec<&Entry> = Vec::new();
    for entry in [near(3.0, true), near(6.0, true), near(6.0, false), near(12.0, false)].into_iter().flatten() {
        if !chosen.iter().any(|c| c.system() == entry.system() && c.nominal() == entry.nominal()) {
            chosen.push(entry);
        }
    }
    let mut ours = plan.ours()?;
    let mut out = Vec::new();
    for wanted in ["speech", "music"] {
        let Some(file) = files.iter().find(|f| kind(f) == wanted) else { continue };
        let pcm = read(file, SECONDS)?;
        let mut sounds = vec![("original".to_owned(), pcm.clone())];
        for entry in &chosen {
            let name = format!("{} {} kbit/s", entry.system(), entry.nominal());
            sounds.push((name, plan.sound(&mut ours, file, entry, &pcm)?));
        }
        out.push(Listening { item: stem(file), spectrograms: picture(&args.out, &sounds)?, sounds });
    }
    Ok(out)
}

fn picture(out: &Path, sounds: &[(String, Vec<f32>)]) -> Result<Vec<u8>> {
    let path = out.join("spectrograms.png");
    write_spectrograms(&path, sounds)?;
    let png = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    Ok(png)
}
