//! A daemon of its own with many ports, and duplex streams that keep it busy in real time.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout};

use crate::cli::daemon::Daemon;
use crate::engine::EngineOptions;
use crate::profile::Profile;
use crate::units::StageCount;

/// Samples of a frame, bytes of a sample (s16le), and the frame's length.
const FRAME: usize = Profile::FRAME_SAMPLES;
const SAMPLE_BYTES: usize = 2;
const FRAME_TIME: Duration = Duration::from_millis(20);

/// How long a stream may give nothing before it counts as stalled.
pub(super) const STALLED: Duration = Duration::from_secs(2);

/// What the daemon is to be.
pub(super) struct Setup<'a> {
    pub(super) model: Option<&'a Path>,
    pub(super) kbps: StageCount,
    /// Whether the daemon searches in the time that is left.
    pub(super) searches: bool,
    /// Duplex streams that there are ports for; coded ones, if they are, have one port.
    pub(super) ports: usize,
    pub(super) coded: bool,
    pub(super) engine: EngineOptions,
    /// Folder for its configuration.
    pub(super) out: &'a Path,
}

/// The daemon; it ends with this value.
pub(super) struct Rig {
    daemon: Daemon,
    pub(super) ports: Vec<(String, String)>,
    /// The port for codes, if streams are coded.
    pub(super) codes: String,
    http: String,
}

impl Rig {
    pub(super) fn start(setup: &Setup<'_>) -> Result<Self> {
        // Nobody else takes the port in the moment until the daemon has it, most likely; else it says so.
        let http = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let room = 2 * setup.ports + 64;
        let mut text = format!(
            "[codes]\nlisten = \"{}\"\n[http]\nlisten = \"{http}\"\n[log]\nlevel = \"error\"\n\
             [limits]\nmax_connections = {room}\nmax_connections_per_address = {room}\nnew_connections_per_s = 10000\ncoded_sessions = {room}\n\
             [codec]\nkbps = {:.1}\neffort = \"{}\"\ndtx = false\nframes_per_bundle = 1\n[engine]\nthreads = {}\nslots = {}\nmax_batch = {}\ngather_us = {}\npin = {}\n",
            if setup.coded { "127.0.0.1:0" } else { "" },
            setup.kbps.kbps(),
            if setup.searches { "auto" } else { "off" },
            setup.engine.threads,
            setup.engine.slots,
            setup.engine.max_batch,
            setup.engine.gather.as_micros(),
            setup.engine.pin
        );
        let ports = if setup.coded { 0 } else { setup.ports };
        if setup.coded {
            text = format!("pcm_input = []\npcm_output = []\n{text}");
        }
        for n in 0..ports {
            for section in ["pcm_input", "pcm_output"] {
                text += &format!("[[{section}]]\nlisten = \"127.0.0.1:0\"\nstream = \"load.{n}\"\n");
            }
        }
        let config = setup.out.join("daemon.toml");
        std::fs::write(&config, text).with_context(|| config.display().to_string())?;
        let config = config.to_str().with_context(|| format!("{} is not UTF-8", config.display()))?;
        let daemon = Daemon::start(&["--config", config], setup.model)?;
        let ports: Vec<_> = daemon.addresses("pcm").into_iter().zip(daemon.addresses("pcm_out")).collect();
        ensure!(setup.coded || ports.len() == setup.ports, "the daemon opened {} ports", ports.len());
        let codes = daemon.addresses("codes").pop().unwrap_or_default();
        Ok(Self { daemon, ports, codes, http })
    }

    /// Memory of the daemon that is not swapped out, MiB.
    pub(super) fn rss_mib(&self) -> f64 {
        super::machine::memory_mib(&self.daemon.id().to_string(), "VmRSS:")
    }

    /// Processor time of the daemon so far.
    pub(super) fn cpu_s(&self) -> f64 {
        self.daemon.cpu().map_or(0.0, |time| time.as_secs_f64())
    }

    /// A figure of the daemon's metrics.
    pub(super) fn metric(&self, name: &str) -> Result<f64> {
        let mut socket = std::net::TcpStream::connect(&self.http)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", self.http)?;
        let mut page = String::new();
        socket.read_to_string(&mut page)?;
        let line = page.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|l| l.parse().ok()).with_context(|| format!("the daemon has no metric {name}"))
    }
}

/// How it goes for a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Connected; no frame has come back.
    Waiting,
    /// Frames come back.
    Running,
    /// Closed by the daemon before the first frame came back.
    Refused,
    /// Closed by the daemon, or stalled, after frames came back.
    Lost,
    /// Ended because it was told to.
    Done,
}

/// What a stream measures.
#[derive(Default)]
pub(super) struct Meter {
    state: AtomicU8,
    stop: AtomicU8,
    pub(super) frames: AtomicU64,
    /// Milliseconds from sending a frame's last sample to its return, since they were last taken.
    pub(super) latencies: Mutex<Vec<f32>>,
    /// Milliseconds by which we sent a frame too late: the load on the measuring side.
    pub(super) lateness: Mutex<Vec<f32>>,
}

impl Meter {
    fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Waiting,
            1 => State::Running,
            2 => State::Refused,
            3 => State::Lost,
            _ => State::Done,
        }
    }

    /// Lets the stream end.
    pub(super) fn stop(&self) {
        self.stop.store(1, Ordering::Release);
    }

    /// Something came back.
    pub(super) fn came(&self) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.set(State::Running);
    }

    /// Notes how the stream ended.
    pub(super) fn end(&self, well: bool) {
        self.set(match well && self.stopped() {
            true => State::Done,
            false if self.frames.load(Ordering::Relaxed) > 0 => State::Lost,
            false => State::Refused,
        });
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) != 0
    }

    /// Takes what was measured so far.
    pub(super) fn take(&self) -> (Vec<f32>, Vec<f32>) {
        let take = |m: &Mutex<Vec<f32>>| std::mem::take(&mut *m.lock().unwrap_or_else(PoisonError::into_inner));
        (take(&self.latencies), take(&self.lateness))
    }
}

pub(super) fn note(list: &Mutex<Vec<f32>>, time: Duration) {
    list.lock().unwrap_or_else(PoisonError::into_inner).push(time.as_secs_f32() * 1e3);
}

/// Sound of one stream, a second of it.
pub(super) fn pitched(seed: usize) -> impl Iterator<Item = i16> {
    let pitch = 90.0 + (seed * 37 % 160) as f32;
    (0..24_000).map(move |n| {
        let t = n as f32 / 24_000.0;
        let swell = 0.5 + 0.5 * (std::f32::consts::TAU * 3.0 * t).sin();
        let voice = (1..9).map(|k| (std::f32::consts::TAU * pitch * k as f32 * t).sin() / k as f32).sum::<f32>();
        (voice * swell * 6_000.0) as i16
    })
}

fn sound(seed: usize) -> Vec<u8> {
    pitched(seed).flat_map(i16::to_le_bytes).collect()
}

/// Starts a duplex stream: a frame in every 20 ms, and what comes back is timed. `overlap` is the model's algorithmic wait
/// beyond the frame, in samples.
pub(super) fn stream(ports: &(String, String), number: usize, overlap: usize) -> Arc<Meter> {
    let meter = Arc::new(Meter::default());
    let (task, ports) = (Arc::clone(&meter), ports.clone());
    tokio::spawn(async move {
        let ended = duplex(&task, &ports, number, overlap).await;
        task.end(ended.is_ok());
    });
    meter
}

async fn duplex(meter: &Meter, ports: &(String, String), number: usize, overlap: usize) -> Result<()> {
    let mut output = TcpStream::connect(&ports.1).await?;
    // The listener must be there before the first frame is.
    sleep(Duration::from_millis(100)).await;
    let mut input = TcpStream::connect(&ports.0).await?;
    input.set_nodelay(true)?;
    // When each frame was sent.
    let sent: Mutex<Vec<Instant>> = Mutex::default();
    let sending = async {
        let (sound, mut seen) = (sound(number), [0; 16]);
        // Streams do not all send at once.
        let start = tokio::time::Instant::now() + FRAME_TIME.mul_f64(number as f64 * 0.618 % 1.0);
        for frame in 0u32.. {
            let due = start + FRAME_TIME * frame;
            sleep_until(due).await;
            note(&meter.lateness, due.elapsed());
            if meter.stopped() {
                break;
            }
            let at = frame as usize * FRAME * SAMPLE_BYTES % sound.len();
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            input.write_all(&sound[at..at + FRAME * SAMPLE_BYTES]).await?;
            // The daemon says nothing here; an end is a refusal.
            match input.try_read(&mut seen) {
                Ok(_) => bail!("the daemon closed the input"),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        input.shutdown().await?;
        Ok(())
    };
    let receiving = async {
        let (mut bytes, mut buffer, mut frames) = (0, [0; 8 << 10], 0);
        loop {
            let Ok(read) = timeout(STALLED, output.read(&mut buffer)).await else {
                bail!("nothing came back for {STALLED:?}")
            };
            let (n, now) = (read?, Instant::now());
            if n == 0 {
                ensure!(meter.stopped(), "the daemon closed the output");
                return Ok(());
            }
            bytes += n;
            let complete = (bytes / SAMPLE_BYTES + overlap) / FRAME;
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            for frame in frames..complete {
                // What is added at the end was never sent.
                let Some(&at) = sent.get(frame) else { continue };
                note(&meter.latencies, now.saturating_duration_since(at));
                meter.came();
            }
            frames = complete.max(frames);
        }
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}

/// A client that does what no client should, and hangs up.
pub(super) async fn misbehave(address: &str, kind: usize) {
    let Ok(mut socket) = TcpStream::connect(address).await else { return };
    match kind % 3 {
        // Half a sample, and gone.
        0 => drop(socket.write_all(&[1]).await),
        // As fast as it can instead of in real time.
        1 => drop(timeout(Duration::from_millis(300), socket.write_all(&vec![0x55; 4 << 20])).await),
        // Says nothing at all.
        _ => sleep(Duration::from_secs(1)).await,
    }
}

/// The value below which `share` of all lie; 0 of nothing.
pub(super) fn percentile(sorted: &[f32], share: f64) -> f32 {
    sorted.get((sorted.len().saturating_sub(1) as f64 * share).round() as usize).copied().unwrap_or(0.0)
}

/// Creates the folder and gives the path of a file in it.
pub(super) fn file(out: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    Ok(out.join(name))
}
