//! Daemons and workers as processes around a real nats-server, with the shipped model: some of them are killed.
#![cfg(feature = "full")]

#[path = "common/nats.rs"]
mod nats;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nats::{NatsServer, until};
use undertone::bitstream::Bundle;
use undertone::bus::jobs::Progress;
use undertone::bus::{Bus, BusOptions, Prefix};
use undertone::infer;
use undertone::service::Client;
use undertone::session::{Hello, PackedBundle, Role, StreamName};
use undertone::units::{ModelId, StageCount};

const PATIENCE: Duration = Duration::from_secs(60);

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2")
}

fn undertone() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.env("UNDERTONE_MODEL", model()).env_remove("JOURNAL_STREAM");
    command
}

/// A process and what it says; killed when dropped.
struct Process {
    child: Child,
    log: Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (tell, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|l| tell.send(l)));
        Self { child, log }
    }

    fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("nobody said \"{text}\""));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// SIGKILL.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Peers {
    model: ModelId,
}

impl Peers {
    async fn connect(&self, daemon: &str, role: Role) -> Client {
        let stages = StageCount::new(6).unwrap();
        let hello = Hello { role, ..Hello::publish(StreamName::new("main").unwrap(), self.model, stages, 5) };
        Client::connect(daemon, hello).await.unwrap()
    }
}

fn bundle(number: u64) -> PackedBundle {
    let codes = (0..30).map(|i| ((number * 31 + i * 7) % 1_000) as u16).collect();
    PackedBundle::pack(&Bundle::new(number * 5, 5, StageCount::new(6).unwrap(), codes).unwrap())
}

async fn heard(client: &mut Client) -> PackedBundle {
    tokio::time::timeout(PATIENCE, client.next()).await.expect("a bundle in time").unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn a_daemon_is_killed_and_listeners_elsewhere_lose_nothing_that_the_next_one_sends() {
    let server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let profile = infer::load_model(Some(&model())).unwrap().profile;
    let peers = Peers { model: profile.model_id };
    let text = format!(
        "pcm_input = []\npcm_output = []\n[codes]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"\"\n[engine]\nthreads = 1\n\
         [nats]\nurl = \"{}\"\nprefix = \"test\"\nreplay_s = 600\n",
        server.url()
    );
    fs::write(path("undertone.toml"), text).unwrap();
    let start = || Process::start(undertone().arg("serve").arg("--config").arg(path("undertone.toml")));
    let mut daemons = [start(), start(), start()];
    let codes = daemons.each_ref().map(|d| {
        let line = d.wait_for("listening ");
        line.split_whitespace().find_map(|p| p.strip_prefix("codes=")).unwrap().to_owned()
    });
    daemons.iter().for_each(|d| drop(d.wait_for("streams are kept for replay")));

    // A stream through the first daemon to listeners of the others.
    let mut listeners =
        [peers.connect(&codes[1], Role::Subscribe).await, peers.connect(&codes[2], Role::Subscribe).await];
    until("both follow the stream", async || server.live_subjects().await.len() == 4).await;
    let mut publisher = peers.connect(&codes[0], Role::Publish).await;
    for n in 0..5 {
        publisher.publish(bundle(n)).await.unwrap();
        for listener in &mut listeners {
            assert_eq!(heard(listener).await, bundle(n));
        }
    }
    daemons[0].kill();
    // The publisher goes to another daemon and begins anew; listeners stay where they are, and frames count on.
    let mut publisher = peers.connect(&codes[2], Role::Publish).await;
    for n in 0..5 {
        publisher.publish(bundle(n)).await.unwrap();
    }
    for n in 0..5 {
        for listener in &mut listeners {
            assert_eq!(heard(listener).await, PackedBundle { first_frame: 25 + n * 5, ..bundle(n) });
        }
    }
    publisher.finish().await.unwrap();
    for listener in &mut listeners {
        assert!(tokio::time::timeout(PATIENCE, listener.next()).await.expect("the end in time").unwrap().is_none());
    }
    let nats = ["--nats", &server.url(), "--nats-prefix", "test"];
    let replayed = undertone().arg("replay").arg(path("past.utn")).args(["--last", "1h"]).args(nats).status().unwrap();
    assert!(replayed.success());
    let decoded = undertone().arg("decode").args([path("past.utn"), path("past.wav")]).status().unwrap();
    assert!(decoded.success());
    // 50 frames of 480 samples, but for the overlap of the last one.
    let samples = 50 * 480 - profile.overlap_samples() as u64;
    assert_eq!(fs::metadata(path("past.wav")).unwrap().len(), 80 + samples * 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn a_worker_is_killed_with_a_recording_in_hand_and_another_one_does_it() {
    let server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let nats = ["--nats", &server.url(), "--nats-prefix", "test"];
    fs::create_dir(path("in")).unwrap();
    for n in 0..4 {
        let tone = (0..48_000).map(|i| (f64::from(i * (n + 2)) * 0.01).sin() * 6_000.0);
        let mut wav = nats::wav_head(48_000);
        wav.extend(tone.flat_map(|s| (s as i16).to_le_bytes()));
        fs::write(path(&format!("in/{n}.wav")), wav).unwrap();
    }
    let submit = ["batch", "submit", "in", "--out", "out", "--name", "night", "--kbps", "3"];
    assert!(undertone().current_dir(dir.path()).args(submit).args(nats).status().unwrap().success());
    let prefix = Prefix::new("test").unwrap();
    let options = BusOptions { url: server.url(), credentials: None, ca: None, prefix };
    let queue = Bus::connect(&options).await.unwrap().jobs().await.unwrap();
    let worker =
        |more: &[&str]| Process::start(undertone().arg("worker").arg("--root").arg(dir.path()).args(nats).args(more));
    let mut victim = worker(&[]);
    until("it has a job in hand", async || queue.status().await.unwrap().running > 0).await;
    victim.kill();
    let mut heir = worker(&["--drain"]);
    until("all is done", async || {
        queue.status().await.unwrap().batches["night"] == Progress { open: 0, done: 4, dead: 0 }
    })
    .await;
    assert!(heir.child.wait().unwrap().success());
    for n in 0..4 {
        let mut alone = undertone();
        alone.args(["encode", "--kbps", "3"]);
        assert!(alone.args([path(&format!("in/{n}.wav")), path("alone.utn")]).status().unwrap().success());
        assert!(fs::read(path(&format!("out/{n}.utn"))).unwrap() == fs::read(path("alone.utn")).unwrap(), "{n}");
    }
}
