//! `undertone demo`: recordings through a daemon and back, measured. `make run` calls it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::daemon::Daemon;
use super::encode::parse_kbps;
use crate::capture::{AudioInput, AudioOutput};
use crate::cli::loading::ModelFolder;
use crate::codec::{Bucket, Encoder};
use crate::infer::LoadedModel;
use crate::jitter::Pace;
use crate::profile::Profile;
use crate::referee::write_spectrograms;
use crate::rvq::BeamWidth;
use crate::service::Client;
use crate::session::{Hello, Message, PackedBundle, SessionEncoder, StreamName, ThinWriter, Wire};
use crate::table;
use crate::units::{CODEC_RATE, PcmFormat, StageCount};
use crate::wire::{self, Datagram};

/// Samples sent at a time: 20 ms.
const CHUNK: usize = Profile::FRAME_SAMPLES;
/// IPv4 and TCP headers with timestamps: what every message costs on the way.
const IP_TCP_BYTES: u64 = 52;
/// IPv4 and UDP, a packet's short head with its seal, the head of a datagram, and acknowledgements of reports: measured in docs/quic.md.
const IP_QUIC_BYTES: u64 = 56;
/// Frames after which a coded datagram ends with a check sum again.
const CHECK_FRAMES: u32 = 50;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Recordings to send
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// Folder for what comes back
    #[arg(long, default_value = "out")]
    out: PathBuf,
    /// Rates in kbit/s
    #[arg(long, value_delimiter = ',', default_value = "1.5,3,6", value_parser = parse_kbps)]
    kbps: Vec<StageCount>,
    #[command(flatten)]
    model: ModelFolder,
}

/// A row of the table.
struct Measured {
    stages: StageCount,
    seconds: f64,
    code_kbps: f64,
    message_kbps: f64,
    ip_kbps: f64,
    delay_ms: f64,
    cpu_ms: f64,
    file: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let model = args.model.load()?;
    let mut pcm = Vec::new();
    for path in &args.inputs {
        let mut input = AudioInput::open(path, None)?;
        while input.read(&mut pcm)? {}
        // A breath between two recordings.
        pcm.resize(pcm.len() + CODEC_RATE.hz() as usize / 4, 0.0);
    }
    let original = args.out.join("original.wav");
    let mut output = AudioOutput::create(&original, None, &[], true)?;
    output.write(&pcm)?;
    output.finish()?;
    let seconds = pcm.len() as f64 / f64::from(CODEC_RATE.hz());
    outln!(
        "{} recordings, {seconds:.1} s, sent over TCP in real time to a daemon with model {} ({})",
        args.inputs.len(),
        model.manifest.name,
        model.manifest.id
    );
    let mut panels = vec![("original".to_owned(), pcm.clone())];
    let mut rows = Vec::new();
    for &stages in &args.kbps {
        outln!("  {} kbit/s ...", stages.kbps());
        let file = args.out.join(format!("undertone-{}kbps.wav", stages.kbps()));
        let row = one(args, stages, &pcm, &file)?;
        panels.push((format!("{} kbit/s, live", stages.kbps()), read(&file)?));
        rows.push(row);
    }
    let algorithmic = model.profile.delay_samples as f64 * 1e3 / f64::from(CODEC_RATE.hz());
    print_table(&rows, algorithmic);
    by_latency(args, &model, &pcm)?;
    let files = as_files(args, &original, seconds)?;
    for (stages, file) in &files {
        panels.push((format!("{} kbit/s, file", stages.kbps()), read(file)?));
    }
    let picture = args.out.join("spectrograms.png");
    write_spectrograms(&picture, &panels).with_context(|| picture.display().to_string())?;
    let mut made = vec![("original".to_owned(), original)];
    made.extend(rows.into_iter().map(|r| (format!("{} kbit/s, live", r.stages.kbps()), r.file)));
    made.extend(files.into_iter().map(|(stages, file)| (format!("{} kbit/s, file", stages.kbps()), file)));
    made.push(("spectrograms".to_owned(), picture));
    let made: Vec<_> = made.into_iter().map(|(what, path)| [what, path.display().to_string()]).collect();
    out!("\n{}", table::lines(&["what", "where"], &made));
    Ok(())
}

/// All samples of a recording.
fn read(path: &Path) -> Result<Vec<f32>> {
    let (mut pcm, mut input) = (Vec::new(), AudioInput::open(path, None)?);
    while input.read(&mut pcm)? {}
    Ok(pcm)
}

/// The same recording through `encode` and `decode` at the same rates: coded, and searched for.
fn as_files(args: &Args, original: &Path, seconds: f64) -> Result<Vec<(StageCount, PathBuf)>> {
    let (mut out, mut rows) = (Vec::new(), Vec::new());
    for &stages in &args.kbps {
        let kbps = stages.kbps().to_string();
        let codes = args.out.join(format!("undertone-{kbps}kbps.utn"));
        let sound = args.out.join(format!("undertone-{kbps}kbps-file.wav"));
        let call = |what: &str, from: &Path, to: &Path, options: &[&str]| -> Result<f64> {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg(what).arg(from).arg(to).args(options);
            if let Some(model) = &args.model.path {
                command.arg("--model").arg(model);
            }
            let start = Instant::now();
            let status = command.status().with_context(|| format!("undertone {what}"))?;
            ensure!(status.success(), "undertone {what} failed: {status}");
            Ok(seconds / start.elapsed().as_secs_f64())
        };
        let encode = call("encode", original, &codes, &["--kbps", &kbps])?;
        let decode = call("decode", &codes, &sound, &[])?;
        let bytes = std::fs::metadata(&codes)?.len();
        let rate = format!("{:.2}", bytes as f64 * 8.0 / 1e3 / seconds);
        rows.push([kbps, bytes.to_string(), rate, format!("{encode:.1}"), format!("{decode:.1}")]);
        out.push((stages, sound));
    }
    let head = ["kbit/s", "file bytes", "kbit/s, every byte", "encode x real time", "decode x real time"];
    outln!(
        "\nAs files:\n{}coded by the token model, loud frames finer than quiet ones, latents searched for; the times include loading the model.",
        table::lines(&head, &rows)
    );
    Ok(out)
}

fn print_table(rows: &[Measured], algorithmic: f64) {
    let row = |r: &Measured| {
        let rates = [r.code_kbps, r.message_kbps, r.ip_kbps].map(|v| format!("{v:.2}"));
        let delay = format!("{algorithmic:.0} / {:.0}", r.delay_ms);
        let times = [delay, format!("{:.3}", r.cpu_ms), format!("{:.0}", 20.0 / r.cpu_ms)];
        let what = [r.stages.kbps().to_string(), format!("{:.1}", r.seconds)];
        what.into_iter().chain(rates).chain(times).collect::<Vec<_>>()
    };
    let head = [
        "kbit/s",
        "seconds",
        "code kbit/s",
        "message kbit/s",
        "IP kbit/s",
        "delay ms: codec / measured",
        "CPU ms a frame",
        "x real time",
    ];
    outln!(
        "\n{}\ncode: packed indices; message: with what is around them; IP: with {IP_TCP_BYTES} bytes of IPv4 and TCP headers a message.\n\
         measured delay: median over samples from a sample's entry into the daemon's PCM port to its return from the PCM\n\
         output port; it includes bundles of 100 ms. CPU: the whole daemon, encoding, searching and decoding, from the kernel's count.",
        table::lines(&head, &rows.iter().map(row).collect::<Vec<_>>())
    );
}

/// Frames that travel together: 60 ms, 200 ms, 1 s.
const LATENCIES: [u8; 3] = [3, 10, 50];

/// What carries bundles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Quic,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Quic => "QUIC",
        }
    }
}

/// What is sent of a stream, as messages or datagrams.
struct Sent {
    over: Transport,
    /// At the start; every datagram begins there.
    coder: SessionEncoder,
    thin: ThinWriter,
    /// Frames since the last check sum of a datagram.
    unchecked: u32,
    messages: u64,
    code_bytes: u64,
    bytes: u64,
}

impl Sent {
    fn new(over: Transport, coder: SessionEncoder) -> Self {
        let thin = ThinWriter::default();
        Self { over, coder, thin, unchecked: CHECK_FRAMES, messages: 0, code_bytes: 0, bytes: 0 }
    }

    /// Adds a bundle; gives the bits that it takes.
    fn put(&mut self, packed: PackedBundle) -> Result<u64> {
        let sequence = self.messages;
        self.messages += 1;
        let message = if packed.is_background() {
            if self.over == Transport::Tcp {
                self.coder.silence();
            }
            self.code_bytes += packed.payload.len() as u64;
            Message::Bundle { sequence, bundle: packed }
        } else {
            let (mut bundle, mut checked) = match self.over {
                Transport::Tcp => self.coder.encode(&packed)?,
                Transport::Quic => self.coder.clone().encode(&packed)?,
            };
            let codes = bundle.payload.len() - if checked { 2 } else { 0 };
            if self.over == Transport::Quic {
                checked = self.unchecked >= CHECK_FRAMES;
                self.unchecked = if checked { 0 } else { self.unchecked } + u32::from(bundle.frames);
                bundle.payload.truncate(codes + if checked { 2 } else { 0 });
            }
            self.code_bytes += codes as u64;
            Message::Coded { sequence, bundle, checked }
        };
        let bytes = match self.over {
            Transport::Tcp => {
                let mut out = Vec::new();
                wire::encode(&self.thin.thin(message), &mut out);
                out.len() as u64
            }
            Transport::Quic => Datagram::bundle(message, Vec::new()).map_or(0, |d| d.encode().len() as u64),
        };
        self.bytes += bytes;
        Ok(8 * bytes)
    }

    /// Kilobits a second of codes, of messages and on IP.
    fn kbps(&self, seconds: f64) -> [f64; 3] {
        let head = match self.over {
            Transport::Tcp => IP_TCP_BYTES,
            Transport::Quic => IP_QUIC_BYTES,
        };
        [self.code_bytes, self.bytes, self.bytes + self.messages * head].map(|b| b as f64 * 8.0 / 1e3 / seconds)
    }
}

/// What `send` takes at these rates in bundles of different lengths: the same encoder, coder and messages, without a network.
fn by_latency(args: &Args, model: &LoadedModel, pcm: &[f32]) -> Result<()> {
    let Some(tokens) = model.tokens()? else { return Ok(()) };
    let mut processor = model.processor(BeamWidth::GREEDY)?;
    let mut rows = Vec::new();
    for &stages in &args.kbps {
        for (frames, over) in
            LATENCIES.into_iter().flat_map(|f| [Transport::Tcp, Transport::Quic].map(|over| (f, over)))
        {
            let mut encoder = Encoder::new(model.profile.clone(), model.profile.stages, frames)?;
            encoder.set_job_frames(usize::from(frames));
            encoder.hold_rate(Bucket::new(stages.kbps(), 2, 7.5), true);
            encoder.leave_out_silence();
            encoder.push(pcm);
            encoder.finish();
            let mut sent = Sent::new(over, SessionEncoder::new(tokens.clone()).on(Wire::ALL));
            while let Some(bundle) = processor.encode(&mut encoder)? {
                let packed = encoder.pack(&bundle);
                let codes = packed.as_ref().filter(|p| !p.is_background()).map_or(0, PackedBundle::codes);
                let bits = packed.map_or(Ok(0), |packed| sent.put(packed))?;
                encoder.spent(bundle.frames, codes, bits);
            }
            let rates = sent.kbps(pcm.len() as f64 / f64::from(CODEC_RATE.hz())).map(|kbps| format!("{kbps:.2}"));
            let what = [stages.kbps().to_string(), format!("{} ms", u32::from(frames) * 20), over.name().to_owned()];
            rows.push(what.into_iter().chain(rates).collect::<Vec<_>>());
        }
    }
    let head = ["kbit/s", "latency", "over", "code kbit/s", "message kbit/s", "IP kbit/s"];
    let what = "Coded by the token model, by how long sound waits for what travels with it:";
    out!("\n{what}\n{}", table::lines(&head, &rows));
    outln!(
        "over QUIC messages are datagrams, each coded by itself; IP there: with {IP_QUIC_BYTES} bytes of IPv4, UDP, QUIC with its seal, and\n\
         acknowledgements. TCP is bare here: TLS takes 22 bytes a message more."
    );
    Ok(())
}

fn one(args: &Args, stages: StageCount, pcm: &[f32], file: &Path) -> Result<Measured> {
    let kbps = stages.kbps().to_string();
    let any = "127.0.0.1:0";
    let serve =
        ["--listen-pcm", any, "--listen-codes", any, "--listen-pcm-out", any, "--listen-http", any, "--kbps", &kbps];
    let daemon = Daemon::start(&serve, args.model.path.as_deref())?;
    let [pcm_in, codes, pcm_out] = ["pcm", "codes", "pcm_out"].map(|kind| daemon.addresses(kind).join(","));
    let mut listen = Command::new(std::env::current_exe()?);
    listen.arg("listen").arg(file).args(["--from", &codes]);
    if let Some(model) = &args.model.path {
        listen.arg("--model").arg(model);
    }
    let mut listen = listen.spawn().context("starting the companion decoder")?;
    let counter = count(codes.clone(), args.model.load()?.profile.model_id)?;
    let mut player = TcpStream::connect(&pcm_out)?;
    // The listeners must be there before the first bundle.
    std::thread::sleep(Duration::from_millis(700));
    let cpu = daemon.cpu()?;
    let arrivals = std::thread::spawn(move || arrivals(&mut player));
    let start = send(&pcm_in, pcm)?;
    let arrivals = arrivals.join().map_err(|_| anyhow::anyhow!("the player failed"))??;
    let (frames, code_bytes, message_bytes, messages) =
        counter.join().map_err(|_| anyhow::anyhow!("the counter failed"))??;
    let status = listen.wait()?;
    ensure!(status.success(), "the companion decoder failed: {status}");
    let cpu_ms = (daemon.cpu()? - cpu).as_secs_f64() * 1e3 / frames.max(1) as f64;
    let delays = delays_ms(&arrivals, start);
    ensure!(!delays.is_empty(), "nothing came back from the daemon");
    let seconds = pcm.len() as f64 / f64::from(CODEC_RATE.hz());
    let kbps = |bytes: u64| bytes as f64 * 8.0 / 1e3 / (frames as f64 * 0.02);
    Ok(Measured {
        stages,
        seconds,
        code_kbps: kbps(code_bytes),
        message_kbps: kbps(message_bytes),
        ip_kbps: kbps(message_bytes + messages * IP_TCP_BYTES),
        delay_ms: delays[delays.len() / 2],
        cpu_ms,
        file: file.to_owned(),
    })
}

/// When how many samples had come back.
fn arrivals(player: &mut TcpStream) -> std::io::Result<Vec<(u64, Instant)>> {
    let (mut seen, mut bytes, mut buffer) = (Vec::new(), 0u64, [0; 8 << 10]);
    loop {
        let n = player.read(&mut buffer)?;
        if n == 0 {
            return Ok(seen);
        }
        bytes += n as u64;
        seen.push((bytes / 2, Instant::now()));
    }
}

/// What a sample of each chunk took there and back in ms, the shortest first; `start` is when the first was sent.
fn delays_ms(arrivals: &[(u64, Instant)], start: Instant) -> Vec<f64> {
    let (mut delays, mut before) = (Vec::new(), 0);
    for &(samples, at) in arrivals {
        for n in (before..samples).step_by(CHUNK) {
            // Sample n entered the daemon when its chunk was sent.
            let sent = (n as usize / CHUNK * CHUNK) as f64 / f64::from(CODEC_RATE.hz());
            delays.push((at - (start + Duration::from_secs_f64(sent))).as_secs_f64() * 1e3);
        }
        before = samples;
    }
    delays.sort_by(f64::total_cmp);
    delays
}

/// Sends samples in real time, as a microphone would; gives the time of the first.
fn send(address: &str, pcm: &[f32]) -> Result<Instant> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut writer = crate::dsp::PcmWriter::new(PcmFormat::CODEC);
    let (start, mut bytes) = (Instant::now(), Vec::new());
    for (i, chunk) in pcm.chunks(CHUNK).enumerate() {
        let due = start + Duration::from_secs_f64((i * CHUNK) as f64 / f64::from(CODEC_RATE.hz()));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        bytes.clear();
        writer.push(chunk, &mut bytes);
        socket.write_all(&bytes)?;
    }
    socket.shutdown(Shutdown::Write)?;
    // The daemon closes when everything is encoded and published.
    let _ = socket.read_to_end(&mut bytes);
    Ok(start)
}

type Counted = (u64, u64, u64, u64);

/// Subscribes and counts frames, code bytes, message bytes, messages until the stream ends.
fn count(address: String, model_id: crate::units::ModelId) -> Result<std::thread::JoinHandle<Result<Counted>>> {
    let hello = Hello { pace: Pace::Recording, ..Hello::subscribe(StreamName::new("main")?, model_id) };
    Ok(std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = Client::connect(&address, hello).await?;
            let (mut first, mut end, mut codes, mut messages) = (None, 0, 0, 0);
            let before = client.bytes_received();
            while let Some(bundle) = client.next().await? {
                // Silence is not sent, but it takes its time.
                first.get_or_insert(bundle.first_frame);
                end = bundle.first_frame + u64::from(bundle.frames);
                codes += bundle.payload.len() as u64;
                messages += 1;
            }
            Ok((end - first.unwrap_or(0), codes, client.bytes_received() - before, messages))
        })
    }))
}
