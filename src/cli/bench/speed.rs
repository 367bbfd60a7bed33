//! `undertone bench speed`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::machine::{command, machine, memory_mib};
use crate::cli::encode::parse_beam;
use crate::cli::loading::ModelFolder;
use crate::codec::{self, Decoder, Encoder, Processor};
use crate::infer::{LoadedModel, Networks};
use crate::referee::{Chart, Codec, Opus, OpusSettings, Packet, Repair, cpu_time, svg};
use crate::rvq::{BeamWidth, Searcher, SimdLevel, Wanted};
use crate::table;
use crate::units::{CODEC_RATE, StageCount};

/// Samples of a second.
const SECOND: usize = CODEC_RATE.hz() as usize;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seconds of audio for latencies of frames
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(10..=36_000))]
    seconds: u32,
    /// Length of the recording that shows growth with length, in seconds; 36000 is ten hours
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(60..=36_000))]
    longest: u32,
    /// Width of the codebook search
    #[arg(long, default_value = "4", value_parser = parse_beam)]
    beam: BeamWidth,
    /// How the networks compute: int8 as in the daemon, or float
    #[arg(long, default_value = "int8")]
    networks: Networks,
    /// Folder for speed.csv and growth.svg
    #[arg(long, default_value = "out/bench-speed")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelFolder,
}

/// A line of the result: what, in which unit, how much.
type Line = (String, &'static str, f64);

pub(super) fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    let mut processor = model.processor_with(args.networks, args.beam)?;
    let stages = StageCount::new(12)?;
    outln!(
        "{}\n{}\nbeam {}, networks {:?}; times are processor time of one thread unless they say wall\n",
        command(),
        machine(),
        args.beam.value(),
        args.networks
    );
    let mut lines = Lines::default();
    lines.add(parts(&model, args.beam, &mut processor, stages)?);
    for bundle in [1, 3, 5, 25] {
        lines.add(frames(&mut processor, stages, bundle, args.seconds as usize)?);
    }
    lines.add(opus()?);
    let growth = Growth::measure(&mut processor, stages, args.longest as usize, &mut lines)?;
    lines.add(memory(&processor));
    out!("{}", table::lines(&Lines::HEAD, &lines.numbers(3)));
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let csv = table::csv(&Lines::HEAD, &lines.numbers(4))?;
    for (name, text) in [("speed.csv", csv), ("growth.svg", growth.picture()?)] {
        std::fs::write(args.out.join(name), text).with_context(|| args.out.display().to_string())?;
    }
    Ok(())
}

/// What was measured so far.
#[derive(Default)]
struct Lines(Vec<Line>);

impl Lines {
    const HEAD: [&str; 3] = ["what", "unit", "value"];

    fn add(&mut self, new: Vec<Line>) {
        new.iter().for_each(|(what, ..)| errln!("measured: {what}"));
        self.0.extend(new);
    }

    fn numbers(&self, digits: usize) -> Vec<[String; 3]> {
        let row = |(what, unit, value): &Line| [what.clone(), (*unit).to_owned(), format!("{value:.digits$}")];
        self.0.iter().map(row).collect()
    }
}

/// How the cost grows, as points of charts.
struct Growth {
    /// To encode and to decode.
    by_stages: [Vec<(f64, f64)>; 2],
    by_bundle: Vec<(f64, f64)>,
    by_streams: Vec<(f64, f64)>,
    /// Seconds of audio, of processor time, and MiB resident.
    lengths: Vec<(f64, f64, f64)>,
}

impl Growth {
    fn measure(processor: &mut Processor, stages: StageCount, longest: usize, lines: &mut Lines) -> Result<Self> {
        let (mut by_stages, mut by_bundle, mut by_streams) = ([const { Vec::new() }; 2], Vec::new(), Vec::new());
        for stages in [1, 3, 6, 12, 16, 24] {
            let (encode, decode) = stream(processor, StageCount::new(stages)?, 5, 60)?;
            for (part, (what, time)) in [("encode", encode), ("decode", decode)].into_iter().enumerate() {
                by_stages[part].push((f64::from(stages), micros(time) / 3e3));
                let what = format!("growth: {stages} stages, bundles of 100 ms, {what}");
                lines.add(vec![(what, "x real time", 60.0 / time.as_secs_f64())]);
            }
        }
        for bundle in [1, 2, 5, 10, 25, 50] {
            let (encode, decode) = stream(processor, stages, bundle, 30)?;
            let time = micros(encode + decode) / 1.5e3;
            by_bundle.push((f64::from(bundle) * 20.0, time));
            lines.add(vec![(
                format!("growth: bundles of {} ms, both ways, a frame", u32::from(bundle) * 20),
                "us",
                time,
            )]);
        }
        for streams in [1, 2, 4, 8, 16, 32, 64] {
            let time = together(processor, stages, streams)?;
            by_streams.push((streams as f64, time));
            lines.add(vec![(
                format!("growth: {streams} streams in a call of one frame, both ways, a frame of each"),
                "us",
                time,
            )]);
        }
        let lengths = length(processor, stages, longest)?;
        for &(seconds, busy, mib) in &lengths {
            let what = |what: &str| format!("growth: after {seconds:.0} s of audio: {what}");
            lines.add(vec![
                (what("processor time, both ways"), "s", busy),
                (what("the same for a second of audio"), "ms", busy * 1e3 / seconds),
                (what("memory"), "MiB", mib),
            ]);
        }
        Ok(Self { by_stages, by_bundle, by_streams, lengths })
    }

    fn picture(&self) -> Result<String> {
        let by_length = |of: fn(&(f64, f64, f64)) -> f64| self.lengths.iter().map(|p| (p.0 / 3_600.0, of(p))).collect();
        let chart = |title, x_name, lines: Vec<(_, _)>| Chart {
            title,
            x_name,
            lines: lines.into_iter().map(Into::into).collect(),
            ..Chart::default()
        };
        let [encode, decode] = self.by_stages.clone();
        Ok(svg(&[
            chart(
                "processor time, minutes",
                "hours of audio, both ways, bundles of 500 ms",
                vec![("all", by_length(|p| p.1 / 60.0))],
            ),
            chart("memory, MiB", "hours of audio", vec![("resident", by_length(|p| p.2))]),
            chart("processor time of a frame, µs", "stages", vec![("encode", encode), ("decode", decode)]),
            chart("processor time of a frame both ways, µs", "bundle, ms", vec![("12 stages", self.by_bundle.clone())]),
            chart(
                "processor time of a frame both ways, µs",
                "streams in a call of one frame",
                vec![("12 stages", self.by_streams.clone())],
            ),
        ])?)
    }
}

/// Something between a voice and music, of any length without keeping it.
fn second(number: usize) -> Vec<f32> {
    (0..SECOND)
        .map(|n| {
            let t = n as f32 / SECOND as f32;
            let pitch = 120.0 + (number % 17) as f32 * 9.0;
            let tones: f32 =
                (1..12u8).map(|k| (std::f32::consts::TAU * pitch * f32::from(k) * t).sin() / f32::from(k)).sum();
            0.1 * tones * (std::f32::consts::PI * 3.0 * t).sin().abs()
        })
        .collect()
}

/// The parts of a frame in batches of five frames: codebook search alone, the encoder and decoder as a whole.
fn parts(model: &LoadedModel, beam: BeamWidth, processor: &mut Processor, stages: StageCount) -> Result<Vec<Line>> {
    const ROUNDS: usize = 3_000;
    const BUNDLE: usize = 5;
    let dim = processor.profile().latent_dim;
    let mut searcher = Searcher::new(std::sync::Arc::clone(&model.codebooks), beam, SimdLevel::detect());
    let latents: Vec<f32> = (0..64 * dim).map(|i| ((i / dim * 31 + i % dim * 17) as f32 * 0.37).sin()).collect();
    let mut codes = vec![0; BUNDLE * stages.index()];
    let before = cpu_time();
    for bundle in latents.chunks_exact(BUNDLE * dim).cycle().take(ROUNDS / BUNDLE) {
        let frames = bundle.chunks_exact(dim).zip(codes.chunks_exact_mut(stages.index()));
        searcher.encode(frames.map(|(latent, codes)| Wanted { latent, codes }))?;
    }
    let search = micros(cpu_time() - before) / ROUNDS as f64;
    let (encode, decode) = stream(processor, stages, BUNDLE as u8, 60)?;
    let (encode, decode) = (micros(encode) / 3_000.0, micros(decode) / 3_000.0);
    let rate = |macs: u64, time: f64| macs as f64 / time / 1e3;
    let searched = (stages.index() * model.codebooks.entries() * dim * beam.value()) as u64;
    let m = &model.manifest;
    Ok(vec![
        (format!("frame: codebook search, {stages} stages, beam {}", beam.value()), "us", search),
        ("frame: encoder network, framing and packing".to_owned(), "us", encode - search),
        ("frame: decoder with codebook sums".to_owned(), "us", decode),
        ("codebook search, share of both ways".to_owned(), "%", 100.0 * search / (encode + decode)),
        ("codebook search, products (an upper bound of their number)".to_owned(), "GMAC/s", rate(searched, search)),
        ("encoder network, products".to_owned(), "GMAC/s", rate(m.encoder.macs_per_frame, encode - search)),
        ("decoder network, products".to_owned(), "GMAC/s", rate(m.decoder.macs_per_frame, decode)),
    ])
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// One stream there and back, second by second, with bounded memory.
struct Loop {
    encoder: Encoder,
    decoder: Decoder,
    pcm: Vec<f32>,
    seconds: usize,
}

impl Loop {
    fn new(processor: &Processor, stages: StageCount, bundle: u8) -> Result<Self> {
        let mut encoder = Encoder::new(processor.profile(), stages, bundle)?;
        encoder.set_job_frames(usize::from(bundle));
        Ok(Self { encoder, decoder: Decoder::new(processor.profile()), pcm: Vec::new(), seconds: 0 })
    }

    /// Processor time to encode and to decode the next second.
    fn second(&mut self, processor: &mut Processor) -> Result<(Duration, Duration)> {
        let input = second(self.seconds);
        self.seconds += 1;
        let start = cpu_time();
        self.encoder.push(&input);
        let mut bundles = Vec::new();
        while let Some(bundle) = processor.encode(&mut self.encoder)? {
            bundles.push(bundle);
        }
        let middle = cpu_time();
        self.pcm.clear();
        for bundle in bundles {
            self.decoder.push(bundle)?;
            processor.decode(&mut self.decoder, &mut self.pcm)?;
        }
        Ok((middle - start, cpu_time() - middle))
    }
}

/// Processor time to encode and to decode `seconds` of one stream.
fn stream(processor: &mut Processor, stages: StageCount, bundle: u8, seconds: usize) -> Result<(Duration, Duration)> {
    let mut stream = Loop::new(processor, stages, bundle)?;
    let mut sum = (Duration::ZERO, Duration::ZERO);
    for _ in 0..seconds {
        let (encode, decode) = stream.second(processor)?;
        sum = (sum.0 + encode, sum.1 + decode);
    }
    Ok(sum)
}

/// One stream of `longest` seconds: seconds of audio, of processor time, and MiB resident, at its start and at every twentieth.
fn length(processor: &mut Processor, stages: StageCount, longest: usize) -> Result<Vec<(f64, f64, f64)>> {
    let mut stream = Loop::new(processor, stages, 25)?;
    let (mut busy, mut points) = (0.0, Vec::new());
    for done in 1..=longest {
        let (encode, decode) = stream.second(processor)?;
        busy += (encode + decode).as_secs_f64();
        if done == 60 || done % (longest / 20) == 0 {
            points.push((done as f64, busy, memory_mib("self", "VmRSS:")));
        }
    }
    Ok(points)
}

/// Microseconds of processor time for a frame of each of `streams` streams there and back, whose frames share calls.
fn together(processor: &mut Processor, stages: StageCount, streams: usize) -> Result<f64> {
    const ROUNDS: usize = 100;
    let frame = processor.profile().frame_samples;
    let make = |_| Loop::new(processor, stages, 1);
    let mut all = (0..streams).map(make).collect::<Result<Vec<_>>>()?;
    let sounds: Vec<Vec<f32>> = (0..16).map(second).collect();
    let mut busy = Duration::ZERO;
    for round in 0..ROUNDS {
        let at = round * frame % SECOND;
        all.iter_mut().zip(sounds.iter().cycle()).for_each(|(s, sound)| s.encoder.push(&sound[at..at + frame]));
        let start = cpu_time();
        let mut jobs: Vec<_> = all.iter_mut().filter_map(|s| s.encoder.next_job()).collect();
        processor.run_encode(&mut jobs)?;
        // The first frame is not there before its overlap is.
        for (s, job) in all.iter_mut().zip(jobs) {
            s.encoder.accept(job);
            while let Some(bundle) = s.encoder.next_bundle() {
                s.decoder.push(bundle)?;
            }
        }
        let mut jobs: Vec<_> = all.iter_mut().filter_map(|s| s.decoder.next_job()).collect();
        processor.run_decode(&mut jobs)?;
        for (s, job) in all.iter_mut().zip(jobs) {
            s.decoder.accept(job);
            s.pcm.clear();
            s.decoder.pcm(&mut s.pcm);
        }
        // The first calls of a shape are slower.
        if round >= ROUNDS / 10 {
            busy += cpu_time() - start;
        }
    }
    Ok(micros(busy) / ((ROUNDS - ROUNDS / 10) * streams) as f64)
}

/// Wall time of every bundle there and back, as a listener waits for it.
fn frames(processor: &mut Processor, stages: StageCount, bundle: u8, seconds: usize) -> Result<Vec<Line>> {
    let frame = processor.profile().frame_samples;
    let mut encoder = Encoder::new(processor.profile(), stages, bundle)?;
    encoder.set_job_frames(usize::from(bundle));
    let mut decoder = Decoder::new(processor.profile());
    let (mut times, mut pcm) = (Vec::new(), Vec::new());
    let mut busy = Duration::ZERO;
    for number in 0..seconds {
        let input = second(number);
        let before = cpu_time();
        for chunk in input.chunks(frame * usize::from(bundle)) {
            let start = Instant::now();
            encoder.push(chunk);
            let mut any = false;
            while let Some(bundle) = processor.encode(&mut encoder)? {
                any = true;
                decoder.push(bundle)?;
            }
            pcm.clear();
            processor.decode(&mut decoder, &mut pcm)?;
            if any {
                times.push(start.elapsed());
            }
        }
        busy += cpu_time() - before;
    }
    times.sort();
    let at = |share: f64| micros(times[((times.len() - 1) as f64 * share) as usize]) / 1e3;
    let name = |what: &str| format!("bundle of {} ms both ways, {seconds} s of audio: {what}", u32::from(bundle) * 20);
    let real = seconds as f64 / busy.as_secs_f64();
    Ok(vec![
        (name("p50"), "ms wall", at(0.5)),
        (name("p99"), "ms wall", at(0.99)),
        (name("max"), "ms wall", at(1.0)),
        (name("speed, streams a core"), "x real time", real),
    ])
}

/// Opus over a minute, in the same run.
fn opus() -> Result<Vec<Line>> {
    let pcm: Vec<f32> = (0..60).flat_map(second).collect();
    let mut out = Vec::new();
    for (kbps, nolace) in [(12, false), (12, true), (24, false), (24, true)] {
        let mut opus = Opus::new(OpusSettings {
            bits_per_second: kbps * 1_000,
            cbr: false,
            packet_ms: 20,
            nolace,
            music: false,
            repair: Repair::Plc,
            expected_loss: 0,
        });
        let start = cpu_time();
        let packets = opus.encode(&pcm)?;
        let middle = cpu_time();
        let arrived: Vec<Option<&Packet>> = packets.iter().map(Some).collect();
        opus.decode(&arrived)?;
        let (encode, decode) = (middle - start, cpu_time() - middle);
        let name = |what: &str| format!("Opus VBR {kbps} kbit/s{}: {what}", if nolace { " NoLACE" } else { "" });
        out.push((name("encode, a frame of 20 ms"), "us", micros(encode) / 3_000.0));
        out.push((name("decode, a frame of 20 ms"), "us", micros(decode) / 3_000.0));
        out.push((name("both ways"), "x real time", 60.0 / (encode + decode).as_secs_f64()));
    }
    Ok(out)
}

/// What the process and a stream hold.
fn memory(processor: &Processor) -> Vec<Line> {
    let field = |name: &str| memory_mib("self", name);
    let profile: std::sync::Arc<codec::Profile> = processor.profile();
    vec![
        ("memory: process now".to_owned(), "MiB", field("VmRSS:")),
        ("memory: process at most".to_owned(), "MiB", field("VmHWM:")),
        ("memory: state of one stream, encoder".to_owned(), "KiB", profile.encoder_state as f64 * 4.0 / 1024.0),
        ("memory: state of one stream, decoder".to_owned(), "KiB", profile.decoder_state as f64 * 4.0 / 1024.0),
    ]
}
