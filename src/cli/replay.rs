//! `undertone replay`: a stream as it was, from what JetStream keeps.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

use super::encode::parse_kbps;
use super::listen::Destination;
use super::send::parse_stream;
use super::stop::stop_flag;
use crate::bus::layers::{Assembler, Epoch, Kind, LayerMessage, layers_of};
use crate::bus::{Bus, parse_time};
use crate::cli::loading::ModelFolder;
use crate::codec::Profile;
use crate::session::{PackedBundle, StreamName};
use crate::units::{PcmFormat, StageCount};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (24 kHz mono WAV), codes as they were (.utn), or - for the standard output
    output: PathBuf,
    /// Replace a file that is there even if it holds something else than what is written
    #[arg(long)]
    force: bool,
    /// Name of the stream
    #[arg(long, default_value = "main", value_parser = parse_stream)]
    stream: StreamName,
    /// Begin so long ago, as in 90s, 15m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_ago, required_unless_present = "since")]
    last: Option<Duration>,
    /// Begin at this time, as in 2026-05-01T09:30:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_since, conflicts_with = "last")]
    since: Option<SystemTime>,
    /// Stop after so many seconds of audio [default: at what is newest now]
    #[arg(long)]
    seconds: Option<f64>,
    /// Most kbit/s wanted [default: all there are]
    #[arg(long, value_parser = parse_kbps)]
    kbps: Option<StageCount>,
    /// Write bare samples instead: s16le or f32le, rate, channels, as in s16le:48000:2
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    #[command(flatten)]
    model: ModelFolder,
    #[command(flatten)]
    nats: super::nats::Args,
}

fn parse_ago(s: &str) -> Result<Duration, String> {
    let error = || format!("{s} is not a time: a number with s, m, h or d, as in 90s, 15m, 2h");
    let unit = s.chars().next_back().ok_or_else(error)?;
    let seconds = [('s', 1), ('m', 60), ('h', 3_600), ('d', 86_400)].iter().find(|u| u.0 == unit).ok_or_else(error)?.1;
    let number: u32 = s[..s.len() - 1].parse().map_err(|_| error())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

fn parse_since(s: &str) -> Result<SystemTime, String> {
    parse_time(s).map_err(|e| e.to_string())
}

/// Bundles of one publisher after another, with frame numbers that go on.
struct Past<'a> {
    profile: &'a Profile,
    layers: usize,
    current: Option<(Epoch, Assembler)>,
    /// Added to the publisher's frame numbers; None until its first bundle.
    shift: Option<i128>,
    next_frame: u64,
    lost: u64,
    malformed: u64,
}

impl Past<'_> {
    fn take(&mut self, message: &LayerMessage, out: &mut Vec<PackedBundle>) {
        if !matches!(message.kind, Kind::Codes | Kind::Graded | Kind::Background) {
            return;
        }
        if message.model != self.profile.model_id {
            self.malformed += 1;
            return;
        }
        if self.current.as_ref().is_none_or(|(epoch, _)| *epoch != message.epoch) {
            self.drain(true, out);
            self.current = Some((message.epoch, Assembler::new(self.layers, self.profile.entries)));
            self.shift = None;
        }
        if let Some((_, assembler)) = &mut self.current
            && assembler.push(message).is_err()
        {
            self.malformed += 1;
        }
        self.drain(false, out);
    }

    fn drain(&mut self, hurry: bool, out: &mut Vec<PackedBundle>) {
        let Some((_, assembler)) = &mut self.current else { return };
        loop {
            match assembler.pop(hurry) {
                Ok(Some(mut bundle)) => {
                    // The first bundle of a publisher follows the last one of the publisher before.
                    let shift = *self.shift.get_or_insert(i128::from(self.next_frame) - i128::from(bundle.first_frame));
                    let Ok(first) = u64::try_from(i128::from(bundle.first_frame) + shift) else { continue };
                    bundle.first_frame = first;
                    self.next_frame = first.saturating_add(u64::from(bundle.frames));
                    out.push(bundle);
                }
                Ok(None) => break,
                Err(_) => self.malformed += 1,
            }
        }
        self.lost += assembler.take_lost();
    }
}

pub(super) fn run(args: Args) -> Result<()> {
    let since = match (args.since, args.last) {
        (Some(since), _) => since,
        (None, Some(ago)) => SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH),
        (None, None) => bail!("--last or --since is needed"),
    };
    let model = args.model.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut replay = runtime.block_on(async {
        let bus = Bus::connect(&args.nats.options()).await?;
        bus.replay(&args.stream, since).await
    })?;
    if replay.left() == 0 {
        bail!("nothing of stream {} is kept from then on", args.stream);
    }
    let profile = &model.profile;
    let stages = args.kbps.unwrap_or(StageCount::MAX);
    let mut past =
        Past { profile, layers: layers_of(stages), current: None, shift: None, next_frame: 0, lost: 0, malformed: 0 };
    let mut sink = Destination::create(&args.output, args.raw, args.force, &model)?;
    let frames_wanted = args.seconds.map_or(u64::MAX, |s| (s * f64::from(Profile::FRAMES_PER_SECOND)).ceil() as u64);
    let mut bundles = Vec::new();
    let stop = stop_flag()?;
    while past.next_frame < frames_wanted && !stop.load(Ordering::Relaxed) {
        match runtime.block_on(replay.next())? {
            Some(Ok(message)) => past.take(&message, &mut bundles),
            Some(Err(_)) => past.malformed += 1,
            None => break,
        }
        for bundle in bundles.drain(..) {
            sink.write(&bundle.limited(stages)?, profile)?;
        }
    }
    past.drain(true, &mut bundles);
    for bundle in bundles {
        sink.write(&bundle.limited(stages)?, profile)?;
    }
    if past.next_frame == 0 {
        bail!("nothing of stream {} came; nothing was written", args.stream);
    }
    sink.finish()?;
    if past.lost > 0 || past.malformed > 0 {
        errln!("undertone: {} bundles are missing, {} messages made no sense", past.lost, past.malformed);
    }
    Ok(())
}
