//! A daemon with the fake model in this process, and peers that speak raw bytes to it.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use undertone::bitstream::Bundle;
use undertone::config::Config;
use undertone::engine::{Engine, EngineOptions};
use undertone::fake;
use undertone::service::{self, Bound, Client, Summary};
use undertone::session::{Hello, Message, PackedBundle, Role, StreamName};
use undertone::token::TokenModel;
use undertone::units::{ModelId, StageCount};
use undertone::wire::{Framer, encode};

/// For [`Daemon::until`].
pub const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";

pub const FAKE_ID: ModelId = ModelId(*b"fakefake");

pub struct Daemon {
    pub pcm: SocketAddr,
    pub pcm_out: SocketAddr,
    pub codes: SocketAddr,
    /// Only if the text says `[http]`.
    pub http: Option<SocketAddr>,
    /// All addresses; that of `[quic]` is the last.
    pub addresses: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Summary>,
    _engine: Engine,
    pub config: watch::Sender<Arc<Config>>,
}

impl Daemon {
    pub async fn start(limits: &str) -> Self {
        Self::start_with(limits, "kbps = 3\neffort = \"off\"").await
    }

    /// With these lines in the section `[codec]`.
    pub async fn start_with(limits: &str, codec: &str) -> Self {
        // Tests run beside each other: the usual port is nobody's.
        let http = if limits.contains("[http]") { "" } else { "[http]\nlisten = \"\"\n" };
        let text = format!(
            "{limits}\n{http}[codec]\n{codec}\n[codes]\nlisten = \"127.0.0.1:0\"\n\
             [[pcm_input]]\nlisten = \"127.0.0.1:0\"\nstream = \"main\"\n\
             [[pcm_output]]\nlisten = \"127.0.0.1:0\"\nstream = \"main\"\n"
        );
        let config = Arc::new(Config::parse(&text).unwrap());
        let options = EngineOptions { threads: 1, slots: 8, max_batch: 4, gather: Duration::ZERO, pin: false };
        let mut engine = Engine::start(&options, || Ok::<_, String>(fake::processor(16, 7))).unwrap();
        if !config.codec.is_never_searched() {
            engine.search(|| Ok::<_, String>(Some(fake::refiner(0)))).unwrap();
        }
        let bound = Bound::open(&config).await.unwrap();
        let (pcm, pcm_out, codes) = (bound.addresses[0], bound.addresses[1], bound.addresses[2]);
        let http = bound.addresses.get(3).copied();
        let addresses = bound.addresses.clone();
        let (stop, stopped) = oneshot::channel();
        let (sender, receiver) = watch::channel(config);
        let running = tokio::spawn(service::run(bound, engine.handle(), Some(tokens()), receiver, async {
            let _ = stopped.await;
        }));
        Self { pcm, pcm_out, codes, http, addresses, stop: Some(stop), running, _engine: engine, config: sender }
    }

    /// As [`Daemon::start`].
    pub async fn start_owned(limits: String) -> Self {
        Self::start(&limits).await
    }

    pub async fn stop(mut self) -> Summary {
        let _ = self.stop.take().unwrap().send(());
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("the daemon stops").unwrap()
    }

    /// Waits until the daemon's state says this, in JSON.
    pub async fn until(&self, what: &str) {
        let asking = async {
            while !get(self.http.expect("[http]"), "/status.json").await.contains(what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(asking).await;
    }

    pub async fn publisher(&self, stream: &str) -> Client {
        Client::connect(&self.codes.to_string(), hello(Role::Publish, stream, Some(6))).await.unwrap()
    }

    pub async fn subscriber(&self, stream: &str, stages: Option<u8>) -> Client {
        Client::connect(&self.codes.to_string(), hello(Role::Subscribe, stream, stages)).await.unwrap()
    }
}

/// The daemon's token model.
pub fn tokens() -> Arc<TokenModel> {
    undertone::token::fake::model(&fake::codebooks(16, 7), 1)
}

pub fn hello(role: Role, stream: &str, stages: Option<u8>) -> Hello {
    let stages = stages.map(|s| StageCount::new(s).unwrap());
    Hello { role, stages, frames_per_bundle: 5, ..Hello::subscribe(StreamName::new(stream).unwrap(), FAKE_ID) }
}

pub fn bundle(number: u64) -> Bundle {
    let codes = (0..30).map(|i| ((number * 31 + i * 7) % 256) as u16).collect();
    Bundle::new(number * 5, 5, StageCount::new(6).unwrap(), codes).unwrap()
}

/// Every bundle until the stream ends.
pub async fn drain(mut client: Client) -> Vec<PackedBundle> {
    let mut all = Vec::new();
    while let Some(b) = within(client.next()).await.unwrap() {
        all.push(b);
    }
    all
}

/// Nothing in these tests may hang.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("an answer in time")
}

/// What the daemon says at a path of its HTTP port, with the head.
pub async fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    within(socket.read_to_string(&mut text)).await.unwrap();
    text
}

/// Sends raw bytes and gives everything that came back until the server hung up.
pub async fn speak(address: SocketAddr, bytes: &[u8]) -> Vec<Message> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(bytes).await;
    hear(&mut socket).await
}

/// Messages until the server hangs up.
pub async fn hear(socket: &mut TcpStream) -> Vec<Message> {
    let mut answer = Vec::new();
    let _ = within(socket.read_to_end(&mut answer)).await;
    let mut framer = Framer::default();
    framer.push(&answer);
    std::iter::from_fn(|| framer.next().unwrap()).collect()
}

pub fn bytes(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out);
    out
}

/// A quiet tone as s16le.
pub fn tone(seconds: f64) -> Vec<u8> {
    (0..(seconds * 24_000.0) as i32)
        .flat_map(|n| (((f64::from(n) * 0.05).sin() * 6_000.0) as i16).to_le_bytes())
        .collect()
}
