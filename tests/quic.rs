//! The daemon over QUIC, with the fake model.
#![cfg(feature = "full")]

mod common;
#[path = "common/impair.rs"]
mod impair;
#[path = "common/quic.rs"]
mod over_quic;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Daemon, bundle, drain, get, hello, within};
use impair::Impairment;
use over_quic::{FOREVER, Proxy, QUIC, assert_true_to, attempt, connect, heard, listen, metric, quic};
use undertone::bitstream::Bundle;
use undertone::referee::LossModel;
use undertone::service::{Client, ClientError, ClientOptions, QuicClient, QuicEvent};
use undertone::session::{Hello, PackedBundle, Reason, Role, Wire};
use undertone::units::StageCount;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_network_carries_everything_both_ways() {
    let daemon = Daemon::start(QUIC).await;
    let tcp = daemon.subscriber("a", None).await;
    let listener = connect(quic(&daemon), Role::Subscribe, "a").await;
    let mut publisher = connect(quic(&daemon), Role::Publish, "a").await;
    let hearing = tokio::spawn(listen(listener));
    for n in 0..12 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let (bundles, lost, mut client) = hearing.await.unwrap();
    let wanted: Vec<_> = (0..12).map(bundle).collect();
    assert_eq!((bundles, lost), (wanted.clone(), 0));
    let report = client.report();
    assert_eq!((report.expected, report.received, report.late, report.duplicated), (12, 12, 0, 0));
    let got: Vec<_> = drain(tcp).await.iter().map(|b| b.unpack().unwrap()).collect();
    assert_eq!(got, wanted);
    let summary = daemon.stop().await;
    assert_eq!((summary.bundles, summary.hostile, summary.refused), (12, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_coded_each_alone_where_both_ends_have_the_token_model() {
    let daemon = Daemon::start(QUIC).await;
    let options = ClientOptions { tokens: Some(common::tokens()), ..ClientOptions::default() };
    let how = Impairment { loss: LossModel::Gilbert { loss: 0.1, burst: 2.0 }, seed: 2, ..Impairment::default() };
    let proxy = Proxy::start(quic(&daemon), how, true, FOREVER).await;
    let connect = async |address: SocketAddr, role, stages| {
        within(QuicClient::connect(&address.to_string(), hello(role, "a", stages), &options)).await.unwrap()
    };
    let clean =
        [connect(quic(&daemon), Role::Subscribe, None).await, connect(quic(&daemon), Role::Subscribe, None).await];
    let lossy = connect(proxy.address, Role::Subscribe, None).await;
    let packed = attempt(quic(&daemon), hello(Role::Subscribe, "a", None)).await.unwrap();
    let mut publisher = connect(quic(&daemon), Role::Publish, Some(6)).await;
    assert!(publisher.is_coded() && lossy.is_coded() && !packed.is_coded());
    let [one, two] = clean.map(|client| tokio::spawn(listen(client)));
    let (lossy, packed) = (tokio::spawn(listen(lossy)), tokio::spawn(listen(packed)));
    proxy.begin();
    for n in 0..60 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let wanted: Vec<_> = (0..60).map(bundle).collect();
    for clean in [one, two, packed] {
        let (bundles, lost, _) = clean.await.unwrap();
        assert_eq!((bundles, lost), (wanted.clone(), 0));
    }
    // What is lost takes nothing with it.
    let (bundles, lost, mut client) = lossy.await.unwrap();
    assert_eq!((assert_true_to(&bundles) + lost, client.report().late), (300, 0));
    assert!(lost > 0 && lost < 100, "{lost}");
    let page = get(daemon.http.unwrap(), "/metrics").await;
    // Three listeners were sent coded bundles; the two of one kind shared a coder.
    let (runs, coded) = (metric(&page, "undertone_coder_runs_total"), metric(&page, "undertone_coded_bundles_total"));
    assert!(coded >= 180 && runs < coded, "{runs} runs for {coded} bundles");
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why() {
    let token = "[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\nlisten = [\"a\"]\n";
    let daemon = Daemon::start(&format!("{token}{QUIC}")).await;
    let attempt = async |hello| attempt(quic(&daemon), hello).await.map(|_| ());
    let with = |stream: &str, secret: &str| Hello { token: secret.to_owned(), ..hello(Role::Subscribe, stream, None) };
    for refused in [with("a", ""), with("a", "0123456789abcdeX"), with("b", "0123456789abcdef")] {
        let e = attempt(refused).await.unwrap_err();
        assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::Denied), "{e}");
    }
    let wrong = Hello { model_id: undertone::units::ModelId([1; 8]), ..with("a", "0123456789abcdef") };
    let e = attempt(wrong).await.unwrap_err();
    assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::Model), "{e}");
    attempt(with("a", "0123456789abcdef")).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_the_publisher_is_not_taken_for_a_loss() {
    let daemon = Daemon::start(QUIC).await;
    let mut listener = connect(quic(&daemon), Role::Subscribe, "a").await;
    let hearing = tokio::spawn(async move {
        let (mut bundles, mut lost) = (Vec::new(), 0);
        while let Some(event) = within(listener.next()).await.unwrap() {
            match event {
                QuicEvent::Bundle(b) => bundles.push(b.unpack().unwrap()),
                QuicEvent::Lost(n) => lost += n,
                QuicEvent::Restart => {}
            }
        }
        (bundles, lost)
    });
    let mut publisher = daemon.publisher("a").await;
    for n in 0..10 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    for n in 10..20 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    within(publisher.finish()).await.unwrap();
    let (bundles, lost) = hearing.await.unwrap();
    // All that was published is heard; the guess lasts until the server has said that it pauses.
    assert_eq!(assert_true_to(&bundles), 100);
    assert!(lost < 90, "{lost} frames of 125");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_described_over_quic_and_nothing_counts_as_lost() {
    let daemon = Daemon::start(QUIC).await;
    let options = ClientOptions { wire: Wire::default(), ..ClientOptions::default() };
    let plain = hello(Role::Subscribe, "a", None);
    let plain = Client::connect_with(&daemon.codes.to_string(), plain, &options).await.unwrap();
    let tcp = tokio::spawn(drain(plain));
    let listening = tokio::spawn(heard(connect(quic(&daemon), Role::Subscribe, "a").await));
    let mut publisher = connect(quic(&daemon), Role::Publish, "a").await;
    assert!(publisher.knows_silence());
    let quiet = |first| PackedBundle::background(first, 5, &[1, 2, 3, 4]).unwrap();
    let speech = |n| PackedBundle::pack(&bundle(n));
    let mut sent: Vec<_> = (0..5).map(speech).collect();
    sent.extend([25, 45, 65].map(quiet));
    sent.extend((16..22).map(speech));
    let begun = tokio::time::Instant::now();
    for bundle in &sent {
        // When its last frame has been heard.
        let end = bundle.first_frame + u64::from(bundle.frames);
        tokio::time::sleep_until(begun + Duration::from_millis(20 * end)).await;
        publisher.publish(bundle).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    assert_eq!(listening.await.unwrap(), (sent, 0, 0));
    // Who knows nothing of silence hears it as bundles like all others.
    let plain = tcp.await.unwrap();
    assert!(plain.iter().all(|b| !b.is_background()));
    let frames: u64 = plain.iter().map(|b| u64::from(b.frames)).sum();
    assert!((100..=115).contains(&frames), "{frames} of 110");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_sound_that_waited_too_long_is_not_sent_over_quic() {
    let daemon = Daemon::start(QUIC).await;
    let listening = tokio::spawn(heard(connect(quic(&daemon), Role::Subscribe, "a").await));
    let mut live = hello(Role::Publish, "a", Some(6));
    live.pace = undertone::jitter::Pace::Live;
    let mut publisher = attempt(quic(&daemon), live).await.unwrap();
    for n in 0..10 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(publisher.stale(), 0);
    // The machine stood still for two seconds; what was recorded meanwhile comes at once.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        within(publisher.sign_of_life()).await.unwrap();
    }
    for n in 10..30 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    let stale = publisher.stale();
    assert!((15..=17).contains(&stale), "{stale} of 20");
    for n in 30..35 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let (bundles, ..) = listening.await.unwrap();
    let firsts: Vec<_> = bundles.iter().map(|b| b.first_frame / 5).collect();
    assert_eq!(firsts.last(), Some(&34));
    // The newest of the backlog, and all that came after it.
    assert!(firsts.iter().filter(|&&n| n < 10).count() >= 10 && firsts.contains(&29), "{firsts:?}");
    assert!(bundles.len() as u64 <= 35 - stale, "{firsts:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_over_quic_may_pause_and_loses_nothing() {
    let daemon = Daemon::start(QUIC).await;
    let listener = tokio::spawn(drain(daemon.subscriber("a", None).await));
    let mut publisher = connect(quic(&daemon), Role::Publish, "a").await;
    for n in 0..20 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
        // The frames after the pause follow those before it, as samples from a pipe do.
        for _ in 0..if n == 9 { 25 } else { 0 } {
            tokio::time::sleep(Duration::from_millis(100)).await;
            within(publisher.sign_of_life()).await.unwrap();
        }
    }
    within(publisher.finish()).await.unwrap();
    let bundles: Vec<_> = listener.await.unwrap().iter().map(|b| b.unpack().unwrap()).collect();
    assert_eq!(bundles, (0..20).map(bundle).collect::<Vec<_>>());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_costs_fewer_bytes_of_heads_than_over_tcp_with_tls() {
    let daemon = Daemon::start(QUIC).await;
    for (frames, bundles) in [(3u8, 20u64), (10, 10), (50, 4)] {
        let proxy = Proxy::start(quic(&daemon), Impairment::default(), true, FOREVER).await;
        let name = format!("of-{frames}");
        let hearing = tokio::spawn(listen(connect(proxy.address, Role::Subscribe, &name).await));
        let hello = Hello { frames_per_bundle: frames, ..hello(Role::Publish, &name, Some(6)) };
        let mut publisher = within(Client::connect(&daemon.codes.to_string(), hello)).await.unwrap();
        proxy.begin();
        let stages = StageCount::new(6).unwrap();
        let payload = Bundle::payload_len(frames, stages);
        for n in 0..bundles {
            // After half an hour of them, when numbers are long.
            let codes = vec![7; usize::from(frames) * stages.index()];
            let bundle = Bundle::new(90_000 + n * u64::from(frames), frames, stages, codes).unwrap();
            publisher.publish(PackedBundle::pack(&bundle)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20) * u32::from(frames)).await;
        }
        within(publisher.finish()).await.unwrap();
        hearing.await.unwrap();
        let [up, down] = std::mem::take(&mut *proxy.sizes.lock().unwrap());
        let heads: Vec<_> = down.iter().filter(|&&n| n > payload + 40).map(|n| n - payload).collect();
        let (mean, acks) = (heads.iter().sum::<usize>() / heads.len(), up.iter().sum::<usize>() as u64 / bundles);
        println!("{} ms: {mean} bytes of heads a bundle, {acks} bytes back", u32::from(frames) * 20);
        // IPv4 and TCP with time stamps 52, a record of TLS 22, a thin bundle 3.
        assert!(heads.len() as u64 >= bundles - 1 && mean < 77, "{heads:?}");
    }
    daemon.stop().await;
}
