//! Foreign bytes: a clear answer for who sends them, nothing for anybody else.
#![cfg(feature = "full")]

mod common;

use std::time::{Duration, Instant};

use common::{Daemon, bundle, bytes, drain, hear, hello, speak, within};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use undertone::session::{Close, Hello, Message, PackedBundle, Reason, Role};
use undertone::units::ModelId;

/// Runs `attack` in the middle of a good stream, which must arrive whole; gives the server's last words.
async fn beside_a_good_stream<F: Future<Output = Vec<Message>>>(
    limits: &str,
    attack: impl FnOnce(std::net::SocketAddr) -> F,
) -> Close {
    let daemon = Daemon::start(limits).await;
    let listener = daemon.subscriber("good", None).await;
    let mut publisher = daemon.publisher("good").await;
    publisher.publish(PackedBundle::pack(&bundle(0))).await.unwrap();
    let answer = attack(daemon.codes).await;
    publisher.publish(PackedBundle::pack(&bundle(1))).await.unwrap();
    within(publisher.finish()).await.unwrap();
    let got: Vec<_> = drain(listener).await.iter().map(|b| b.unpack().unwrap()).collect();
    assert_eq!(got, [bundle(0), bundle(1)]);
    let summary = daemon.stop().await;
    assert_eq!(summary.hostile, 1, "{summary:?}");
    match answer.last() {
        Some(Message::Close(close)) => close.clone(),
        other => panic!("expected a Close, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_line_instead_of_protobuf() {
    let close = beside_a_good_stream("", |a| async move { speak(a, &vec![b'x'; 1 << 20]).await }).await;
    assert_eq!(close.reason, Reason::Protocol, "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_claims_four_gibibytes() {
    let close = beside_a_good_stream("", |a| async move { speak(a, &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]).await }).await;
    assert_eq!(close.reason, Reason::Protocol);
    assert!(close.text.contains("4294967295") && close.text.contains("65536"), "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_a_time_ends_with_the_handshake_deadline() {
    let start = Instant::now();
    let close = beside_a_good_stream("[limits]\nhandshake_s = 0.5", |a| async move {
        let mut socket = TcpStream::connect(a).await.unwrap();
        let hello = bytes(&Message::Hello(hello(Role::Subscribe, "good", None)));
        for byte in &hello[..6] {
            let _ = socket.write_all(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        hear(&mut socket).await
    })
    .await;
    assert_eq!(close.reason, Reason::Timeout, "{close}");
    assert!(start.elapsed() < Duration::from_secs(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_model() {
    let wrong = Hello { model_id: ModelId([0xAB; 8]), ..hello(Role::Publish, "other", Some(6)) };
    let close = beside_a_good_stream("", |a| async move { speak(a, &bytes(&Message::Hello(wrong))).await }).await;
    assert_eq!(close.reason, Reason::Model);
    assert!(close.text.contains("abababababababab") && close.text.contains("66616b6566616b65"), "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_after_a_handshake() {
    let mut sent = bytes(&Message::Hello(hello(Role::Publish, "other", Some(6))));
    sent.extend([3, 0xFF, 0xFF, 0xFF]);
    let close = beside_a_good_stream("", |a| async move { speak(a, &sent).await }).await;
    assert_eq!(close.reason, Reason::Protocol, "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_whose_payload_does_not_fit() {
    let mut packed = PackedBundle::pack(&bundle(0));
    packed.payload.pop();
    let mut sent = bytes(&Message::Hello(hello(Role::Publish, "other", Some(6))));
    sent.extend(bytes(&Message::Bundle { sequence: 0, bundle: packed }));
    let close = beside_a_good_stream("", |a| async move { speak(a, &sent).await }).await;
    assert_eq!(close.reason, Reason::Protocol);
    assert!(close.text.contains("payload"), "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_and_an_empty_message() {
    let close = beside_a_good_stream("[limits]\nhandshake_s = 0.2", |a| async move { speak(a, &[]).await }).await;
    assert_eq!(close.reason, Reason::Timeout);
    let close = beside_a_good_stream("", |a| async move { speak(a, &[0]).await }).await;
    assert_eq!(close.reason, Reason::Protocol);
    assert!(close.text.contains("content"), "{close}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_falls_silent_frees_its_name() {
    let daemon = Daemon::start("[limits]\nidle_s = 0.3").await;
    let sent = bytes(&Message::Hello(hello(Role::Publish, "a", Some(6))));
    let answer = speak(daemon.codes, &sent).await;
    assert!(matches!(answer.last(), Some(Message::Close(c)) if c.reason == Reason::Timeout), "{answer:?}");
    daemon.publisher("a").await;
    daemon.stop().await;
}
