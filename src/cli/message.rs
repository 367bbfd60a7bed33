//! `undertone message`: a voice message as packets that are decodable alone, and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::encode::{FILE_BEAM, parse_rate, remark};
use crate::bitstream::{Bundle, MessagePacket};
use crate::capture::{AudioInput, AudioOutput, same};
use crate::cli::loading::ModelFolder;
use crate::codec::{Concealer, Decoder, MAX_GAP_FRAMES};
use crate::infer::LoadedModel;
use crate::recording::{PacketOptions, REFINE_STEPS, open_packet, packets};
use crate::rvq::BeamWidth;
use crate::synthesis::analyse_all;
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, PcmFormat};

/// Longest message: an hour.
const LONGEST_S: usize = 3_600;

/// Most bytes of a packet, and most packets of a folder: an hour of the shortest.
const MAX_BYTES: u64 = 4_096;
const MAX_PACKETS: usize = 50 * LONGEST_S;

/// How names of packets end.
const EXTENSION: &str = "utp";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (as in `undertone encode`), or a folder of packets to read back
    input: PathBuf,
    /// Folder for the packets, a file each; or the recording to write
    output: PathBuf,
    /// Most bytes of a packet, 32 to 4096
    #[arg(long, value_name = "N", default_value = "200", value_parser = clap::value_parser!(u64).range(32..=MAX_BYTES))]
    bytes: u64,
    /// Rate in kbit/s, every byte of the packets counted: at a lower one a packet holds more time
    #[arg(long, default_value = "3", value_parser = parse_rate)]
    kbps: f64,
    /// Write 10 bits an index, for readers without the token model
    #[arg(long)]
    packed: bool,
    /// Replace a recording or packets that are there
    #[arg(long)]
    force: bool,
    /// The input is bare samples: s16le or f32le, rate, channels, as in s16le:24000:1
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    #[command(flatten)]
    model: ModelFolder,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    if args.input.is_dir() { read(args, &model) } else { write(args, &model) }
}

fn is_packet(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == EXTENSION)
}

/// Packets in a folder, by name.
fn in_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        if is_packet(&path) {
            found.push(path);
        }
        if found.len() > MAX_PACKETS {
            bail!("{}: more than {MAX_PACKETS} packets", folder.display());
        }
    }
    found.sort();
    Ok(found)
}

fn write(args: &Args, model: &LoadedModel) -> Result<()> {
    let mut input = AudioInput::open(&args.input, args.raw)?;
    let (mut pcm, most) = (Vec::new(), LONGEST_S * CODEC_RATE.hz() as usize);
    while input.read(&mut pcm)? {
        if pcm.len() > most {
            bail!("{}: longer than an hour, the most that a message may be", args.input.display());
        }
    }
    remark(&args.input, &input);
    if pcm.is_empty() {
        bail!("{}: no sound", args.input.display());
    }
    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    let before = in_folder(&args.output)?;
    if let Ok(input) = fs::metadata(&args.input)
        && before.iter().filter_map(|p| fs::metadata(p).ok()).any(|packet| same(&packet, &input))
    {
        bail!("{}: the output is also the input; nothing was changed", args.input.display());
    }
    if !before.is_empty() && !args.force {
        bail!("{}: {} packets are there already; --force replaces them", args.output.display(), before.len());
    }
    let mut processor = model.processor(FILE_BEAM)?;
    let mut refiner = model.refiner(REFINE_STEPS)?;
    let latents = analyse_all(&mut processor, refiner.as_mut(), &pcm)?;
    let ladder = processor.ladder(&latents)?;
    let tokens = if args.packed { None } else { model.tokens()? };
    let options = PacketOptions { bytes: args.bytes as usize, kbps: args.kbps };
    let made = packets(&model.profile, tokens.as_ref(), &pcm, &ladder, options)?;
    for path in before {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    for (number, packet) in made.iter().enumerate() {
        let path = args.output.join(format!("{number:06}.{EXTENSION}"));
        fs::write(&path, packet).with_context(|| path.display().to_string())?;
    }
    let (bytes, seconds) = (made.iter().map(Vec::len).sum::<usize>(), pcm.len() as f64 / f64::from(CODEC_RATE.hz()));
    let kbps = bytes as f64 * 8.0 / 1e3 / seconds;
    errln!("undertone: {} packets, {bytes} bytes, {seconds:.1} s, {kbps:.2} kbit/s", made.len());
    Ok(())
}

/// The bundles of one message in order, each once, and the frame that it ends with if its last packet is there. Packets that cannot
/// be read are left out.
fn bundles(
    paths: &[PathBuf],
    model: &LoadedModel,
    tokens: Option<&Arc<TokenModel>>,
) -> Result<(Vec<Bundle>, Option<u64>)> {
    let (mut bundles, mut message, mut end) = (Vec::<Bundle>::new(), None, None);
    for path in paths {
        let name = || path.display().to_string();
        let bytes = fs::metadata(path).with_context(name)?.len();
        if bytes > MAX_BYTES {
            errln!("undertone: {}: {bytes} bytes, longer than any packet: left out", path.display());
            continue;
        }
        let bytes = fs::read(path).with_context(name)?;
        let opened = MessagePacket::parse(&bytes)
            .map_err(Into::into)
            .and_then(|p| open_packet(&model.profile, tokens, &p).map(|bundle| (p, bundle)));
        match opened {
            Ok((packet, _)) if *message.get_or_insert(packet.message) != packet.message => {
                errln!("undertone: {}: of another message: left out", path.display());
            }
            Ok((packet, bundle)) => {
                if packet.last {
                    end = Some(bundle.first_frame.saturating_add(u64::from(bundle.frames)));
                }
                bundles.push(bundle);
            }
            // What a radio damaged is as lost as what it did not bring.
            Err(e) => errln!("undertone: {}: {e}: left out", path.display()),
        }
    }
    bundles.sort_by_key(|b| b.first_frame);
    bundles.dedup_by_key(|b| b.first_frame);
    Ok((bundles, end))
}

fn read(args: &Args, model: &LoadedModel) -> Result<()> {
    let paths = in_folder(&args.input)?;
    let inputs: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    let mut output = AudioOutput::create(&args.output, args.raw, &inputs, args.force)?;
    let tokens = model.tokens()?;
    let (bundles, end) = bundles(&paths, model, tokens.as_ref())?;
    if bundles.is_empty() {
        bail!("{}: no packets that can be read", args.input.display());
    }
    let mut processor = model.processor(BeamWidth::GREEDY)?;
    let mut decoder = Decoder::concealing(model.profile.clone(), Concealer::new(tokens));
    let (mut pcm, mut missing) = (Vec::new(), bundles.first().map_or(0, |b| b.first_frame));
    for bundle in bundles {
        decoder.push(bundle)?;
        processor.decode(&mut decoder, &mut pcm)?;
    }
    missing += decoder.missing_frames();
    let tail = match (end, decoder.expected()) {
        (None, _) => " the end is missing;",
        (Some(end), Some(expected)) if end > expected => {
            let lost = (end - expected).min(MAX_GAP_FRAMES);
            decoder.lose(lost);
            processor.decode(&mut decoder, &mut pcm)?;
            missing += lost;
            ""
        }
        _ => "",
    };
    output.write(pcm.get(model.profile.overlap_samples()..).unwrap_or_default())?;
    output.finish()?;
    let seconds = pcm.len() as f64 / f64::from(CODEC_RATE.hz());
    let lost = missing as f64 / f64::from(crate::profile::Profile::FRAMES_PER_SECOND);
    errln!("undertone: {seconds:.1} s;{tail} {lost:.2} s were missing");
    Ok(())
}
