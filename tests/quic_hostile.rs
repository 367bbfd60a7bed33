//! QUIC with real certificates, and clients that speak it and mean ill.
#![cfg(feature = "full")]

mod common;
#[path = "common/papers.rs"]
mod papers;
#[path = "common/raw_quic.rs"]
mod raw_quic;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Daemon, bundle, bytes, drain, hello, within};
use papers::Papers;
use quinn::TransportConfig;
use raw_quic::Raw;
use undertone::bitstream::CodedBundle;
use undertone::jitter::Report;
use undertone::service::{Client, ClientError, ClientOptions, QuicClient, QuicEvent};
use undertone::session::{Control, Hello, Message, PackedBundle, Reason, Role, TokenTag, Wire};
use undertone::wire::Datagram;

const QUIC: &str = "[quic]\nlisten = \"127.0.0.1:0\"\n";

fn quic(daemon: &Daemon) -> SocketAddr {
    *daemon.addresses.last().unwrap()
}

async fn connect(daemon: &Daemon, hello: Hello, options: &ClientOptions) -> Result<QuicClient, ClientError> {
    within(QuicClient::connect(&quic(daemon).to_string(), hello, options)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_checked_at_both_ends() {
    let papers = Papers::new();
    let daemon = Daemon::start(&format!("{}{QUIC}", papers.section(true))).await;
    let mut listener = connect(&daemon, hello(Role::Subscribe, "a", None), &papers.options(true)).await.unwrap();
    let mut publisher = connect(&daemon, hello(Role::Publish, "a", Some(6)), &papers.options(true)).await.unwrap();
    publisher.publish(&PackedBundle::pack(&bundle(0))).await.unwrap();
    within(publisher.finish()).await.unwrap();
    assert_eq!(within(listener.next()).await.unwrap(), Some(QuicEvent::Bundle(PackedBundle::pack(&bundle(0)))));
    // An authority that did not sign the server's certificate, and another name than it has.
    let strange = connect(&daemon, hello(Role::Subscribe, "a", None), &Papers::new().options(true)).await;
    assert!(matches!(&strange, Err(ClientError::Io { .. })), "{strange:?}");
    let options = papers.options(true);
    let elsewhere = ClientOptions {
        tls: options.tls.clone().map(|t| t.with_server_name(Some("elsewhere.example".to_owned()))),
        ..options
    };
    let wrong = connect(&daemon, hello(Role::Subscribe, "a", None), &elsewhere).await;
    assert!(matches!(&wrong, Err(ClientError::Io { .. })), "{wrong:?}");
    // No certificate of the client's.
    for options in [papers.options(false), ClientOptions::default()] {
        let unnamed = connect(&daemon, hello(Role::Subscribe, "a", None), &options).await;
        assert!(matches!(&unnamed, Err(ClientError::Io { .. })), "{unnamed:?}");
    }
    assert_eq!(daemon.stop().await.hostile, 4);
}

#[tokio::test]
async fn only_this_machine_is_trusted_without_an_authority() {
    // An address for documentation: nothing is sent, so that nothing is waited for.
    let started = tokio::time::Instant::now();
    let far = QuicClient::connect("192.0.2.1:7704", hello(Role::Subscribe, "a", None), &ClientOptions::default()).await;
    let e = far.unwrap_err().to_string();
    assert!(e.contains("192.0.2.1:7704") && e.contains("--ca FILE"), "{e}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_room_is_told_so() {
    let limits = "[limits]\nmax_connections_per_address = 1\n";
    let daemon = Daemon::start(&format!("{limits}{QUIC}")).await;
    let first = connect(&daemon, hello(Role::Subscribe, "a", None), &ClientOptions::default()).await.unwrap();
    let second = connect(&daemon, hello(Role::Subscribe, "a", None), &ClientOptions::default()).await.unwrap_err();
    assert!(matches!(&second, ClientError::Closed(c) if c.reason == Reason::Full), "{second}");
    within(first.leave()).await;
    // Its place is free once the server knows.
    within(async {
        while connect(&daemon, hello(Role::Subscribe, "a", None), &ClientOptions::default()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    daemon.stop().await;
}

fn hi(role: Role, stream: &str) -> Vec<u8> {
    bytes(&Message::Hello(hello(role, stream, Some(6))))
}

fn datagram(number: u64) -> Vec<u8> {
    let message = Message::Bundle { sequence: number, bundle: PackedBundle::pack(&bundle(number)) };
    Datagram::bundle(message, Vec::new()).unwrap().encode()
}

/// A coded bundle, which needs a token model that was agreed on.
fn coded(number: u64) -> Vec<u8> {
    let PackedBundle { first_frame, frames, stages, mut payload, .. } = PackedBundle::pack(&bundle(number));
    payload.truncate(9);
    let bundle = CodedBundle { first_frame, frames, stages, graded: true, restart: true, packed: false, payload };
    let message = Message::Coded { sequence: number, bundle, checked: true };
    Datagram::bundle(message, Vec::new()).unwrap().encode()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_coded_bundle_ends_its_session() {
    let papers = Papers::new();
    let daemon = Daemon::start(&format!("{}{QUIC}", papers.section(false))).await;
    let evil = Raw::connect(quic(&daemon), &papers, TransportConfig::default()).await;
    let hello = Hello { coding: Some(TokenTag::of(&common::tokens())), ..hello(Role::Publish, "a", Some(6)) };
    let hello = Hello { wire: Wire::ALL, ..hello };
    let (send, mut recv) = evil.say(&bytes(&Message::Hello(hello))).await;
    within(recv.read(&mut [0; 200])).await.unwrap();
    // Part of a payload, whose end is no check sum of the codes.
    evil.connection.send_datagram(coded(0).into()).unwrap();
    let close = evil.last_words((send, recv)).await.unwrap();
    assert!(close.reason == Reason::Protocol && close.text.contains("check sum"), "{close}");
    assert_eq!(daemon.stop().await.hostile, 1);
}

/// Another first message, noise in its place, and a message without an end.
async fn wrong_from_the_start(daemon: &Daemon, papers: &Papers) {
    let control = bytes(&Message::Control(Control::default()));
    for (first, word) in [
        (control, "must be Hello"),
        (vec![0xFF; 64], "not a varint"),
        (vec![0xFF, 0xFF, 0xFF, 0x7F], "allowed at most 65536"),
    ] {
        let evil = Raw::connect(quic(daemon), papers, TransportConfig::default()).await;
        let stream = evil.say(&first).await;
        let close = evil.last_words(stream).await.unwrap();
        assert!(close.reason == Reason::Protocol && close.text.contains(word), "{close}");
    }
}

/// What nobody writes, from who may write.
async fn wrong_from_who_may_write(daemon: &Daemon, papers: &Papers) {
    let control = bytes(&Message::Control(Control::default()));
    let bundle_on_stream = bytes(&Message::Bundle { sequence: 0, bundle: PackedBundle::pack(&bundle(0)) });
    for (role, datagrams, more, word) in [
        (Role::Publish, vec![vec![0xFF; 40]], vec![], "not a message of protocol"),
        (Role::Publish, vec![coded(7)], vec![], "payload in bytes"),
        (Role::Publish, vec![vec![0x5A; 40]], vec![], "without a bundle"),
        (Role::Publish, vec![vec![]], vec![], "not a message of protocol"),
        (Role::Publish, vec![Datagram::Report(Report::default()).encode(); 300], vec![], "a flood of messages"),
        (Role::Publish, (0..900).map(|n| datagram(n % 20)).collect(), vec![], "a flood of bundles"),
        (Role::Publish, vec![], bundle_on_stream, "in datagrams"),
        (Role::Publish, vec![], hi(Role::Publish, "b"), "second Hello"),
        (Role::Publish, vec![], control.repeat(300), "a flood of messages"),
        (Role::Subscribe, vec![datagram(0)], vec![], "must not send bundles"),
    ] {
        let evil = Raw::connect(quic(daemon), papers, TransportConfig::default()).await;
        let (mut send, mut recv) = evil.say(&hi(role, "evil")).await;
        within(recv.read(&mut [0; 200])).await.unwrap();
        send.write_all(&more).await.unwrap();
        for (n, bytes) in datagrams.iter().enumerate() {
            evil.connection.send_datagram(bytes.clone().into()).unwrap();
            // Not so many at once that they are lost on their way.
            if n % 8 == 7 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if evil.connection.close_reason().is_some() {
                break;
            }
        }
        let close = evil.last_words((send, recv)).await.unwrap();
        assert!(close.reason == Reason::Protocol && close.text.contains(word), "{word}: {close}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_break_the_rules_are_told_which_and_disturb_nobody() {
    let papers = Papers::new();
    let daemon = Daemon::start(&format!("{}{QUIC}[limits]\nhandshake_s = 1.0\n", papers.section(false))).await;
    let options = papers.options(false);
    let mut publisher = connect(&daemon, hello(Role::Publish, "good", Some(6)), &options).await.unwrap();
    let mut listener = connect(&daemon, hello(Role::Subscribe, "good", None), &options).await.unwrap();
    let evil = async || Raw::connect(quic(&daemon), &papers, TransportConfig::default()).await;
    let attacks = async {
        wrong_from_the_start(&daemon, &papers).await;
        wrong_from_who_may_write(&daemon, &papers).await;
        // A name that is taken.
        let second = evil().await;
        let stream = second.say(&hi(Role::Publish, "good")).await;
        assert_eq!(second.last_words(stream).await.map(|c| c.reason), Some(Reason::Busy));
        // Nothing at all, and a stream that says nothing: closed when the time for a handshake is over.
        let (mute, shy) = (evil().await, evil().await);
        let stream = shy.say(&hi(Role::Publish, "x")[..3]).await;
        within(mute.connection.closed()).await;
        assert_eq!(shy.last_words(stream).await, None);
    };
    let speaking = async {
        for n in 0..60 {
            publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        within(publisher.finish()).await.unwrap();
    };
    let hearing = async {
        let (mut frames, mut lost) = (0, 0);
        while let Some(event) = within(listener.next()).await.unwrap() {
            match event {
                QuicEvent::Bundle(b) => frames += u64::from(b.frames),
                QuicEvent::Lost(n) => lost += n,
                QuicEvent::Restart => panic!("no restart here"),
            }
        }
        (frames, lost)
    };
    let ((), (), (frames, lost)) = tokio::join!(attacks, speaking, hearing);
    // What a busy machine delays too much is lost.
    assert!(frames + lost == 300 && lost <= 25, "{frames} frames, {lost} lost");
    let summary = daemon.stop().await;
    assert_eq!((summary.hostile, summary.refused), (15, 1));
}

async fn over_tcp(daemon: &Daemon, papers: &Papers, role: Role) -> Client {
    let options = papers.options(false);
    within(Client::connect_with(&daemon.codes.to_string(), hello(role, "a", Some(6)), &options)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_messages_or_no_datagrams_holds_nothing_up() {
    let papers = Papers::new();
    let daemon = Daemon::start(&format!("{}{QUIC}", papers.section(false))).await;
    let mut deaf = TransportConfig::default();
    deaf.stream_receive_window(1u8.into());
    let mut numb = TransportConfig::default();
    numb.datagram_receive_buffer_size(None);
    let mut held = Vec::new();
    for transport in [deaf, numb] {
        let evil = Raw::connect(quic(&daemon), &papers, transport).await;
        let stream = evil.say(&hi(Role::Subscribe, "a")).await;
        held.push((evil, stream));
    }
    let good = over_tcp(&daemon, &papers, Role::Subscribe).await;
    let hearing = tokio::spawn(drain(good));
    let mut publisher = over_tcp(&daemon, &papers, Role::Publish).await;
    for n in 0..20 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    within(publisher.finish()).await.unwrap();
    assert_eq!(hearing.await.unwrap().len(), 20);
    let summary = daemon.stop().await;
    assert_eq!(summary.bundles, 20);
    drop(held);
}
