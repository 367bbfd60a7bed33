//! A nats-server of the test's own.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) struct NatsServer {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    monitor: u16,
}

/// Something that will be so before long.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !so().await {
        assert!(start.elapsed() < Duration::from_secs(60), "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn spawn(dir: &Path, port: i32, monitor: i32) -> Child {
    let _ = std::fs::remove_dir_all(dir.join("ports"));
    std::fs::create_dir(dir.join("ports")).unwrap();
    // Debian puts it where only root's PATH looks.
    let debian = Path::new("/usr/sbin/nats-server");
    let mut server = Command::new(if debian.exists() { debian } else { Path::new("nats-server") });
    server.args(["-a", "127.0.0.1", "-js", "-p", &port.to_string(), "-m", &monitor.to_string()]);
    server.arg("-sd").arg(dir.join("store")).arg("--ports_file_dir").arg(dir.join("ports"));
    server.stdout(Stdio::null()).stderr(Stdio::null());
    server.spawn().expect("nats-server is there: `make test-system` installs it")
}

impl NatsServer {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(dir.path(), -1, -1);
        let mut server = Self { child, dir, port: 0, monitor: 0 };
        server.wait().await;
        server
    }

    /// Until the server says where it listens.
    async fn wait(&mut self) {
        let ports = self.dir.path().join("ports");
        let read = || {
            let file = std::fs::read_dir(&ports).ok()?.next()?.ok()?.path();
            let text = std::fs::read_to_string(file).ok()?;
            // {"nats":["nats://127.0.0.1:4222"],"monitoring":["http://127.0.0.1:8222"]}
            let port = |key: &str| -> Option<u16> {
                let (_, rest) = text.split_once(&format!("\"{key}\""))?;
                let address = rest.split('"').nth(1)?;
                address.rsplit(':').next()?.parse().ok()
            };
            Some((port("nats")?, port("monitoring")?))
        };
        until("nats-server names its ports", async || read().is_some()).await;
        (self.port, self.monitor) = read().unwrap();
        until("nats-server answers", async || TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()).await;
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A section of the configuration, ports for operators included.
    pub(crate) fn config(&self) -> String {
        format!("[http]\nlisten = \"127.0.0.1:0\"\n[nats]\nurl = \"{}\"\nprefix = \"test\"\n", self.url())
    }

    /// Ends the server without a word.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the server again where it was.
    pub(crate) async fn restart(&mut self) {
        self.child = spawn(self.dir.path(), self.port.into(), -1);
        self.wait().await;
    }

    /// What the server has stored of a stream, below `of` (such as `msgs`), as files with their content.
    pub(crate) fn stored(&self, stream: &str, of: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let folder = self.dir.path().join("store/jetstream/$G/streams").join(stream).join(of);
        let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
        files.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect()
    }

    /// Starts the server again where it was, without what it had stored.
    pub(crate) async fn restart_empty(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("store")).unwrap();
        self.restart().await;
    }

    /// Subjects of live streams that anybody subscribes to.
    pub(crate) async fn live_subjects(&self) -> Vec<String> {
        let body = get(self.monitor, "/connz?subs=1").await;
        let mut subjects: Vec<_> =
            body.split('"').filter(|s| s.starts_with("test.v1.live.")).map(ToOwned::to_owned).collect();
        subjects.sort();
        subjects
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A page over HTTP, empty if there is none.
pub(crate) async fn get(port: u16, path: &str) -> String {
    let mut answer = Vec::new();
    if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)).await {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let _ = socket.write_all(request.as_bytes()).await;
        let _ = socket.read_to_end(&mut answer).await;
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A number on a daemon's page of metrics.
pub(crate) async fn metric(port: u16, name: &str) -> f64 {
    let page = get(port, "/metrics").await;
    let line = page.lines().find_map(|l| l.strip_prefix(&format!("undertone_{name} ")));
    line.map_or(f64::NAN, |value| value.trim().parse().unwrap())
}

/// The head of a WAV file of 24 kHz mono.
pub(crate) fn wav_head(samples: u32) -> Vec<u8> {
    let mut out = b"RIFF".to_vec();
    out.extend((36 + samples * 2).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16u32.to_le_bytes());
    out.extend([1u16, 1].iter().flat_map(|n| n.to_le_bytes()));
    out.extend([24_000u32, 48_000].iter().flat_map(|n| n.to_le_bytes()));
    out.extend([2u16, 16].iter().flat_map(|n| n.to_le_bytes()));
    out.extend(b"data");
    out.extend((samples * 2).to_le_bytes());
    out
}
