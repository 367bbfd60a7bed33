//! What sessions over QUIC may ask for, as over TCP: longer bundles, a continuation, datagrams of one size.
#![cfg(feature = "full")]

mod common;
#[path = "common/papers.rs"]
mod papers;
#[path = "common/raw_quic.rs"]
mod raw_quic;

use std::net::SocketAddr;

use common::{Daemon, bundle, bytes, drain, hello, tokens, within};
use papers::Papers;
use raw_quic::Raw;
use undertone::bitstream::{ABSENT, Bundle, PackedBundle};
use undertone::service::{Client, ClientOptions, QuicClient, QuicEvent};
use undertone::session::{Continuation, Hello, Message, Role, TokenTag, Wire};
use undertone::units::{MessageRate, StageCount};
use undertone::wire::Datagram;

const QUIC: &str = "[quic]\nlisten = \"127.0.0.1:0\"\n";

fn quic(daemon: &Daemon) -> SocketAddr {
    *daemon.addresses.last().unwrap()
}

async fn connect(daemon: &Daemon, hello: Hello, options: &ClientOptions) -> QuicClient {
    within(QuicClient::connect(&quic(daemon).to_string(), hello, options)).await.unwrap()
}

/// Everything a listener hears, and frames that came too late, as on a busy machine they may.
async fn heard(mut client: QuicClient) -> (Vec<PackedBundle>, u64) {
    let (mut bundles, mut lost) = (Vec::new(), 0);
    while let Some(event) = within(client.next()).await.unwrap() {
        match event {
            QuicEvent::Bundle(b) => bundles.push(b),
            QuicEvent::Lost(frames) => lost += frames,
            QuicEvent::Restart => panic!("no restart here"),
        }
    }
    (bundles, lost)
}

/// What was heard are frames of these bundles, with all their stages or the first of them, in their places; and none is missing.
fn assert_heard((got, lost): &(Vec<PackedBundle>, u64), sent: &[PackedBundle]) {
    let frames = |bundles: &[PackedBundle]| {
        let all = bundles.iter().flat_map(|b| {
            let bundle = b.unpack().unwrap();
            (b.first_frame..).zip(bundle.by_frame().map(<[u16]>::to_vec).collect::<Vec<_>>()).collect::<Vec<_>>()
        });
        all.collect::<Vec<_>>()
    };
    let (got, sent) = (frames(got), frames(sent));
    assert_eq!(got.len() as u64 + lost, sent.len() as u64);
    assert!(*lost < 10, "{lost} frames came too late");
    for (number, codes) in &got {
        let (wanted, whole) = &sent[*number as usize];
        assert!(number == wanted && whole.starts_with(codes), "frame {number}: {codes:?} of {whole:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_joined_for_who_would_rather_wait_and_publishers_are_told() {
    let daemon = Daemon::start(QUIC).await;
    let options = ClientOptions::default();
    let patient = Hello { latency: Some(20), ..hello(Role::Subscribe, "a", None) };
    let (patient, other) = (connect(&daemon, patient, &options).await, hello(Role::Subscribe, "a", None));
    let mut publisher = connect(&daemon, hello(Role::Publish, "a", Some(6)), &options).await;
    let patient = tokio::spawn(heard(patient));
    for n in 0..9 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    // All who listen allow as much.
    assert_eq!(publisher.bundle_frames(), Some(20));
    let hasty = tokio::spawn(heard(connect(&daemon, other, &options).await));
    for n in 9..30 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    assert_eq!(publisher.bundle_frames(), Some(5));
    within(publisher.finish()).await.unwrap();
    let got = patient.await.unwrap();
    let all: Vec<_> = (0..30).map(|n| PackedBundle::pack(&bundle(n))).collect();
    assert_heard(&got, &all);
    // Eight of 20 frames; one that came late may have been waited for no longer.
    assert!(got.0.len() <= 14 && got.0.iter().any(|b| b.frames == 20), "{:?}", got.0);
    assert!(hasty.await.unwrap().0.iter().all(|b| b.frames <= 5));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_over_quic_as_it_does_over_tcp() {
    let daemon = Daemon::start(QUIC).await;
    let wish = Some(Continuation { frames: 112, temperature_percent: 80, seed: 7 });
    let hello = |stages| Hello { continuation: wish, ..hello(Role::Subscribe, "main", stages) };
    let tcp = tokio::spawn(drain(Client::connect(&daemon.codes.to_string(), hello(Some(3))).await.unwrap()));
    let options = ClientOptions { tokens: Some(tokens()), ..ClientOptions::default() };
    let quic = tokio::spawn(heard(connect(&daemon, hello(Some(3)), &options).await));
    let mut publisher = daemon.publisher("main").await;
    for n in 0..4 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let (tcp, quic) = (tcp.await.unwrap(), quic.await.unwrap());
    assert_eq!(tcp.iter().map(|b| u32::from(b.frames)).sum::<u32>(), 20 + 112);
    assert_heard(&quic, &tcp);
    daemon.stop().await;
}

/// Bundles that differ as much as they can: all stages, one, and frames of many depths.
fn unlike(n: u64) -> PackedBundle {
    let depth = |frame: usize| match n % 3 {
        0 => 16,
        1 => 1,
        _ => [1, 16, 3, 9, 2][frame],
    };
    let codes = (0..5).flat_map(|f| {
        (0..16)
            .map(move |k| if k < depth(f) { ((n * 131 + 37 * f as u64 + 11 * k as u64) % 256) as u16 } else { ABSENT })
    });
    PackedBundle::pack(&Bundle::new(5 * n, 5, StageCount::new(16).unwrap(), codes.collect()).unwrap())
}

/// Sizes of the datagrams of bundles until a stream ends.
async fn sizes(raw: Raw) -> Vec<usize> {
    let mut sizes = Vec::new();
    while let Ok(bytes) = within(raw.connection.read_datagram()).await {
        if matches!(Datagram::decode(&bytes), Ok(Datagram::Bundle { .. })) {
            sizes.push(bytes.len());
        }
    }
    sizes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_of_one_size_whatever_is_in_them() {
    let papers = Papers::new();
    let daemon = Daemon::start(&format!("{}{QUIC}", papers.section(false))).await;
    let tag = Some(TokenTag::of(&tokens()));
    let mut listening = Vec::new();
    for (coding, wire, stages) in
        [(tag, Wire::ALL, None), (None, Wire::ALL, None), (None, Wire::default(), None), (tag, Wire::ALL, Some(2))]
    {
        let raw = Raw::connect(quic(&daemon), &papers, quinn::TransportConfig::default()).await;
        let hello = Hello { coding, wire, ..hello(Role::Subscribe, "a", stages) };
        let stream = raw.say(&bytes(&Message::Hello(hello))).await;
        listening.push((stages, tokio::spawn(async move { (sizes(raw).await, drop(stream)).0 })));
    }
    let options = ClientOptions { tokens: Some(tokens()), ..papers.options(false) };
    let hearing = tokio::spawn(heard(connect(&daemon, hello(Role::Subscribe, "a", None), &options).await));
    let rate = MessageRate::new(3_000).unwrap();
    let hello = Hello { constant: Some(rate), ..hello(Role::Publish, "a", Some(16)) };
    let mut publisher = connect(&daemon, hello, &options).await;
    assert!(publisher.is_coded() && !publisher.knows_silence(), "silence is not left out in such a stream");
    let mut sent = Vec::new();
    for n in 0..20 {
        let before = publisher.published().bytes;
        publisher.publish(&unlike(n)).await.unwrap();
        sent.push(publisher.published().bytes - before);
    }
    assert!(publisher.published().padding > 100, "{:?}", publisher.published());
    within(publisher.finish()).await.unwrap();
    // 3 kbit/s are 37 bytes in 100 ms. What waits for its time leaves with the next.
    assert!(sent.iter().all(|bytes| bytes % 37 == 0) && sent.iter().sum::<u64>() >= 10 * 37, "{sent:?}");
    for (stages, listening) in listening {
        let sizes = listening.await.unwrap();
        // 2 stages are 12 bytes, into which numbers and a stage of five frames do not fit.
        let size = if stages.is_some() { 34 } else { 37 };
        assert!(sizes.len() >= 18 && sizes.iter().all(|&s| s == size), "{stages:?}: {sizes:?}");
    }
    let heard = hearing.await.unwrap();
    assert_heard(&heard, &(0..20).map(unlike).collect::<Vec<_>>());
    assert!(heard.0.iter().any(|b| b.stages.value() > 3));
    daemon.stop().await;
}
