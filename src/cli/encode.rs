//! `undertone encode`: audio -> `.utn`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use super::progress;
use crate::bitstream::StreamHeader;
use crate::capture::AudioInput;
use crate::codec::{Encoder, Processor};
use crate::entropy::StreamWriter;
use crate::infer::{self, LoadedModel};
use crate::rvq::BeamWidth;
use crate::token::TokenModel;
use crate::units::{PcmFormat, StageCount};

/// Frames of a bundle in a file, in a coded one, and on a pipe where somebody waits.
const FILE_BUNDLE: u8 = 25;
const CODED_BUNDLE: u8 = 50;
const LIVE_BUNDLE: u8 = 5;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (WAV, FLAC, Ogg Vorbis, MP3), or - for the standard input
    input: PathBuf,
    /// File of codes (.utn), or - for the standard output
    output: PathBuf,
    /// Rate in kbit/s, 0.5 to 8 in steps of 0.5
    #[arg(long, default_value = "6", value_parser = parse_kbps)]
    kbps: StageCount,
    /// The input is bare samples: s16le or f32le, rate, channels, as in s16le:24000:1
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    /// Frames of 20 ms that travel together, 1 to 50 [default: 25 for files, 50 for coded ones, 5 for pipes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=50))]
    bundle: Option<u8>,
    /// Code the indices with the token model: fewer bits, the same sound
    #[arg(long)]
    coded: bool,
    /// Width of the codebook search, 1 (fastest) to 16 (best)
    #[arg(long, default_value = "4", value_parser = parse_beam)]
    beam: BeamWidth,
    /// Model folder [default: the shipped model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

pub(super) fn parse_kbps(s: &str) -> Result<StageCount, String> {
    let kbps: f64 = s.parse().map_err(|_| format!("\"{s}\" is not a number"))?;
    StageCount::from_kbps(kbps).map_err(|e| e.to_string())
}

pub(super) fn parse_beam(s: &str) -> Result<BeamWidth, String> {
    let width: u8 = s.parse().map_err(|_| format!("beam {s} out of range, allowed 1 to 16"))?;
    BeamWidth::new(width).map_err(|e| e.to_string())
}

/// The token model, which must be there.
pub(super) fn tokens(model: &LoadedModel) -> Result<Arc<TokenModel>> {
    let path = model.path.display();
    model.tokens()?.with_context(|| format!("model {path} has no token model (tokens.safetensors)"))
}

/// Writes bundles to a file or pipe as they are finished.
struct Out {
    to: Box<dyn Write>,
    path: PathBuf,
    bytes: Vec<u8>,
    live: bool,
}

impl Out {
    fn create(path: &Path) -> Result<Self> {
        let live = path == Path::new("-");
        let to: Box<dyn Write> = if live {
            Box::new(std::io::stdout().lock())
        } else {
            Box::new(BufWriter::new(File::create(path).with_context(|| path.display().to_string())?))
        };
        Ok(Self { to, path: path.to_owned(), bytes: Vec::new(), live })
    }

    /// Writes what `bytes` holds; on a pipe it leaves at once.
    fn send(&mut self, last: bool) -> Result<()> {
        self.to.write_all(&self.bytes).with_context(|| self.path.display().to_string())?;
        self.bytes.clear();
        if self.live || last {
            self.to.flush().with_context(|| self.path.display().to_string())?;
        }
        Ok(())
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut input = AudioInput::open(&args.input, args.raw)?;
    let model = infer::load_model(args.model.as_deref())?;
    let mut processor = model.processor(args.beam)?;
    let live = [&args.input, &args.output].iter().any(|p| *p == Path::new("-"));
    let file = if args.coded { CODED_BUNDLE } else { FILE_BUNDLE };
    let bundle = args.bundle.unwrap_or(if live { LIVE_BUNDLE } else { file });
    let tokens = if args.coded { Some(tokens(&model)?) } else { None };
    let profile = processor.profile();
    let mut encoder = Encoder::new(profile.clone(), args.kbps, bundle)?;
    // Whole bundles at a time: the first bundle can leave no earlier than its last frame anyway.
    encoder.set_job_frames(usize::from(bundle));
    let mut out = Out::create(&args.output)?;
    let mut writer = StreamWriter::new(StreamHeader::packed(&profile, args.kbps, bundle), tokens, &mut out.bytes);
    let bar = progress::bar(input.total_samples(), "samples", [&args.input, &args.output]);
    let mut pcm = Vec::new();
    loop {
        pcm.clear();
        let more = input.read(&mut pcm)?;
        encoder.push(&pcm);
        if !more {
            encoder.finish();
        }
        drain(&mut encoder, &mut processor, &mut writer, &mut out)?;
        bar.set_position(encoder.samples_in());
        if !more {
            break;
        }
    }
    writer.finish(Some(encoder.samples_in()), &mut out.bytes);
    out.send(true)?;
    bar.finish_and_clear();
    Ok(())
}

fn drain(encoder: &mut Encoder, processor: &mut Processor, writer: &mut StreamWriter, out: &mut Out) -> Result<()> {
    while let Some(mut job) = encoder.next_job() {
        processor.run_encode(std::slice::from_mut(&mut job))?;
        encoder.accept(job);
        while let Some(bundle) = encoder.next_bundle() {
            writer.write(&bundle, &mut out.bytes)?;
            out.send(false)?;
        }
    }
    Ok(())
}
