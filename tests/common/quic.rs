//! Clients over QUIC, and what may lie between them and a daemon.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use undertone::bitstream::Bundle;
use undertone::service::{ClientError, ClientOptions, QuicClient, QuicEvent};
use undertone::session::{Hello, PackedBundle, Role};

use crate::common::{Daemon, bundle, hello, within};
use crate::impair::{Impairment, Network};

pub const QUIC: &str = "[quic]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n";
pub const FOREVER: Duration = Duration::MAX;

pub fn quic(daemon: &Daemon) -> SocketAddr {
    *daemon.addresses.last().unwrap()
}

pub async fn connect(address: SocketAddr, role: Role, stream: &str) -> QuicClient {
    attempt(address, hello(role, stream, Some(6))).await.unwrap()
}

pub async fn attempt(address: SocketAddr, hello: Hello) -> Result<QuicClient, ClientError> {
    within(QuicClient::connect(&address.to_string(), hello, &ClientOptions::default())).await
}

/// Everything a listener hears: bundles, and frames lost.
pub async fn listen(mut client: QuicClient) -> (Vec<Bundle>, u64, QuicClient) {
    let (mut bundles, mut lost) = (Vec::new(), 0);
    while let Some(event) = within(client.next()).await.unwrap() {
        match event {
            QuicEvent::Bundle(b) => bundles.push(b.unpack().unwrap()),
            QuicEvent::Lost(n) => lost += n,
            QuicEvent::Restart => panic!("no restart here"),
        }
    }
    (bundles, lost, client)
}

/// A relay between one client and the daemon that treats packets to the client (or to the daemon) badly once it is told to. It
/// sees no more of them than a network does.
pub struct Proxy {
    pub address: SocketAddr,
    pub began: Arc<OnceLock<Instant>>,
    /// Sizes of packets to the daemon and to the client since it began, with the heads of IPv4 and UDP.
    pub sizes: Arc<Mutex<[Vec<usize>; 2]>>,
    pub task: JoinHandle<()>,
}

impl Proxy {
    /// Bad for as long as `long`.
    pub async fn start(server: SocketAddr, how: Impairment, to_client: bool, long: Duration) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        back.connect(server).await.unwrap();
        let address = front.local_addr().unwrap();
        let began = Arc::new(OnceLock::<Instant>::new());
        let begun = Arc::clone(&began);
        let sizes = Arc::<Mutex<[Vec<usize>; 2]>>::default();
        let noted = Arc::clone(&sizes);
        let task = tokio::spawn(async move {
            let (mut network, mut client) = (Network::new(how), None);
            let (mut up, mut down) = ([0; 2048], [0; 2048]);
            loop {
                let (bytes, towards_client) = tokio::select! {
                    received = front.recv_from(&mut up) => {
                        let Ok((n, from)) = received else { continue };
                        client = Some(from);
                        (up[..n].to_vec(), false)
                    }
                    received = back.recv(&mut down) => {
                        let Ok(n) = received else { continue };
                        (down[..n].to_vec(), true)
                    }
                };
                if begun.get().is_some() {
                    noted.lock().unwrap()[usize::from(towards_client)].push(bytes.len() + 28);
                }
                let ways = match begun.get().map(Instant::elapsed) {
                    Some(at) if at < long && towards_client == to_client => network.send(at),
                    _ => vec![Duration::ZERO],
                };
                for way in ways {
                    let (front, back, bytes) = (Arc::clone(&front), Arc::clone(&back), bytes.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(way).await;
                        let _ = match client {
                            Some(client) if towards_client => front.send_to(&bytes, client).await,
                            _ => back.send(&bytes).await,
                        };
                    });
                }
            }
        });
        Self { address, began, sizes, task }
    }

    /// From now on it is bad.
    pub fn begin(&self) {
        self.began.set(Instant::now()).unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Publishes `n` bundles in real time over TCP.
pub async fn publish(daemon: &Daemon, stream: &str, n: u64) {
    let mut publisher = daemon.publisher(stream).await;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for i in 0..n {
        tick.tick().await;
        publisher.publish(PackedBundle::pack(&bundle(i))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
}

pub fn metric(page: &str, name: &str) -> u64 {
    let line = page.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Every frame has the codes it was published with (fewer stages are allowed), frames come in order and none twice.
pub fn assert_true_to(bundles: &[Bundle]) -> u64 {
    let mut next = 0;
    let mut frames = 0;
    for b in bundles {
        for (f, codes) in (b.first_frame..).zip(b.codes.chunks(b.stages.index())) {
            if f < next {
                // The rest of a bundle that was late in part.
                continue;
            }
            next = f + 1;
            frames += 1;
            let sent = bundle(f / 5);
            let at = (f % 5) as usize * sent.stages.index();
            assert_eq!(*codes, sent.codes[at..at + codes.len()], "frame {f}");
        }
    }
    frames
}

/// What a listener hears: bundles as they came, frames lost, and how often the stream began anew.
pub async fn heard(mut listener: QuicClient) -> (Vec<PackedBundle>, u64, u32) {
    let (mut bundles, mut lost, mut restarts) = (Vec::new(), 0, 0);
    while let Some(event) = within(listener.next()).await.unwrap() {
        match event {
            QuicEvent::Bundle(b) => bundles.push(b),
            QuicEvent::Lost(n) => lost += n,
            QuicEvent::Restart => restarts += 1,
        }
    }
    (bundles, lost, restarts)
}

/// A NAT that gives its client a new port when it is told to, and forgets the old one.
pub struct Nat {
    pub address: SocketAddr,
    pub renumber: Arc<Notify>,
    pub task: JoinHandle<()>,
}

impl Nat {
    pub async fn start(server: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = front.local_addr().unwrap();
        let renumber = Arc::new(Notify::new());
        let told = Arc::clone(&renumber);
        let task = tokio::spawn(async move {
            let mut back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let (mut client, mut up, mut down) = (None, [0; 2048], [0; 2048]);
            loop {
                tokio::select! {
                    Ok((n, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        back.send_to(&up[..n], server).await.unwrap();
                    }
                    Ok((n, _)) = back.recv_from(&mut down) => {
                        if let Some(client) = client {
                            front.send_to(&down[..n], client).await.unwrap();
                        }
                    }
                    () = told.notified() => back = UdpSocket::bind("127.0.0.1:0").await.unwrap(),
                }
            }
        });
        Self { address, renumber, task }
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.task.abort();
    }
}
