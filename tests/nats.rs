//! Several daemons around a real nats-server.
#![cfg(feature = "full")]

mod common;
#[path = "common/nats.rs"]
mod nats;

use common::{Daemon, FAKE_ID, bundle, drain, hello, within};
use nats::{NatsServer, metric, until};
use undertone::bus::layers::{Epoch, Kind, LayerMessage, split};
use undertone::service::{Client, ClientError};
use undertone::session::{PackedBundle, Reason, Role};
use undertone::units::StageCount;

fn packed(number: u64) -> PackedBundle {
    PackedBundle::pack(&bundle(number))
}

fn http(daemon: &Daemon) -> u16 {
    daemon.http.unwrap().port()
}

async fn connected(daemon: &Daemon) {
    until("the daemon has reached NATS", async || metric(http(daemon), "nats_connected").await == 1.0).await;
}

/// Three daemons, connected.
async fn three(server: &NatsServer) -> [Daemon; 3] {
    let daemons = [(); 3].map(|()| Daemon::start_owned(server.config()));
    let [a, b, c] = daemons;
    let daemons = [a.await, b.await, c.await];
    for daemon in &daemons {
        connected(daemon).await;
    }
    daemons
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_heard_on_every_daemon_and_only_wanted_layers_are_fetched() {
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let few = b.subscriber("radio.news", Some(2)).await;
    let subjects = |layers: &[usize]| layers.iter().map(|l| format!("test.v1.live.radio~news.{l}")).collect::<Vec<_>>();
    until("the first layer is subscribed", async || server.live_subjects().await == subjects(&[0])).await;
    let all = c.subscriber("radio.news", None).await;
    until("all layers are subscribed", async || server.live_subjects().await == subjects(&[0, 0, 1, 2, 3])).await;
    assert_eq!(metric(http(&b), "nats_subscriptions").await, 1.0);

    let mut publisher = a.publisher("radio.news").await;
    let (few, all) = (tokio::spawn(drain(few)), tokio::spawn(drain(all)));
    for n in 0..10 {
        publisher.publish(packed(n)).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let (few, all) = (within(few).await.unwrap(), within(all).await.unwrap());
    assert_eq!((few.len(), all.len()), (10, 10));
    let two = StageCount::new(2).unwrap();
    for (n, (few, all)) in (0..).zip(few.iter().zip(&all)) {
        assert_eq!(*all, packed(n));
        assert_eq!(*few, packed(n).limited(two).unwrap());
    }
    assert_eq!(metric(http(&a), "nats_published_total").await, 10.0);
    assert_eq!(metric(http(&a), "nats_messages_total").await, 20.0);
    for daemon in [&b, &c] {
        assert_eq!(metric(http(daemon), "nats_received_total").await, 10.0);
        assert_eq!(metric(http(daemon), "nats_lost_total").await, 0.0);
    }
    until("nothing is subscribed any more", async || server.live_subjects().await.is_empty()).await;
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_changes_its_mind_and_the_layers_follow() {
    use undertone::session::{Control, Message};
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let mut listener = b.subscriber("main", Some(1)).await;
    until("one layer is subscribed", async || server.live_subjects().await.len() == 1).await;
    let stages = Some(StageCount::new(5).unwrap());
    listener.send_raw(&Message::Control(Control { stages })).await.unwrap();
    until("two layers are subscribed", async || server.live_subjects().await.len() == 2).await;
    drop(listener);
    until("nothing is subscribed any more", async || server.live_subjects().await.is_empty()).await;
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}

async fn refused(daemon: &Daemon, stream: &str) -> Option<Reason> {
    match Client::connect(&daemon.codes.to_string(), hello(Role::Publish, stream, Some(6))).await {
        Ok(client) => {
            within(client.finish()).await.unwrap();
            None
        }
        Err(ClientError::Closed(close)) => Some(close.reason),
        Err(e) => panic!("{e}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_publishers_of_a_name_the_earlier_is_right_wherever_they_are() {
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let mut publisher = a.publisher("main").await;
    assert_eq!(refused(&b, "main").await, Some(Reason::Busy));
    assert_eq!(refused(&b, "other").await, None);
    let mut listener = c.subscriber("main", None).await;
    until("the stream is followed", async || server.live_subjects().await.len() == 4).await;
    publisher.publish(packed(0)).await.unwrap();
    assert_eq!(within(listener.next()).await.unwrap().unwrap(), packed(0));

    // An earlier publisher, that could not be heard until now.
    let other = async_nats::connect(server.url()).await.unwrap();
    let epoch = Epoch { started: 1, id: 1 };
    let claim = LayerMessage::word(Kind::Claim, epoch, FAKE_ID, 0);
    other.publish("test.v1.claim.main", claim.encode().into()).await.unwrap();
    let closed = within(async {
        loop {
            if let Err(e) = publisher.publish(packed(1)).await {
                break e;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    // The frame number repeats from the second bundle on, so the order matters: Busy must come first.
    let closed = match closed.await {
        ClientError::Closed(close) => close,
        _ => match publisher.next().await {
            Err(ClientError::Closed(close)) => close,
            other => panic!("{other:?}"),
        },
    };
    assert_eq!(closed.reason, Reason::Busy, "{closed}");
    // Who listens elsewhere is not cut off, and hears the other one; frame numbers go on.
    let message = |n: u64| split(&packed(n), epoch, FAKE_ID, n).unwrap();
    for n in 40..43 {
        for m in message(n) {
            other.publish(format!("test.v1.live.main.{}", m.layer), m.encode().into()).await.unwrap();
        }
    }
    let mut frames = Vec::new();
    while frames.len() < 3 {
        let got = within(listener.next()).await.unwrap().unwrap();
        if got.first_frame >= 200 {
            frames.push(got.first_frame);
        }
    }
    assert_eq!(frames, [200, 205, 210]);
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_messages_are_counted_and_the_stream_goes_on() {
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let mut listener = b.subscriber("main", None).await;
    until("the stream is followed", async || server.live_subjects().await.len() == 4).await;
    let mut publisher = a.publisher("main").await;
    publisher.publish(packed(0)).await.unwrap();
    within(listener.next()).await.unwrap().unwrap();

    let hostile = async_nats::connect(server.url()).await.unwrap();
    let layers = split(&packed(1), Epoch { started: 1, id: 1 }, FAKE_ID, 1).unwrap();
    let good = layers[0].encode();
    let mut other_model = good.clone();
    other_model[5] ^= 1;
    let longer = [good.clone(), vec![0; 900_000]].concat();
    let bad = [vec![], vec![0xff; 10], good[..good.len() - 1].to_vec(), longer, other_model];
    for payload in &bad {
        for subject in ["test.v1.live.main.0", "test.v1.live.main.3"] {
            hostile.publish(subject, payload.clone().into()).await.unwrap();
        }
    }
    hostile.publish("test.v1.claim.main", vec![1; 100].into()).await.unwrap();
    hostile.flush().await.unwrap();
    until("all of them are counted", async || metric(http(&b), "nats_malformed_total").await == 10.0).await;
    until("the claim is counted", async || metric(http(&a), "nats_malformed_total").await == 1.0).await;
    publisher.publish(packed(1)).await.unwrap();
    assert_eq!(within(listener.next()).await.unwrap().unwrap(), packed(1));
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nats_is_away_a_daemon_serves_its_own_and_afterwards_all() {
    let mut server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let mut publisher = a.publisher("main").await;
    let (mut here, mut there) = (a.subscriber("main", None).await, b.subscriber("main", None).await);
    until("the stream is followed", async || server.live_subjects().await.len() == 4).await;
    publisher.publish(packed(0)).await.unwrap();
    for listener in [&mut here, &mut there] {
        assert_eq!(within(listener.next()).await.unwrap().unwrap(), packed(0));
    }
    server.kill();
    until("the loss is noticed", async || metric(http(&a), "nats_connected").await == 0.0).await;
    publisher.publish(packed(1)).await.unwrap();
    assert_eq!(within(here.next()).await.unwrap().unwrap(), packed(1));
    assert_eq!(metric(http(&a), "nats_dropped_total").await, 1.0);
    // A stream that begins meanwhile is served here, too.
    let mut second = a.publisher("second").await;
    let mut listener = a.subscriber("second", None).await;
    second.publish(packed(0)).await.unwrap();
    assert_eq!(within(listener.next()).await.unwrap().unwrap(), packed(0));

    server.restart().await;
    connected(&a).await;
    connected(&b).await;
    until("the stream is followed again", async || server.live_subjects().await.len() == 4).await;
    publisher.publish(packed(2)).await.unwrap();
    assert_eq!(within(there.next()).await.unwrap().unwrap(), packed(2));
    assert!(metric(http(&a), "nats_connects_total").await >= 2.0);
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}
