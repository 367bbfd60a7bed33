//! `undertone generate`: a recording goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::encode::{parse_beam, parse_kbps, remark, tokens};
use super::stop::stop_flag;
use crate::bitstream::Bundle;
use crate::capture::{AudioInput, AudioOutput};
use crate::cli::loading::ModelFolder;
use crate::codec::{Decoder, encode_all};
use crate::rvq::{BeamWidth, SimdLevel};
use crate::sampling::speculative::{MAX_AHEAD, Speculative};
use crate::sampling::{Params, Sampler, beam};
use crate::token::{Context, Generator, TokenModel};
use crate::units::{CODEC_RATE, PcmFormat, StageCount};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recording that is continued (as in `undertone encode`), or - for the standard input
    #[arg(long, value_name = "FILE")]
    prompt: PathBuf,
    /// Recording with the prompt and its continuation (24 kHz mono WAV), or - for the standard output
    output: PathBuf,
    /// Replace a file that is there even if it is no recording
    #[arg(long)]
    force: bool,
    /// Seconds to add, up to 600
    #[arg(long, default_value = "3", value_parser = parse_seconds)]
    seconds: f64,
    /// Rate in kbit/s at which the codes are made, 0.5 to 12 in steps of 0.5
    #[arg(long, default_value = "3", value_parser = parse_kbps)]
    kbps: StageCount,
    /// Divides the logits; 0 always takes the likeliest code
    #[arg(long, default_value = "0.8")]
    temperature: f32,
    /// Keep the K likeliest codes
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the likeliest codes that hold this probability together
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Keep the most typical codes that hold this probability together
    #[arg(long, value_name = "P")]
    typical: Option<f32>,
    /// Make codes of the last WINDOW choices less likely: FACTOR:WINDOW, as in 1.2:64
    #[arg(long, value_name = "FACTOR:WINDOW", value_parser = parse_repetition)]
    repetition: Option<(f32, usize)>,
    /// Search the likeliest codes of every frame with a beam, instead of drawing them
    #[arg(long, value_name = "WIDTH", value_parser = parse_beam, conflicts_with_all = ["speculative", "top_k", "top_p", "typical", "repetition"])]
    beam: Option<BeamWidth>,
    /// Let the draft model propose so many codes at a time, 1 to 16; the result has the same distribution
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u8).range(1..=MAX_AHEAD as i64))]
    speculative: Option<u8>,
    /// Seed: the same seed, prompt and options give the same recording
    #[arg(long, default_value = "1")]
    seed: u64,
    /// Write the continuation alone, without the prompt
    #[arg(long)]
    only: bool,
    /// The prompt is bare samples: s16le or f32le, rate, channels, as in s16le:24000:1
    #[arg(long, value_name = "FORMAT")]
    raw: Option<PcmFormat>,
    #[command(flatten)]
    model: ModelFolder,
}

fn parse_seconds(s: &str) -> Result<f64, String> {
    let seconds: f64 = s.parse().map_err(|_| format!("\"{s}\" is not a number"))?;
    if (0.02..=600.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("{s} seconds out of range, allowed 0.02 to 600"))
    }
}

fn parse_repetition(s: &str) -> Result<(f32, usize), String> {
    let wrong = || format!("repetition \"{s}\": expected FACTOR:WINDOW, as in 1.2:64");
    let (factor, window) = s.split_once(':').ok_or_else(wrong)?;
    Ok((factor.parse().map_err(|_| wrong())?, window.parse().map_err(|_| wrong())?))
}

fn params(args: &Args) -> Result<Params> {
    let mut p = Params::default().temperature(args.temperature)?;
    if let Some(k) = args.top_k {
        p = p.top_k(k)?;
    }
    if let Some(share) = args.top_p {
        p = p.top_p(share)?;
    }
    if let Some(share) = args.typical {
        p = p.typical(share)?;
    }
    if let Some((factor, window)) = args.repetition {
        p = p.repetition(factor, window)?;
    }
    Ok(p)
}

/// A context that has heard the prompt.
fn primed(model: &Arc<TokenModel>, prompt: &[Bundle], stages: StageCount) -> Context {
    let mut context = Context::new(Arc::clone(model), stages, SimdLevel::detect());
    prompt.iter().flat_map(|b| &b.codes).for_each(|&c| context.push(c));
    context
}

pub(super) fn run(args: &Args) -> Result<()> {
    let params = params(args)?;
    let mut output = AudioOutput::create(&args.output, None, &[&args.prompt], args.force)?;
    let stop = stop_flag()?;
    let model = args.model.load()?;
    let target = tokens(&model)?;
    let draft = match args.speculative {
        Some(_) => {
            Some(model.draft()?.with_context(|| format!("model {} has no draft.safetensors", model.path.display()))?)
        }
        None => None,
    };
    let mut input = AudioInput::open_until(&args.prompt, args.raw, Some(Arc::clone(&stop)))?;
    let mut pcm = Vec::new();
    while input.read(&mut pcm)? {}
    remark(&args.prompt, &input);
    let mut processor = model.processor(BeamWidth::new(4).unwrap_or(BeamWidth::GREEDY))?;
    let profile = processor.profile();
    let mut prompt = encode_all(&mut processor, &pcm, args.kbps, 1)?;
    // The last frame holds the end of the prompt and the silence after it, which would be continued.
    prompt.truncate(pcm.len() / profile.frame_samples);
    ensure!(
        !prompt.is_empty(),
        "{}: {} samples, at least one frame of 480 is needed",
        args.prompt.display(),
        pcm.len()
    );
    let frames = (args.seconds * f64::from(CODEC_RATE.hz()) / profile.frame_samples as f64).round() as usize;
    let started = Instant::now();
    let codes = generate(args, params, (&target, draft.as_ref()), &prompt, frames, &stop);
    let took = started.elapsed().as_secs_f64();
    let rate = codes.len() as f64 / took;
    errln!(
        "undertone: {} codes in {took:.2} s: {rate:.0} a second, {:.1} x real time",
        codes.len(),
        args.seconds / took
    );
    let mut decoder = Decoder::new(profile.clone());
    let mut out = Vec::new();
    let next = prompt.len() as u64;
    let continued = (next..)
        .zip(codes.chunks_exact(args.kbps.index()))
        .map(|(frame, c)| Bundle::new(frame, 1, args.kbps, c.to_vec()));
    for bundle in prompt.into_iter().map(Ok).chain(continued) {
        decoder.push(bundle?)?;
        processor.decode(&mut decoder, &mut out)?;
    }
    let skip = profile.overlap_samples() + if args.only { next as usize * profile.frame_samples } else { 0 };
    output.write(out.get(skip..).unwrap_or_default())?;
    Ok(output.finish()?)
}

fn generate(
    args: &Args,
    params: Params,
    (target, draft): (&Arc<TokenModel>, Option<&Arc<TokenModel>>),
    prompt: &[Bundle],
    frames: usize,
    stop: &AtomicBool,
) -> Vec<u16> {
    let stopped = || stop.load(Ordering::Relaxed);
    let stages = args.kbps;
    let wanted = frames * stages.index();
    let mut context = primed(target, prompt, stages);
    let mut codes = Vec::with_capacity(wanted);
    if let Some(width) = args.beam {
        for _ in (0..frames).take_while(|_| !stopped()) {
            let (frame, _) = beam::search(&context, width.value(), stages.index());
            frame.iter().for_each(|&c| context.push(c));
            codes.extend(frame);
        }
        return codes;
    }
    let mut sampler = Sampler::new(params, args.seed);
    if let (Some(draft), Some(ahead)) = (draft, args.speculative) {
        let mut draft = primed(draft, prompt, stages);
        let mut machine = Speculative::new(usize::from(ahead), true);
        while codes.len() < wanted && !stopped() {
            machine.round(&mut draft, &mut context, &mut sampler, wanted - codes.len(), &mut codes);
        }
        let s = machine.stats();
        errln!(
            "undertone: {:.1} % of {} drafted codes kept, {:.2} codes a round",
            100.0 * s.acceptance(),
            s.proposed,
            s.tokens as f64 / s.rounds.max(1) as f64
        );
        return codes;
    }
    let history = prompt.iter().map(|b| b.codes.as_slice());
    let mut generator = Generator::new(Arc::clone(target), history, stages, params, args.seed);
    (0..frames).take_while(|_| !stopped()).for_each(|_| generator.frame(&mut codes));
    codes
}
