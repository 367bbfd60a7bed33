//! Peers that stall, flood, hang up half-way or come too many: the daemon's answer, and what others notice of them.
#![cfg(feature = "full")]

mod common;
#[path = "common/service.rs"]
mod reloadable;

use std::time::Duration;

use common::{Daemon, HTTP, bundle, bytes, drain, hear, hello, speak, within};
use reloadable::Reloadable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use undertone::bitstream::Bundle;
use undertone::service::{Client, ClientError};
use undertone::session::{Close, Control, Hello, Message, PackedBundle, Reason, Role};
use undertone::units::StageCount;
use undertone::wire::Framer;

/// Frames as a hostile or hurried publisher sends them.
fn message(number: u64, frames: u8, stages: u8) -> Vec<u8> {
    let stages = StageCount::new(stages).unwrap();
    let codes = vec![1; usize::from(frames) * stages.index()];
    let bundle = Bundle::new(number * u64::from(frames), frames, stages, codes).unwrap();
    bytes(&Message::Bundle { sequence: number, bundle: PackedBundle::pack(&bundle) })
}

fn publish(stream: &str, frames_per_bundle: u8, stages: u8) -> Vec<u8> {
    bytes(&Message::Hello(Hello { frames_per_bundle, ..hello(Role::Publish, stream, Some(stages)) }))
}

fn last_words(messages: &[Message]) -> &Close {
    match messages.last() {
        Some(Message::Close(close)) => close,
        other => panic!("expected a Close, got {other:?}"),
    }
}

async fn connected(address: std::net::SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_far_ahead_of_real_time_does_not_hold_up_a_shutdown() {
    let daemon = Daemon::start(HTTP).await;
    let ahead = daemon.subscriber("ahead", None).await;
    let mut other = connected(daemon.codes, &bytes(&Message::Hello(hello(Role::Subscribe, "other", None)))).await;
    let mut flood = publish("ahead", 50, 1);
    // A minute of sound at once; all of it fits into one read of the daemon.
    (0..60).for_each(|n| flood.extend(message(n, 50, 1)));
    let mut publisher = connected(daemon.codes, &flood).await;
    daemon.until("\"bundles\":1").await;
    let (told, other, got) = (
        tokio::spawn(async move { hear(&mut publisher).await }),
        tokio::spawn(async move { hear(&mut other).await }),
        tokio::spawn(drain(ahead)),
    );
    let summary = daemon.stop().await;
    // The listener of another stream is told, not dropped; accepted bundles arrive; the publisher knows how many.
    assert_eq!(last_words(&other.await.unwrap()).reason, Reason::ShuttingDown);
    assert_eq!(got.await.unwrap().len() as u64, summary.bundles);
    let told = told.await.unwrap();
    assert_eq!(last_words(&told).reason, Reason::ShuttingDown);
    assert!(last_words(&told).text.contains(&format!("{} bundles", summary.bundles)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_learns_that_a_shutdown_cut_it_short() {
    let daemon = Daemon::start(HTTP).await;
    let mut publisher = daemon.publisher("a").await;
    publisher.publish(PackedBundle::pack(&bundle(0))).await.unwrap();
    daemon.until("\"bundles\":1").await;
    daemon.stop().await;
    let e = within(publisher.finish()).await.unwrap_err();
    assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::ShuttingDown), "{e}");
}

/// Twelve seconds of one frame each: enough to fill what the system holds for a reader that stopped.
const BUNDLES: u64 = 600;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_is_closed_by_name_and_gets_whole_messages_only() {
    let daemon = Daemon::start("[limits]\nlistener_queue_bundles = 32\nidle_s = 1\nsend_buffer_bytes = 4096").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    let mut slow = socket.connect(daemon.codes).await.unwrap();
    slow.write_all(&bytes(&Message::Hello(hello(Role::Subscribe, "a", None)))).await.unwrap();
    let good = daemon.subscriber("a", None).await;
    let mut sent = publish("a", 1, 16);
    (0..BUNDLES).for_each(|n| sent.extend(message(n, 1, 16)));
    sent.extend(bytes(&Message::Close(Close::new(Reason::Done, ""))));
    let publisher = tokio::spawn(async move {
        let mut socket = TcpStream::connect(daemon.codes).await.unwrap();
        socket.write_all(&sent).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(40), async {
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
            answer
        });
        answer.await.unwrap();
        daemon
    });
    // It reads nothing for as long as the stream lasts, and then everything.
    let good = tokio::time::timeout(Duration::from_secs(40), async {
        let (mut good, mut count) = (good, 0);
        while good.next().await.unwrap().is_some() {
            count += 1;
        }
        count
    });
    assert_eq!(good.await.unwrap(), BUNDLES, "the listener beside it");
    let mut answer = Vec::new();
    let _ = within(slow.read_to_end(&mut answer)).await;
    let mut framer = Framer::default();
    framer.push(&answer);
    let mut number = 0;
    while let Some(got) = framer.next().expect("whole messages of the protocol") {
        if let Message::Bundle { bundle, .. } = got {
            let codes = bundle.unpack().unwrap().codes;
            assert!(codes.iter().all(|&c| c == 1), "bundle {number} has foreign bytes in it");
            number += 1;
        }
    }
    assert!(number < BUNDLES);
    let daemon = publisher.await.unwrap();
    assert_eq!(daemon.stop().await.slow, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so() {
    let daemon = Daemon::start("[limits]\nmax_connections = 1\nmax_connections_per_address = 2").await;
    let publisher = daemon.publisher("a").await;
    let close = speak(daemon.codes, &bytes(&Message::Hello(hello(Role::Subscribe, "a", None)))).await;
    let close = last_words(&close);
    assert_eq!(close.reason, Reason::Full);
    assert!(close.text.contains("max_connections"), "{close}");
    within(publisher.finish()).await.unwrap();
    // The place is free again as soon as the server has seen the end of the connection.
    let address = daemon.codes.to_string();
    let again = async {
        loop {
            match Client::connect(&address, hello(Role::Publish, "a", Some(6))).await {
                Ok(publisher) => return publisher,
                Err(ClientError::Closed(c)) if c.reason == Reason::Full => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        }
    };
    within(within(again).await.finish()).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_can_change_while_the_daemon_runs() {
    let daemon = Reloadable::start("[limits]\nmax_connections = 1").await;
    let address = daemon.codes.to_string();
    let publisher = within(Client::connect(&address, hello(Role::Publish, "a", Some(6)))).await.unwrap();
    daemon.reload("[limits]\nmax_connections = 4");
    let subscriber = within(Client::connect(&address, hello(Role::Subscribe, "a", None))).await.unwrap();
    within(publisher.finish()).await.unwrap();
    assert_eq!(drain(subscriber).await.len(), 0);
    assert_eq!(daemon.stop().await.refused, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_must_keep_to_its_hello() {
    for (frames, stages, wanted) in [(5, 7, "7 stages"), (6, 6, "6 frames")] {
        let daemon = Daemon::start("").await;
        let mut sent = publish("a", 5, 6);
        sent.extend(message(0, frames, stages));
        let answer = speak(daemon.codes, &sent).await;
        assert_eq!(last_words(&answer).reason, Reason::Protocol);
        assert!(last_words(&answer).text.contains(wanted), "{answer:?}");
        assert_eq!(daemon.stop().await.hostile, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_a_silent_stream_hears_that_the_server_lives() {
    let daemon = Daemon::start("[limits]\nidle_s = 0.2").await;
    let mut socket = connected(daemon.codes, &bytes(&Message::Hello(hello(Role::Subscribe, "silent", None)))).await;
    let (mut framer, mut chunk, mut alive) = (Framer::default(), [0; 256], 0);
    while alive < 3 {
        let n = within(socket.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "closed");
        framer.push(&chunk[..n]);
        while let Some(message) = framer.next().unwrap() {
            alive += u32::from(message == Message::Control(Control::default()));
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_cut_in_the_middle_leaves_nothing_behind() {
    let daemon = Daemon::start("[limits]\nmax_connections = 4").await;
    let whole = publish("a", 5, 6);
    for cut in 0..whole.len() {
        let mut socket = connected(daemon.codes, &whole[..cut]).await;
        socket.shutdown().await.unwrap();
        assert_eq!(hear(&mut socket).await, []);
    }
    let publisher = daemon.publisher("a").await;
    within(publisher.finish()).await.unwrap();
    daemon.stop().await;
}
