//! Recordings of a daemon as a process: what was written survives kill -9, and a bad disk stalls nobody.
#![cfg(feature = "full")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use undertone::bitstream::{Bundle, ContainerReader, Item, ReaderOptions};
use undertone::model::Manifest;
use undertone::service::Client;
use undertone::session::{Hello, PackedBundle, Role, StreamName};
use undertone::units::{ModelId, StageCount};

const PATIENCE: Duration = Duration::from_secs(60);
/// Frames sent in a round: more than the daemon takes at once, so that the kill always comes before some.
const SENT: u64 = 40;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

fn model_id() -> ModelId {
    let manifest = Manifest::parse(&fs::read(model().join("manifest.toml")).unwrap()).unwrap();
    manifest.profile().model_id
}

struct Daemon {
    child: Child,
    codes: String,
}

impl Daemon {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
        command.env("UNDERTONE_MODEL", model()).env_remove("JOURNAL_STREAM").args(["serve", "--config"]).arg(config);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|l| l.starts_with("listening ")).expect("the daemon starts");
        // Its log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let codes = line.split_whitespace().find_map(|p| p.strip_prefix("codes=")).unwrap().to_owned();
        Self { child, codes }
    }

    fn kill(&mut self) {
        // SIGKILL, as kill -9.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn config(dir: &Path, folder: &Path, more: &str) -> PathBuf {
    let path = dir.join("undertone.toml");
    let text = format!(
        "pcm_input = []\npcm_output = []\n[codes]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"\"\n[engine]\nthreads = 1\n\
         [record]\nfolder = \"{}\"\nstreams = [\"radio.*\"]\n{more}",
        folder.display()
    );
    fs::write(&path, text).unwrap();
    path
}

fn hello(id: ModelId, stream: &str) -> Hello {
    Hello::publish(StreamName::new(stream).unwrap(), id, StageCount::new(6).unwrap(), 1)
}

fn bundle(frame: u64) -> Bundle {
    let codes = (0..6).map(|s| ((frame * 131 + s * 17) % 1024) as u16).collect();
    Bundle::new(frame, 1, StageCount::new(6).unwrap(), codes).unwrap()
}

/// Frames of a recording; every one must be the one that was sent, in order and without a gap.
fn check(path: &Path) -> u64 {
    let mut reader = ContainerReader::new(ReaderOptions::default());
    reader.push(&fs::read(path).unwrap());
    let mut frames = 0;
    while let Some(item) = reader.next().unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
        if let Item::Bundle(b) = item {
            assert_eq!(b.first_frame, frames, "{}", path.display());
            frames += u64::from(b.frames);
        }
    }
    frames
}

fn recordings(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    // Now and then the daemon tries whether it can write there, in a file without this ending.
    let mut all: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some()).collect();
    all.sort();
    all
}

/// Codes of all recordings, oldest first.
fn codes(paths: &[PathBuf]) -> Vec<u16> {
    let mut all = Vec::new();
    for path in paths {
        let mut reader = ContainerReader::new(ReaderOptions::default());
        reader.push(&fs::read(path).unwrap());
        while let Some(item) = reader.next().unwrap() {
            if let Item::Bundle(b) = item {
                all.extend(b.codes);
            }
        }
    }
    all
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn fifty_kills_lose_nothing_that_was_written_and_break_no_file() {
    let id = model_id();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut cut = 0;
    for round in 0..50u64 {
        let folder = dir.path().join(format!("{round}"));
        // Every third round begins a file every few frames.
        let rotate = if round % 3 == 0 { "rotate_mb = 0.0002\n" } else { "" };
        let fsync = ["fsync = \"never\"\n", "fsync = \"bundle\"\n", "fsync = 0.1\n"][round as usize % 3];
        let mut daemon = Daemon::start(&config(dir.path(), &folder, &format!("{rotate}{fsync}")));
        let written = round % 20;
        runtime.block_on(async {
            let mut client = Client::connect(&daemon.codes, hello(id, "radio.x")).await.unwrap();
            for n in 0..written {
                client.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
            }
            wait_until("what was sent is written", || {
                recordings(&folder).iter().map(|p| check(p)).sum::<u64>() >= written
            });
            // The kill comes anywhere in these.
            for n in written..SENT {
                client.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
            }
            std::thread::sleep(Duration::from_micros(round * 200));
            daemon.kill();
        });
        let files = recordings(&folder);
        let frames: u64 = files.iter().map(|p| check(p)).sum();
        assert!((written..=SENT).contains(&frames), "round {round}: {frames} frames of {written} to {SENT}");
        let sent: Vec<u16> = (0..frames).flat_map(|n| bundle(n).codes).collect();
        assert!(codes(&files) == sent, "round {round}: other codes than were sent");
        cut += u64::from(frames < SENT);
    }
    assert!(cut > 0, "no kill came in the middle: the test tests nothing");
}

#[test]
fn a_folder_that_cannot_be_written_stalls_nobody_and_costs_what_the_queue_does_not_hold() {
    let id = model_id();
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    // After 0.6 s the recording tries again.
    let daemon = Daemon::start(&config(dir.path(), &folder, "rotate_minutes = 0.01\n"));
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "not a folder").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut n = 30;
    runtime.block_on(async {
        let mut listen = hello(id, "radio.x");
        listen.role = Role::Subscribe;
        let mut listener = Client::connect(&daemon.codes, listen).await.unwrap();
        let mut publisher = Client::connect(&daemon.codes, hello(id, "radio.x")).await.unwrap();
        let mut other = Client::connect(&daemon.codes, hello(id, "other")).await.unwrap();
        other.publish(PackedBundle::pack(&bundle(0))).await.unwrap();
        for n in 0..30 {
            publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
            assert_eq!(listener.next().await.unwrap().unwrap().first_frame, n);
        }
        fs::remove_file(&folder).unwrap();
        let start = Instant::now();
        while recordings(&folder).iter().map(|p| fs::metadata(p).unwrap().len()).sum::<u64>() == 0 {
            assert!(start.elapsed() < PATIENCE, "the recording never tried again");
            publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
            assert_eq!(listener.next().await.unwrap().unwrap().first_frame, n);
            n += 1;
        }
        publisher.finish().await.unwrap();
        other.finish().await.unwrap();
    });
    // Nothing is missing: what could not be written waited.
    let frames = || recordings(&folder).iter().map(|p| check(p)).sum::<u64>();
    if n < 256 {
        wait_until("all that was sent is written", || frames() == n);
    }
    let files = recordings(&folder);
    assert!(files.iter().all(|p| p.file_name().unwrap().to_str().unwrap().starts_with("radio.x-")), "{files:?}");
}

#[test]
fn a_folder_that_cannot_be_used_is_an_error_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "not a folder").unwrap();
    let path = config(dir.path(), &blocked, "");
    for how in ["--config", "--check"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
        command.env("UNDERTONE_MODEL", model()).env_remove("JOURNAL_STREAM").args(["serve", how]).arg(&path);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(&format!("record.folder = {}", blocked.display())), "{text}");
    }
}
