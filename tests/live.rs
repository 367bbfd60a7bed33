//! Streams as they happen, with the fake model: coded once for all who get the same, of one size where that is asked for, and
//! searched for in the time that is left.
#![cfg(feature = "full")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Daemon, HTTP, bundle, drain, get, hello, tokens, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use undertone::bitstream::PackedBundle;
use undertone::engine::EffortMode;
use undertone::service::{Client, ClientOptions};
use undertone::session::{Hello, Message, Role, TokenTag, Wire};
use undertone::units::MessageRate;
use undertone::wire::encode;

async fn coded(daemon: &Daemon, stages: u8) -> Client {
    let options = ClientOptions { tokens: Some(tokens()), ..ClientOptions::default() };
    let hello = hello(Role::Subscribe, "main", Some(stages));
    Client::connect_with(&daemon.codes.to_string(), hello, &options).await.unwrap()
}

/// A figure of `/metrics`.
async fn figure(daemon: &Daemon, name: &str) -> f64 {
    let answer = get(daemon.http.unwrap(), "/metrics").await;
    let line = answer.lines().find_map(|l| l.strip_prefix(&format!("undertone_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {answer}")).parse().unwrap()
}

#[tokio::test]
async fn a_bundle_is_coded_once_for_all_listeners_that_want_the_same() {
    let daemon = Daemon::start(HTTP).await;
    let mut publisher = daemon.publisher("main").await;
    let mut listeners = Vec::new();
    for stages in [6, 6, 6, 6, 3, 3] {
        listeners.push((stages, tokio::spawn(drain(coded(&daemon, stages).await))));
    }
    for n in 0..12 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    publisher.finish().await.unwrap();
    for (stages, listener) in listeners {
        let got = listener.await.unwrap();
        let stages = undertone::units::StageCount::new(stages).unwrap();
        let wanted: Vec<_> = (0..12).map(|n| PackedBundle::pack(&bundle(n)).limited(stages).unwrap()).collect();
        assert_eq!(got, wanted);
    }
    assert_eq!(figure(&daemon, "coded_bundles_total").await, 6.0 * 12.0);
    assert_eq!(figure(&daemon, "coder_runs_total").await, 2.0 * 12.0);
    daemon.stop().await;
}

/// Lengths of the messages after the first, which is the answer to Hello, and before the last, which is a farewell.
async fn sizes(mut socket: TcpStream) -> Vec<usize> {
    let mut bytes = Vec::new();
    within(socket.read_to_end(&mut bytes)).await.unwrap();
    let (mut at, mut sizes) = (0, Vec::new());
    while at < bytes.len() {
        let (mut length, mut prefix) = (0, 0);
        loop {
            let byte = bytes[at + prefix];
            length |= usize::from(byte & 0x7f) << (7 * prefix);
            prefix += 1;
            if byte < 0x80 {
                break;
            }
        }
        sizes.push(prefix + length);
        at += prefix + length;
    }
    sizes[1..sizes.len() - 1].to_vec()
}

#[tokio::test]
async fn messages_of_one_size_whatever_is_said() {
    let daemon = Daemon::start_with(HTTP, "kbps = 3\nconstant = true\neffort = \"off\"").await;
    let mut listening = Vec::new();
    for (coding, wire, stages) in [
        (Some(TokenTag::of(&tokens())), Wire::ALL, None),
        (None, Wire::ALL, None),
        (None, Wire::default(), None),
        (Some(TokenTag::of(&tokens())), Wire::ALL, Some(4)),
    ] {
        let mut socket = TcpStream::connect(daemon.codes).await.unwrap();
        let mut out = Vec::new();
        let mut hello = hello(Role::Subscribe, "main", stages);
        (hello.coding, hello.wire) = (coding, wire);
        encode(&Message::Hello(hello), &mut out);
        socket.write_all(&out).await.unwrap();
        listening.push(tokio::spawn(sizes(socket)));
    }
    let heard = tokio::spawn(drain(coded(&daemon, 16).await));
    // Speech, silence, and a last word that is shorter than a bundle.
    let mut input = TcpStream::connect(daemon.pcm).await.unwrap();
    let mut sound = common::tone(0.7);
    sound.extend(vec![0; 48_000]);
    sound.extend(common::tone(0.03));
    input.write_all(&sound).await.unwrap();
    input.shutdown().await.unwrap();
    let mut lengths = Vec::new();
    for listening in listening {
        let sizes = listening.await.unwrap();
        assert!(sizes.len() >= 18 && sizes.iter().all(|&s| s == sizes[0]), "{sizes:?}");
        lengths.push(sizes[0]);
    }
    // 3 kbit/s are 37 bytes in 100 ms; who asks for 2 gets 25.
    assert_eq!((lengths[0], lengths[1], lengths[3]), (37, 37, 25));
    assert!(lengths[2] < 50, "{lengths:?}");
    // What was padded is sound all the same, without a gap.
    let heard = heard.await.unwrap();
    let mut next = 0;
    for bundle in &heard {
        assert_eq!(bundle.first_frame, next);
        next += u64::from(bundle.frames);
    }
    assert!(next >= 87 && heard.iter().any(|b| b.stages.value() > 2), "{next}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_publisher_of_one_size_makes_it_one_size_for_all_who_listen() {
    let daemon = Daemon::start(HTTP).await;
    let mut listening = Vec::new();
    for (coding, wire, latency, size) in [
        (Some(TokenTag::of(&tokens())), Wire::ALL, None, 37),
        (None, Wire::ALL, None, 37),
        (None, Wire::default(), None, 44),
        (Some(TokenTag::of(&tokens())), Wire::ALL, Some(10), 75),
    ] {
        let mut socket = TcpStream::connect(daemon.codes).await.unwrap();
        let mut out = Vec::new();
        let mut hello = hello(Role::Subscribe, "main", None);
        (hello.coding, hello.wire, hello.latency) = (coding, wire, latency);
        encode(&Message::Hello(hello), &mut out);
        socket.write_all(&out).await.unwrap();
        listening.push((size, tokio::spawn(sizes(socket))));
    }
    let options = ClientOptions { tokens: Some(tokens()), ..ClientOptions::default() };
    let rate = MessageRate::new(3_000).unwrap();
    let hello = Hello { constant: Some(rate), ..hello(Role::Publish, "main", Some(6)) };
    let mut publisher = Client::connect_with(&daemon.codes.to_string(), hello, &options).await.unwrap();
    assert!(!publisher.wire().silence, "silence is not left out in such a stream");
    for n in 0..20 {
        let stages = undertone::units::StageCount::new([6, 1, 3][n as usize % 3]).unwrap();
        let bundle = PackedBundle::pack(&bundle(n)).limited(stages).unwrap();
        publisher.publish_padded(&bundle, rate.bytes(5)).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    for (size, listening) in listening {
        let sizes = listening.await.unwrap();
        assert!(sizes.len() >= 9 && sizes.iter().all(|&s| s == size), "{size}: {sizes:?}");
    }
    assert!(figure(&daemon, "padding_bytes_total").await > 300.0);
    // The next stream of the name is as long as it gets.
    let listener = tokio::spawn(sizes_of(&daemon).await);
    let mut publisher = daemon.publisher("main").await;
    for n in 0..6 {
        let stages = undertone::units::StageCount::new(1 + n as u8).unwrap();
        publisher.publish(PackedBundle::pack(&bundle(n)).limited(stages).unwrap()).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let sizes = listener.await.unwrap();
    assert!(sizes.is_sorted() && sizes[0] + 20 < sizes[5], "{sizes:?}");
    daemon.stop().await;
}

/// What a packed listener will get.
async fn sizes_of(daemon: &Daemon) -> impl Future<Output = Vec<usize>> + use<> {
    let mut socket = TcpStream::connect(daemon.codes).await.unwrap();
    let mut out = Vec::new();
    encode(&Message::Hello(hello(Role::Subscribe, "main", None)), &mut out);
    socket.write_all(&out).await.unwrap();
    sizes(socket)
}

#[tokio::test]
async fn raw_sound_is_searched_for_until_the_operator_says_no() {
    let daemon = Daemon::start_with(HTTP, "kbps = 3\neffort = 2").await;
    let listener = tokio::spawn(drain(coded(&daemon, 16).await));
    let mut input = TcpStream::connect(daemon.pcm).await.unwrap();
    let piece = common::tone(0.1);
    for _ in 0..30 {
        input.write_all(&piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let effort = figure(&daemon, "effort").await;
    let searched = figure(&daemon, "searched_bundles_total").await;
    // As many as there was time for, which on a slow machine is not much.
    assert!(effort == 2.0 && searched >= 1.0, "effort {effort}, {searched} searched");
    // Taken back while it runs.
    let mut config = undertone::config::Config::clone(&daemon.config.borrow());
    config.codec.effort = EffortMode::Steps(0);
    daemon.config.send_replace(Arc::new(config));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = figure(&daemon, "searched_bundles_total").await;
    for _ in 0..5 {
        input.write_all(&piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(figure(&daemon, "effort").await, 0.0);
    assert_eq!(figure(&daemon, "searched_bundles_total").await, before);
    input.shutdown().await.unwrap();
    // Whatever a busy machine had no time for is counted.
    let got: u64 = listener.await.unwrap().iter().map(|b| u64::from(b.frames)).sum();
    assert_eq!((got / 5) as f64 + figure(&daemon, "stale_bundles_total").await, 35.0);
    daemon.stop().await;
}
