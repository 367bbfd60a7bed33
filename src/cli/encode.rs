//! `undertone encode`: audio -> `.utn`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};

use indicatif::ProgressBar;

use super::progress;
use super::stop::stop_flag;
use crate::capture::{AudioInput, Content, OutputFile, is_stream};
use crate::cli::loading::ModelFolder;
use crate::infer::LoadedModel;
use crate::profile::Profile;
use crate::recording::{self, CODED_BUNDLE, Ends, FILE_BUNDLE, LIVE_BUNDLE, REFINE_STEPS, Rate, Settings};
use crate::rvq::BeamWidth;
use crate::synthesis::Refiner;
use crate::token::TokenModel;
use crate::units::{CODEC_RATE, PcmFormat, StageCount};

/// Width of the codebook search in files: it is paid once, whatever the rate.
pub(super) const FILE_BEAM: BeamWidth = BeamWidth::WIDEST;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording (WAV, FLAC, Ogg, MP3, AAC, M4A, AIFF, CAF), or - for the standard input
    input: PathBuf,
    /// File of codes (.utn), or - for the standard output
    output: PathBuf,
    /// Replace a file that is there even if it is a recording or something else
    #[arg(long)]
    force: bool,
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
    #[command(flatten)]
    model: ModelFolder,
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
struct Files {
    input: AudioInput,
    output: OutputFile,
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    /// Samples done.
    done: u64,
}

impl Ends for Files {
    type Error = anyhow::Error;

    fn read(&mut self, pcm: &mut Vec<f32>) -> Result<bool> {
        Ok(self.input.read(pcm)?)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.output.write(bytes)?)
    }

    fn done(&mut self, samples: u64) -> Result<()> {
        self.bar.set_position(samples);
        self.done = samples;
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let output = OutputFile::create(&args.output, Content::Codes, &[&args.input], args.force)?;
    let stop = stop_flag()?;
    let input = AudioInput::open_until(&args.input, args.raw, Some(Arc::clone(&stop)))?;
    let model = args.model.load()?;
    let live = is_stream(&args.input) || output.is_stream();
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
    let mut files = Files { input, output, stop, bar, done: 0 };
    let encoded = recording::encode(&mut processor, refiner.as_mut(), &settings, &mut files);
    files.bar.finish_and_clear();
    remark(&args.input, &files.input);
    let stopped = files.stopped();
    let done = format!("{:.1} s", files.done as f64 / f64::from(CODEC_RATE.hz()));
    match encoded {
        // A live source ends when it is told to; a recording goes on, and this is not all of it.
        Ok(()) if live || !stopped => Ok(files.output.finish()?),
        Ok(()) => interrupted(&args.output, &done, files.output.is_begun(), files.output.set_aside()?),
        Err(e) if live => {
            let kept = files.output.set_aside()?;
            Err(match kept {
                Some(part) => e.context(format!("what was encoded until then is in {}", part.display())),
                None => e,
            })
        }
        Err(e) => Err(e),
    }
}

/// Says what was unusual about an input.
pub(super) fn remark(path: &Path, input: &AudioInput) {
    for remark in input.remarks() {
        errln!("undertone: {}: {remark}", path.display());
    }
}

/// The error of a command that was interrupted with a part of its work done.
pub(super) fn interrupted(output: &Path, done: &str, begun: bool, aside: Option<PathBuf>) -> Result<()> {
    let output = output.display();
    match aside {
        _ if !begun => bail!("interrupted before anything was done; {output} was not written"),
        Some(part) => {
            bail!("interrupted after {done}: {output} is as it was, the part that is done is in {}", part.display())
        }
        None => bail!("interrupted after {done}: that much is in {output}"),
    }
}
