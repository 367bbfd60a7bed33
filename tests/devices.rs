//! Sound devices end to end, against a PulseAudio of this test's own with sinks that nobody hears.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing here may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Amplitude of the tone that is played into the room: a sawtooth, because a codec for speech keeps a voice's level and not
/// a whistle's.
const AMPLITUDE: f64 = 0.35;

/// Its pitch.
const HZ: f64 = 120.0;

/// A process that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for the end; whether it was a success.
    fn end(&mut self) -> bool {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            assert!(start.elapsed() < LIMIT, "a program does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Room {
    dir: tempfile::TempDir,
    _server: Running,
}

impl Room {
    /// A sound server with three sinks: `room` is spoken into, `ear` and `far` are listened at.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Command::new("pulseaudio");
        server.args([
            "-n",
            "--daemonize=no",
            "--exit-idle-time=-1",
            "--log-level=error",
            "-L",
            "module-native-protocol-unix",
        ]);
        for sink in ["room", "ear", "far"] {
            server.args(["-L", &format!("module-null-sink sink_name={sink} rate=48000 channels=1")]);
        }
        let server = Running(
            private(&mut server, dir.path()).spawn().expect("pulseaudio is there: `make test-system` installs it"),
        );
        let room = Self { dir, _server: server };
        let start = Instant::now();
        while !room.command("pactl").args(["list", "short", "sinks"]).output().is_ok_and(|o| o.stdout.starts_with(b"0"))
        {
            assert!(start.elapsed() < LIMIT, "the sound server does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        room
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        private(&mut command, self.dir.path()).stdin(Stdio::null());
        command
    }

    fn undertone(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_undertone"));
        command.args(args);
        command
    }

    fn record(&self, sink: &str, to: &Path) -> Running {
        let source = format!("{sink}.monitor");
        let format = ["--format=s16le", "--rate=24000", "--channels=1", "--latency-msec=50"];
        let mut command = self.command("parec");
        command.args(["-d", &source]).args(format).stdout(File::create(to).unwrap());
        Running(command.spawn().expect("parec is installed"))
    }
}

/// Only this variable: with PULSE_RUNTIME_PATH cpal would not find the server.
fn private<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    command.env("XDG_RUNTIME_DIR", dir).env_remove("PULSE_RUNTIME_PATH").env_remove("PULSE_SERVER")
}

/// Seconds of a recording that are loud, and their level.
fn loud(path: &Path) -> (f64, f64) {
    let bytes = fs::read(path).unwrap();
    let pcm: Vec<f64> = bytes.chunks_exact(2).map(|b| f64::from(i16::from_le_bytes([b[0], b[1]])) / 32_768.0).collect();
    let level = |piece: &[f64]| (piece.iter().map(|v| v * v).sum::<f64>() / piece.len() as f64).sqrt();
    let mut levels: Vec<f64> = pcm.chunks_exact(480).map(level).filter(|&l| l > 0.05).collect();
    levels.sort_by(f64::total_cmp);
    (levels.len() as f64 * 0.02, levels.get(levels.len() / 2).copied().unwrap_or(0.0))
}

/// What the codec makes of the tone, which devices must not change: with the daemon's stages, and not searched for as files are.
fn by_the_codec_alone(room: &Room) -> f64 {
    let file = |name: &str| room.dir.path().join(name).display().to_string();
    let (tone, utn, heard) = (file("tone.raw"), file("tone.utn"), file("codec.raw"));
    let how = ["--packed", "--stages", "12", "--refine", "0"];
    let encode = [&["encode", "--raw", "s16le:48000:1"], &how[..], &[&tone, &utn]].concat();
    let decode = ["decode", "--raw", "s16le:24000:1", &utn, &heard];
    assert!(Running(room.undertone(&encode).spawn().unwrap()).end(), "encode");
    assert!(Running(room.undertone(&decode).spawn().unwrap()).end(), "decode");
    let (_, level) = loud(&room.dir.path().join("codec.raw"));
    assert!(level > AMPLITUDE / 3f64.sqrt() * 0.7, "the codec alone gives {level}");
    level
}

#[test]
#[ignore = "needs pulseaudio: make test-system"]
fn a_tone_goes_from_device_to_device_through_a_daemon_and_through_send_and_listen() {
    let room = Room::start();
    let path = |name: &str| room.dir.path().join(name);
    let listed = room.undertone(&["devices", "--json"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("\"pulseaudio:room.monitor\""), "{listed}");
    let unknown = room.undertone(&["listen", "--device", "nowhere"]).output().unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no output device is called \"nowhere\""));

    // The daemon hears the room itself, and plays it at the ear.
    let config = "pcm_input = []\npcm_output = []\n[codec]\ngraded = false\neffort = \"off\"\n[codes]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
                  [[device_input]]\ndevice = \"pulseaudio:room.monitor\"\nstream = \"room\"\n\
                  [[device_output]]\ndevice = \"ear\"\nstream = \"room\"\n";
    fs::write(path("undertone.toml"), config).unwrap();
    let config = path("undertone.toml").display().to_string();
    let mut daemon = room.undertone(&["serve", "--config", &config]);
    let mut daemon = Running(daemon.env("NO_COLOR", "1").stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(daemon.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let http = log.find_map(|l| Some(l.split_once("HTTP for operators address=")?.1.trim().to_owned())).unwrap();
    let codes = log.find_map(|l| Some(l.split_once("codes=")?.1.split(' ').next()?.to_owned())).unwrap();
    // The rest is drained, so that the daemon never waits for us; it is shown if the test fails.
    let log = std::thread::spawn(move || log.for_each(|l| println!("daemon: {l}")));

    let _recorders = [room.record("ear", &path("ear.raw")), room.record("far", &path("far.raw"))];
    let mut listen = room.undertone(&["listen", "--device", "far", "--stream", "mic", "--from", &codes]);
    let mut listen = Running(listen.spawn().unwrap());
    let status = || {
        let output = room.undertone(&["status", "--json", "--from", &http]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let start = Instant::now();
    while !(status().matches("\"open\":true").count() == 2 && status().contains("\"stream\":\"mic\"")) {
        assert!(start.elapsed() < LIMIT, "{}", status());
        std::thread::sleep(Duration::from_millis(100));
    }
    let sawtooth = |n: i32| (f64::from(n) * HZ / 48_000.0).fract() * 2.0 - 1.0;
    let tone: Vec<u8> =
        (0..48_000 * 6).flat_map(|n| ((sawtooth(n) * AMPLITUDE * 32_767.0) as i16).to_le_bytes()).collect();
    fs::write(path("tone.raw"), tone).unwrap();
    let mut play = room.command("pacat");
    play.args(["-d", "room", "--format=s16le", "--rate=48000", "--channels=1", "--latency-msec=100"])
        .arg(path("tone.raw"));
    let mut play = Running(play.spawn().unwrap());
    // From the middle of the tone on, also by hand: three seconds of it.
    std::thread::sleep(Duration::from_millis(1_500));
    let device = ["send", "--even", "--device", "room.monitor", "--seconds", "3", "--stream", "mic", "--to", &codes];
    assert!(Running(room.undertone(&device).spawn().unwrap()).end(), "send");
    assert!(listen.end(), "listen");
    assert!(play.end(), "pacat");
    let state = status();
    assert!(state.contains("\"reopened\":0"), "{state}");
    // SIGTERM: what the daemon accepted is heard to its end.
    assert!(Command::new("kill").arg(daemon.0.id().to_string()).status().unwrap().success());
    assert!(daemon.end(), "serve");
    log.join().unwrap();

    let want = by_the_codec_alone(&room);
    for (name, seconds) in [("far.raw", 3.0), ("ear.raw", 6.0)] {
        let (length, level) = loud(&path(name));
        println!("{name}: {length} s of level {level}; {state}");
        assert!((length - seconds).abs() < 0.7, "{name}: {length} s of {seconds} are loud");
        // What the codec makes of a steady tone depends on where its periods lie in a frame: by frame 0.20 to 0.28 here.
        assert!((level / want - 1.0).abs() < 0.3, "{name}: level {level}, expected {want}");
    }
}
