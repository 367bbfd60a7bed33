//! Peers whose machine is gone: no FIN, no reset, and nothing that answers. In a network namespace of the test's own.
#![cfg(feature = "full")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Daemon, bytes, hello, tone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use undertone::session::{Message, Role};

/// An address that a peer has until its machine vanishes.
const PEER: &str = "192.0.2.7";

/// Set in the process that runs inside of the namespace.
const INSIDE: &str = "UNDERTONE_TEST_INSIDE";

const NAME: &str = "listeners_whose_machine_vanished_are_given_up_and_the_others_hear_on";

fn ip(args: &str) {
    assert!(Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

#[test]
#[ignore = "needs network namespaces: make test-system"]
fn listeners_whose_machine_vanished_are_given_up_and_the_others_hear_on() {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        ip(&format!("address add {PEER}/32 dev lo"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        return runtime.block_on(inside());
    }
    let alone = ["--user", "--map-root-user", "--net", "--"];
    let mut command = Command::new("unshare");
    command.args(alone).arg(std::env::current_exe().unwrap());
    let status = command.args(["--exact", NAME, "--ignored", "--nocapture"]).env(INSIDE, "1").status();
    assert!(status.expect("unshare is part of util-linux").success(), "see above");
}

async fn connect(to: std::net::SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{PEER}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

async fn listeners(daemon: &Daemon) -> u32 {
    let mut http = TcpStream::connect(daemon.http.unwrap()).await.unwrap();
    http.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut page = String::new();
    http.read_to_string(&mut page).await.unwrap();
    page.lines().find_map(|l| l.strip_prefix("undertone_listeners ")).unwrap().parse().unwrap()
}

/// How long it takes until there are so many listeners.
async fn until(daemon: &Daemon, so: impl Fn(u32) -> bool) -> Duration {
    let start = Instant::now();
    while !so(listeners(daemon).await) {
        assert!(start.elapsed() < Duration::from_secs(100), "still {} listeners", listeners(daemon).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

async fn inside() {
    let daemon = Daemon::start("[http]\nlisten = \"127.0.0.1:0\"\n[limits]\nidle_s = 6\n").await;
    for streaming in [false, true] {
        // Samples, samples of one who has nothing more to say, codes; and one who stays.
        let whole = connect(daemon.pcm_out).await;
        let mut half = connect(daemon.pcm_out).await;
        half.shutdown().await.unwrap();
        let mut codes = connect(daemon.codes).await;
        codes.write_all(&bytes(&Message::Hello(hello(Role::Subscribe, "main", None)))).await.unwrap();
        let mut stays = TcpStream::connect(daemon.pcm_out).await.unwrap();
        until(&daemon, |n| n == 4).await;
        // Sound for all of them, or none for any.
        let pcm = daemon.pcm;
        let source = tokio::spawn(async move {
            if !streaming {
                return;
            }
            let mut input = TcpStream::connect(pcm).await.unwrap();
            loop {
                input.write_all(&tone(0.1)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        ip(&format!("address delete {PEER}/32 dev lo"));
        let mut took = Vec::new();
        for left in [3, 2, 1] {
            took.push(until(&daemon, |n| n <= left).await);
        }
        // Of those that are told nothing the system asks after half the idle time; codes come with signs of life.
        assert!(took[1] < Duration::from_secs(30), "{took:?}, streaming: {streaming}");
        let mut sound = [0; 4_800];
        source.abort();
        drop((whole, half, codes));
        if streaming {
            stays.read_exact(&mut sound).await.unwrap();
        }
        drop(stays);
        until(&daemon, |n| n == 0).await;
        ip(&format!("address add {PEER}/32 dev lo"));
    }
    daemon.stop().await;
}
