//! `undertone encode`: audio -> `.utn`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use indicatif::ProgressBar;

use super::progress;
use crate::capture::AudioInput;
use crate::infer::{self, LoadedModel};
use crate::profile::Profile;
use crate::recording::{self, CODED_BUNDLE, Ends, FILE_BUNDLE, LIVE_BUNDLE, REFINE_STEPS, Rate, Settings};
use crate::rvq::BeamWidth;
use crate::synthesis::Refiner;
use crate::token::TokenModel;
use crate::units::{PcmFormat, StageCount};

/// Width of the codebook search in files: it is paid once, whatever the rate.
pub(super) const FILE_BEAM: BeamWidth = BeamWidth::WIDEST;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (WAV, FLAC, Ogg Vorbis, MP3), or - for the standard input
    input: PathBuf,
    /// File of codes (.utn), or - for the standard output
    output: PathBuf,
    /// Rate in kbit/s, 0.5 to 12. A coded file gets as many stages as fit into it, every byte counted, loud frames more than
    /// quiet ones; a packed one has a stage for every 0.5
    #[arg(long, default_value = "6", value_parser = parse_rate)]
    kbps: f64,
    /// Use so many stages, 1 to 24, whatever rate that gives
    #[arg(long, value_name = "N", value_parser = parse_stages, conflicts_with = "kbps")]
    stages: Option<StageCount>,
    /// Give every frame the same number of stages
    #[arg(long, conflicts_with_all = ["packed", "stages"])]
    even: bool,
    /// The input is bare samples: s16le or f32le, rate, channels, as in s16le:24000:1
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    /// Frames of 20 ms that travel together, 1 to 50 [default: 25 for files, 50 for coded ones, 5 for pipes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(Profile::MAX_FRAMES_PER_BUNDLE)))]
    bundle: Option<u8>,
    /// Code the indices with the token model: a third fewer bits, the same sound [default if the model folder has one]
    #[arg(long)]
    coded: bool,
    /// Write 10 bits an index, which any reader of the format can decode without the token model
    #[arg(long, conflicts_with = "coded")]
    packed: bool,
    /// Width of the codebook search, 1 (fastest) to 16 (best) [default: 16 for files, 4 for pipes]
    #[arg(long, value_parser = parse_beam)]
    beam: Option<BeamWidth>,
    /// Steps of analysis by synthesis, 0 to 200: latents are moved until what is decoded sounds like the input. Each takes about
    /// 2 % of the recording's length on one core [default: 20 for files, 0 for pipes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=200))]
    refine: Option<u32>,
    /// Model folder [default: the shipped model]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
}

pub(super) fn parse_kbps(s: &str) -> Result<StageCount, String> {
    let kbps: f64 = s.parse().map_err(|_| format!("\"{s}\" is not a number"))?;
    StageCount::from_kbps(kbps).map_err(|e| e.to_string())
}

pub(super) fn parse_rate(s: &str) -> Result<f64, String> {
    match s.parse::<f64>() {
        Ok(kbps) if (0.5..=12.0).contains(&kbps) => Ok(kbps),
        _ => Err(format!("rate {s} kbit/s out of range, allowed 0.5 to 12")),
    }
}

pub(super) fn parse_stages(s: &str) -> Result<StageCount, String> {
    let n: u8 = s.parse().map_err(|_| format!("stage count {s} out of range, allowed 1 to 24"))?;
    StageCount::new(n).map_err(|e| e.to_string())
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

/// What searches for latents by `steps` steps, none for 0.
pub(super) fn refiner(model: &LoadedModel, steps: u32) -> Result<Option<Refiner>> {
    if steps == 0 {
        return Ok(None);
    }
    let refiner = model.refiner(steps)?;
    if refiner.is_none() {
        bail!("model {} has no gradient of its decoder (gradient.onnx): leave --refine away", model.path.display());
    }
    Ok(refiner)
}

/// The recording, and the file or pipe that takes its codes.
struct Files<'a> {
    input: AudioInput,
    path: &'a Path,
    /// Made with the first bytes: a recording that cannot be read leaves no file behind.
    output: Option<Box<dyn Write>>,
    /// Whether somebody waits at the end of a pipe.
    live: bool,
    bar: ProgressBar,
}

impl Files<'_> {
    fn flush(&mut self) -> Result<()> {
        self.output.as_mut().map_or(Ok(()), Write::flush).with_context(|| self.path.display().to_string())
    }
}

impl Ends for Files<'_> {
    type Error = anyhow::Error;

    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool> {
        Ok(self.input.read(pcm)?)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let name = || self.path.display().to_string();
        let output = match &mut self.output {
            Some(output) => output,
            none if self.path == Path::new("-") => none.insert(Box::new(std::io::stdout().lock())),
            none => none.insert(Box::new(BufWriter::new(File::create(self.path).with_context(name)?))),
        };
        output.write_all(bytes).with_context(name)?;
        if self.live { self.flush() } else { Ok(()) }
    }

    fn done(&mut self, samples: u64) -> Result<()> {
        self.bar.set_position(samples);
        Ok(())
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let input = AudioInput::open(&args.input, args.raw)?;
    let model = infer::load_model(args.model.as_deref())?;
    let live = [&args.input, &args.output].iter().any(|p| *p == Path::new("-"));
    let beam = if live { BeamWidth::FOUR } else { FILE_BEAM };
    let mut processor = model.processor(args.beam.unwrap_or(beam))?;
    let tokens = match (args.packed, args.coded) {
        (true, _) => None,
        (_, true) => Some(tokens(&model)?),
        _ => model.tokens()?,
    };
    // A model without the gradient can do without, unless the search was asked for.
    let mut refiner = match args.refine {
        Some(steps) => refiner(&model, steps)?,
        None if live => None,
        None => model.refiner(REFINE_STEPS)?,
    };
    let file = if tokens.is_some() { CODED_BUNDLE } else { FILE_BUNDLE };
    let settings = Settings {
        rate: args.stages.map_or(Rate::Kbps(args.kbps), Rate::Stages),
        even: args.even,
        bundle: args.bundle.unwrap_or(if live { LIVE_BUNDLE } else { file }),
        live,
        tokens,
    };
    let bar = progress::bar(input.total_samples(), "samples", [&args.input, &args.output]);
    let mut files = Files { input, path: &args.output, output: None, live: args.output == Path::new("-"), bar };
    recording::encode(&mut processor, refiner.as_mut(), &settings, &mut files)?;
    files.flush()?;
    files.bar.finish_and_clear();
    Ok(())
}
