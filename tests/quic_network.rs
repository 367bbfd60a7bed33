//! The daemon over QUIC behind a bad network, with the fake model.
#![cfg(feature = "full")]

mod common;
#[path = "common/impair.rs"]
mod impair;
#[path = "common/quic.rs"]
mod over_quic;

use std::time::{Duration, Instant};

use common::{Daemon, bundle, drain, get, hello, within};
use impair::Impairment;
use over_quic::{FOREVER, Nat, Proxy, QUIC, assert_true_to, attempt, connect, heard, listen, metric, publish, quic};
use tokio::net::UdpSocket;
use undertone::bitstream::Bundle;
use undertone::referee::LossModel;
use undertone::service::{ClientError, ClientOptions, QuicClient, QuicEvent};
use undertone::session::{PackedBundle, Reason, Role};
use undertone::units::StageCount;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_network_loses_what_it_loses_and_nothing_is_out_of_place() {
    let daemon = Daemon::start(QUIC).await;
    let how = Impairment {
        loss: LossModel::Gilbert { loss: 0.15, burst: 2.0 },
        duplicates: 0.1,
        reordered: (0.1, Duration::from_millis(150)),
        jitter: Duration::from_millis(40),
        outage: None,
        seed: 3,
    };
    let proxy = Proxy::start(quic(&daemon), how, true, FOREVER).await;
    let good = daemon.subscriber("a", None).await;
    let listener = connect(proxy.address, Role::Subscribe, "a").await;
    let hearing = tokio::spawn(listen(listener));
    proxy.begin();
    publish(&daemon, "a", 100).await;
    let (bundles, lost, mut client) = hearing.await.unwrap();
    let frames = assert_true_to(&bundles);
    let report = client.report();
    // What comes twice QUIC drops by itself.
    assert!(report.lost() > 0 && report.duplicated == 0 && report.reordered > 0, "{report:?}");
    // Every frame between the first and the last that came was played or called lost, once.
    let first = bundles[0].first_frame;
    let last = bundles.last().map(|b| b.first_frame + u64::from(b.frames)).unwrap();
    assert!(last - first >= 450, "{first} to {last}");
    let between = last - first;
    assert!(frames + lost >= between && frames + lost <= between + 25, "{frames} + {lost} of {between}");
    assert!(report.rebuilt_frames > 0, "{report:?}");
    // The server lowered the rate for this listener and for nobody else.
    assert!(bundles.iter().any(|b| b.frames == 5 && b.stages.value() < 6));
    let all = drain(good).await;
    assert_eq!(all.len(), 100);
    assert!(all.iter().all(|b| b.stages.value() == 6));
    let page = get(daemon.http.unwrap(), "/metrics").await;
    assert!(metric(&page, "undertone_quic_packets_lost_total") > 0);
    assert!(metric(&page, "undertone_quic_rebuilt_ms_total") > 0);
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_falls_while_packets_are_lost_and_comes_back() {
    let daemon = Daemon::start(QUIC).await;
    let how = Impairment { loss: LossModel::Gilbert { loss: 0.3, burst: 2.0 }, ..Impairment::default() };
    let proxy = Proxy::start(quic(&daemon), how, true, Duration::from_secs(5)).await;
    let hearing = tokio::spawn(listen(connect(proxy.address, Role::Subscribe, "a").await));
    let watching = {
        let http = daemon.http.unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            (get(http, "/metrics").await, get(http, "/status").await, get(http, "/status.json").await)
        })
    };
    proxy.begin();
    publish(&daemon, "a", 220).await;
    let (bundles, ..) = hearing.await.unwrap();
    // Copies are single frames; what has five frames is as the server sent it.
    let sent: Vec<_> = bundles.iter().filter(|b| b.frames == 5).map(|b| b.stages.value()).collect();
    let lowest = sent.iter().position(|&s| s <= 3).unwrap_or_else(|| panic!("{sent:?}"));
    assert_eq!((sent[0], *sent.last().unwrap()), (6, 6), "{sent:?}");
    // It comes back stage by stage.
    assert!(sent[lowest..].windows(2).all(|w| w[1] <= w[0] + 1), "{sent:?}");
    let (metrics, table, json) = watching.await.unwrap();
    assert!(metrics.contains("undertone_quic_listener_stages{listener=\"0\",stream=\"a\"}"), "{metrics}");
    assert!(table.contains("listener over QUIC"), "{table}");
    assert!(json.contains("\"quic_listeners\":[{\"stream\":\"a\",\"stages\":"), "{json}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_seconds_of_outage_are_two_seconds_and_the_stream_goes_on() {
    let daemon = Daemon::start(QUIC).await;
    let outage = Some((Duration::from_millis(1_500), Duration::from_secs(2)));
    let how = Impairment { outage, ..Impairment::default() };
    let proxy = Proxy::start(quic(&daemon), how, true, FOREVER).await;
    let hearing = tokio::spawn(listen(connect(proxy.address, Role::Subscribe, "a").await));
    proxy.begin();
    publish(&daemon, "a", 60).await;
    let (bundles, lost, _) = hearing.await.unwrap();
    let frames = assert_true_to(&bundles);
    assert_eq!(frames + lost, 300, "{frames} + {lost}");
    // Twenty bundles, and what a busy machine delays too much.
    assert!((100..=150).contains(&lost), "{lost}");
    assert!(bundles.iter().all(|b| b.first_frame + u64::from(b.frames) <= 75 || b.first_frame >= 175));
    assert_eq!(bundles.last().map(|b| b.first_frame), Some(295));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_on_a_bad_network_reaches_listeners_in_order() {
    let daemon = Daemon::start(QUIC).await;
    let how = Impairment {
        loss: LossModel::Uniform { loss: 0.1 },
        duplicates: 0.2,
        reordered: (0.2, Duration::from_millis(130)),
        jitter: Duration::from_millis(20),
        outage: None,
        seed: 5,
    };
    let proxy = Proxy::start(quic(&daemon), how, false, FOREVER).await;
    let listener = tokio::spawn(drain(daemon.subscriber("a", None).await));
    let mut publisher = connect(proxy.address, Role::Publish, "a").await;
    proxy.begin();
    for n in 0..50 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let bundles: Vec<_> = listener.await.unwrap().iter().map(|b| b.unpack().unwrap()).collect();
    let frames = assert_true_to(&bundles);
    assert!((150..=250).contains(&frames), "{frames}");
    assert!(bundles.windows(2).all(|w| w[0].first_frame + u64::from(w[0].frames) <= w[1].first_frame));
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_receive_at_an_address_gets_no_stream_sent_to_it() {
    let daemon = Daemon::start(QUIC).await;
    let server = quic(&daemon);
    // The attacker sends in the victim's name: what the server answers comes to the victim, and the attacker sees nothing.
    let victim = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    victim.connect(server).await.unwrap();
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let attacker = tokio::spawn(async move {
        let hello = hello(Role::Subscribe, "a", None);
        let options = ClientOptions { patience: Duration::from_secs(3), ..ClientOptions::default() };
        QuicClient::connect(&address.to_string(), hello, &options).await.map(|_| ())
    });
    let (mut sent, mut buffer, mut packets) = (0, [0; 2048], 0);
    while !attacker.is_finished() {
        if let Ok(Ok((n, _))) = tokio::time::timeout(Duration::from_millis(100), front.recv_from(&mut buffer)).await {
            sent += victim.send(&buffer[..n]).await.unwrap();
            packets += 1;
        }
    }
    assert!(matches!(attacker.await.unwrap(), Err(ClientError::Silent { .. })));
    publish(&daemon, "a", 5).await;
    let (mut got, mut answers) = (0, 0);
    while let Ok(n) = victim.try_recv(&mut buffer) {
        (got, answers) = (got + n, answers + 1);
    }
    assert!(answers > 0 && answers <= packets && got < sent / 4, "{answers} answers, {got} bytes for {sent}");
    let page = get(daemon.http.unwrap(), "/metrics").await;
    assert_eq!(metric(&page, "undertone_quic_unproven_total"), answers);
    assert_eq!(metric(&page, "undertone_listeners"), 0);
    // TCP connections only: that of the publisher, and this page's.
    let summary = daemon.stop().await;
    assert_eq!((summary.connections, summary.hostile, summary.refused), (2, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_packets_of_no_connection_change_nothing() {
    let daemon = Daemon::start(QUIC).await;
    let hearing = tokio::spawn(listen(connect(quic(&daemon), Role::Subscribe, "a").await));
    let attacker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    attacker.connect(quic(&daemon)).await.unwrap();
    let publishing = publish(&daemon, "a", 10);
    let attacking = async {
        let (mut sent, mut seed) = (0, 1u64);
        for n in 0..400usize {
            let mut bytes: Vec<u8> = (0..(n * 37) % 1_400)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 56) as u8
                })
                .collect();
            // Beginnings of packets of every kind: in a connection, and Initial, 0-RTT, Handshake, Retry of version 1 and of none.
            let kinds: [&[u8]; 6] = [
                &[0x40],
                &[0xC0, 0, 0, 0, 1, 8],
                &[0xD0, 0, 0, 0, 1, 8],
                &[0xE0, 0, 0, 0, 1, 8],
                &[0xF0, 0, 0, 0, 1, 8],
                &[0xC0, 0xA, 0xA, 0xA, 0xA, 8],
            ];
            let kind = kinds[n % kinds.len()];
            let most = kind.len().min(bytes.len());
            bytes[..most].copy_from_slice(&kind[..most]);
            sent += attacker.send(&bytes).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        sent
    };
    let ((), sent) = tokio::join!(publishing, attacking);
    let (bundles, lost, _) = hearing.await.unwrap();
    assert_eq!((assert_true_to(&bundles), lost), (50, 0));
    let (mut got, mut buffer) = (0, [0; 2048]);
    while let Ok(n) = attacker.try_recv(&mut buffer) {
        got += n;
    }
    assert!(got <= sent, "{got} bytes for {sent}");
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_of_nonsense_is_closed_and_a_vanished_one_gives_its_name_back() {
    let daemon = Daemon::start(&format!("[limits]\nidle_s = 0.5\n{QUIC}")).await;
    let mut liar = connect(quic(&daemon), Role::Publish, "a").await;
    // A code beyond the fake model's codebooks.
    let wrong = Bundle::new(0, 1, StageCount::new(1).unwrap(), vec![1_000]).unwrap();
    let told = async {
        loop {
            if let Err(e) = liar.publish(&PackedBundle::pack(&wrong)).await {
                return e;
            }
        }
    };
    let e = within(told).await;
    assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::Protocol), "{e}");
    // One whose network is gone says nothing more, not even that it hangs up.
    let proxy = Proxy::start(quic(&daemon), Impairment::default(), true, FOREVER).await;
    let vanished = connect(proxy.address, Role::Publish, "b").await;
    proxy.task.abort();
    let start = Instant::now();
    // The name is free again once the idle time is over.
    let again = async {
        while attempt(quic(&daemon), hello(Role::Publish, "b", Some(6))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(again).await;
    assert!(start.elapsed() >= Duration::from_millis(300));
    drop(vanished);
    let summary = daemon.stop().await;
    assert!(summary.hostile >= 2, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_go_on_when_a_nat_gives_their_ends_new_ports() {
    let daemon = Daemon::start(QUIC).await;
    let (ears, mouth) = (Nat::start(quic(&daemon)).await, Nat::start(quic(&daemon)).await);
    let listening = tokio::spawn(heard(connect(ears.address, Role::Subscribe, "a").await));
    let mut publisher = connect(mouth.address, Role::Publish, "a").await;
    for n in 0..60 {
        publisher.publish(&PackedBundle::pack(&bundle(n))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        match n {
            15 => ears.renumber.notify_one(),
            35 => mouth.renumber.notify_one(),
            _ => {}
        }
    }
    within(publisher.finish()).await.unwrap();
    let (bundles, lost, restarts) = listening.await.unwrap();
    let frames: u64 = bundles.iter().map(|b| u64::from(b.frames)).sum();
    assert_eq!((frames + lost, restarts), (300, 0));
    // The server learns of a listener's new port from its next report, which comes within a second; the publisher's next packet
    // tells of its own. Of the second half at most what a busy machine delays is lost.
    assert!(lost <= 75, "{lost} of 300 frames lost");
    let late = bundles.iter().filter(|b| b.first_frame >= 175).map(|b| u64::from(b.frames)).sum::<u64>();
    assert!(late >= 115, "{late} of the last 125 frames");
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_may_go_on_from_another_port_and_loses_nothing() {
    let daemon = Daemon::start(QUIC).await;
    let mut listener = connect(quic(&daemon), Role::Subscribe, "a").await;
    let publishing = publish(&daemon, "a", 40);
    let listening = async {
        let (mut bundles, mut lost) = (Vec::new(), 0);
        while let Some(event) = within(listener.next()).await.unwrap() {
            match event {
                QuicEvent::Bundle(b) => bundles.push(b.unpack().unwrap()),
                QuicEvent::Lost(n) => lost += n,
                QuicEvent::Restart => panic!("no restart here"),
            }
            if bundles.len() == 10 {
                listener.rebind().unwrap();
            }
        }
        (bundles, lost)
    };
    let ((), (bundles, lost)) = tokio::join!(publishing, listening);
    assert_eq!((assert_true_to(&bundles) + lost, bundles.last().map(|b| b.first_frame)), (200, Some(195)));
    assert!(lost <= 10, "{lost} of 200 frames lost");
    daemon.stop().await;
}
