//! `undertone model tokens`: what the token model knows.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, ensure};
use data_encoding::HEXLOWER;

use super::encode::{parse_kbps, tokens};
use crate::capture::AudioInput;
use crate::cli::loading::ModelFolder;
use crate::codec::encode_all;
use crate::rvq::{BeamWidth, SimdLevel};
use crate::table;
use crate::token::{Context, Frequencies, TokenModel};
use crate::units::StageCount;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recordings to measure on (as in `undertone encode`)
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Rate in kbit/s, 0.5 to 12 in steps of 0.5
    #[arg(long, default_value = "6", value_parser = parse_kbps)]
    kbps: StageCount,
    /// Print the nearest neighbours of this entry of every stage
    #[arg(long, value_name = "ENTRY", value_parser = clap::value_parser!(u16).range(0..1024))]
    neighbours: Option<u16>,
    #[command(flatten)]
    model: ModelFolder,
}

/// Frames after which the context is thrown away, to see what it is worth.
const SPANS: [usize; 8] = [1, 2, 5, 10, 25, 50, 128, usize::MAX];

/// Bits of all codes by stage, if the context restarts every `span` frames.
fn bits(model: &Arc<TokenModel>, recordings: &[Vec<u16>], stages: StageCount, span: usize) -> Vec<f64> {
    let mut sums = vec![0.0; stages.index()];
    let mut frequencies = Frequencies::uniform(model.shape().entries);
    for codes in recordings {
        let mut context = Context::new(Arc::clone(model), stages, SimdLevel::detect());
        for (i, frame) in codes.chunks_exact(stages.index()).enumerate() {
            if i % span == 0 {
                context.restart();
            }
            for (sum, &code) in sums.iter_mut().zip(frame) {
                context.frequencies(&mut frequencies);
                *sum += frequencies.bits(code);
                context.push(code);
            }
        }
    }
    sums
}

pub(super) fn run(args: &Args) -> Result<()> {
    let loaded = args.model.load()?;
    let model = tokens(&loaded)?;
    let s = model.shape();
    outln!("token model  {}", HEXLOWER.encode(&model.id()));
    outln!("parameters   {:.2} million, 8 bit", model.parameters() as f64 / 1e6);
    outln!("transformer  {} layers x {} values, {} heads, window {} frames", s.layers, s.width, s.heads, s.window);
    let mut processor = loaded.processor(BeamWidth::new(4).unwrap_or(BeamWidth::GREEDY))?;
    let mut recordings = Vec::new();
    for path in &args.inputs {
        let mut input = AudioInput::open(path, None)?;
        let mut pcm = Vec::new();
        while input.read(&mut pcm)? {}
        let bundles = encode_all(&mut processor, &pcm, args.kbps, 1)?;
        recordings.push(bundles.into_iter().flat_map(|b| b.codes).collect::<Vec<u16>>());
    }
    let frames = recordings.iter().map(|r| r.len() / args.kbps.index()).sum::<usize>();
    ensure!(frames > 0, "the recordings hold no frame of 20 ms");
    let whole = bits(&model, &recordings, args.kbps, usize::MAX);
    outln!("\n{frames} frames of {} recordings at {} kbit/s", recordings.len(), args.kbps.kbps());
    let means = whole.iter().map(|sum| sum / frames as f64).enumerate();
    let rows: Vec<_> = means
        .map(|(stage, mean)| [(stage + 1).to_string(), format!("{mean:.2}"), format!("{:.0}", mean.exp2())])
        .collect();
    out!("{}", table::lines(&["stage", "bits of 10", &format!("perplexity of {}", s.entries)], &rows));
    let packed = (frames * args.kbps.index() * 10) as f64;
    let rows = SPANS.map(|span| {
        let sum: f64 = bits(&model, &recordings, args.kbps, span).iter().sum();
        let name = if span == usize::MAX { "all".to_owned() } else { span.to_string() };
        [name, format!("{:.3}", 10.0 * sum / packed), format!("{:.1} %", 100.0 * (1.0 - sum / packed))]
    });
    out!("\n{}", table::lines(&["context in frames", "bits a code", "saved"], &rows));
    if let Some(entry) = args.neighbours {
        outln!("\nnearest to entry {entry} by cosine of the output embedding");
        out!("{}", nearest(args.kbps.index(), |stage| model.neighbours(stage, entry, 5)));
    }
    Ok(())
}

/// A table of the entries that are nearest, with their cosines, a row a stage.
pub(super) fn nearest(stages: usize, near: impl Fn(usize) -> Vec<(u16, f32)>) -> String {
    let entry = |(entry, cosine): (u16, f32)| format!("{entry} ({cosine:.2})");
    let row = |k: usize| [(k + 1).to_string()].into_iter().chain(near(k).into_iter().map(entry)).collect();
    table::lines(&["stage", "1", "2", "3", "4", "5"], &(0..stages).map(row).collect::<Vec<Vec<_>>>())
}
