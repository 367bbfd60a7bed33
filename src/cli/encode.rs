//! `undertone encode`: audio -> `.utn`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::progress;
use super::rate::{Steering, TRIAL_SAMPLES};
use crate::bitstream::StreamHeader;
use crate::capture::AudioInput;
use crate::codec::{Encoder, Processor};
use crate::entropy::{Fit, StreamWriter};
use crate::infer::{self, LoadedModel};
use crate::rvq::BeamWidth;
use crate::synthesis::{Analyser, Refiner};
use crate::token::TokenModel;
use crate::units::{PcmFormat, StageCount};

/// Frames of a bundle in a file, in a coded one, and on a pipe where somebody waits.
const FILE_BUNDLE: u8 = 25;
const CODED_BUNDLE: u8 = 50;
const LIVE_BUNDLE: u8 = 5;

/// Width of the codebook search in files: it is paid once, whatever the rate.
pub(super) const FILE_BEAM: BeamWidth = BeamWidth::WIDEST;

/// Steps of the search in files: more give little (docs/synthesis.md).
pub(super) const REFINE_STEPS: u32 = 20;

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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=50))]
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

fn parse_rate(s: &str) -> Result<f64, String> {
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
    let live = [&args.input, &args.output].iter().any(|p| *p == Path::new("-"));
    let beam = if live { BeamWidth::FOUR } else { FILE_BEAM };
    let mut processor = model.processor(args.beam.unwrap_or(beam))?;
    let tokens = match (args.packed, args.coded) {
        (true, _) => None,
        (_, true) => Some(tokens(&model)?),
        _ => model.tokens()?,
    };
    let file = if tokens.is_some() { CODED_BUNDLE } else { FILE_BUNDLE };
    let bundle = args.bundle.unwrap_or(if live { LIVE_BUNDLE } else { file });
    let profile = processor.profile();
    let steps = args.refine.unwrap_or(if live { 0 } else { REFINE_STEPS });
    // A model without the gradient can do without, unless the search was asked for.
    let mut refiner = match args.refine {
        Some(steps) => refiner(&model, steps)?,
        None if steps > 0 => model.refiner(steps)?,
        None => None,
    };
    let analysed = !live || refiner.is_some();
    let mut analyser = Analyser::new(Arc::clone(&profile), refiner.as_mut());
    if live {
        analyser.set_part(usize::from(bundle));
    }
    let bar = progress::bar(input.total_samples(), "samples", [&args.input, &args.output]);
    let (mut start, mut latents) = (Vec::new(), Vec::new());
    let mut more = true;
    let mut steering = None;
    let stages = match (args.stages, &tokens) {
        (Some(stages), _) => stages,
        (None, None) => StageCount::from_kbps(args.kbps)?.min(profile.stages),
        (None, Some(_)) if live => {
            steering = Some(Steering::live(args.kbps));
            profile.stages
        }
        (None, Some(tokens)) => {
            while start.len() < TRIAL_SAMPLES && more {
                let before = start.len();
                more = input.read(&mut start)?;
                analyser.push(&start[before..]);
                if !more {
                    analyser.finish();
                }
                while analyser.next_part(&mut processor, &mut latents)? {
                    bar.set_position((latents.len() / profile.latent_dim * profile.frame_samples) as u64);
                }
            }
            // Of a longer recording the frames that are done, so that the silence at its end does not come into it.
            let done = latents.len() / profile.latent_dim * profile.frame_samples - profile.overlap_samples();
            let pcm = if more { &start[..done] } else { &start };
            let ladder = processor.ladder(&latents)?;
            let trial = Fit { tokens, pcm, ladder: &ladder, kbps: args.kbps, bundle };
            if args.even {
                trial.even(&profile)?
            } else {
                let frames = pcm.len() / profile.frame_samples + usize::from(bundle);
                let fitted = trial.graded(&profile)?;
                if !more {
                    let mut out = Out::create(&args.output)?;
                    out.bytes = fitted.bytes;
                    bar.finish_and_clear();
                    return out.send(true);
                }
                steering = Some(Steering::after(fitted.grading, args.kbps, frames as u32));
                profile.stages
            }
        }
    };
    let mut encoder = Encoder::new(Arc::clone(&profile), stages, bundle)?;
    // Whole bundles at a time: the first bundle can leave no earlier than its last frame anyway.
    encoder.set_job_frames(usize::from(bundle));
    let mut out = Out::create(&args.output)?;
    let header = StreamHeader { graded: steering.is_some(), ..StreamHeader::packed(&profile, stages, bundle) };
    let mut writer = StreamWriter::new(header, tokens, &mut out.bytes);
    let mut pcm = Vec::new();
    encoder.push(&start);
    loop {
        pcm.clear();
        if more {
            more = input.read(&mut pcm)?;
            encoder.push(&pcm);
        }
        if !more {
            encoder.finish();
        }
        if analysed {
            analyser.push(&pcm);
            if !more {
                analyser.finish();
            }
            while analyser.next_part(&mut processor, &mut latents)? {}
            encoder.push_latents(&latents);
            latents.clear();
        }
        drain(&mut encoder, &mut processor, &mut writer, &mut steering, &mut out)?;
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

fn drain(
    encoder: &mut Encoder,
    processor: &mut Processor,
    writer: &mut StreamWriter,
    steering: &mut Option<Steering>,
    out: &mut Out,
) -> Result<()> {
    loop {
        if let Some(steering) = steering {
            steering.hear(encoder.upcoming(), processor.profile().frame_samples);
            encoder.set_grading(steering.grading());
        }
        let Some(mut job) = encoder.next_job() else { return Ok(()) };
        processor.run_encode(std::slice::from_mut(&mut job))?;
        encoder.accept(job);
        while let Some(bundle) = encoder.next_bundle() {
            let before = out.bytes.len();
            writer.write(&bundle, &mut out.bytes)?;
            if let Some(steering) = steering {
                steering.spent(bundle.frames, out.bytes.len() - before);
            }
            out.send(false)?;
        }
    }
}
