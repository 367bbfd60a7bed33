//! Several daemons around a real nats-server.
#![cfg(feature = "full")]

mod common;
#[path = "common/nats.rs"]
mod nats;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use common::{Daemon, FAKE_ID, bundle, drain, hello, within};
use nats::{NatsServer, metric, until};
use tokio::sync::watch;
use undertone::batch::{Coder, WorkerOptions, work};
use undertone::bitstream::{ContainerWriter, StreamHeader};
use undertone::bus::jobs::{Job, JobRecord, Jobs, Progress, Wanted};
use undertone::bus::layers::{Assembler, Epoch, Kind, LAYERS, LayerMessage, split};
use undertone::bus::{Bus, BusOptions, Prefix};
use undertone::codec;
use undertone::dsp::PcmReader;
use undertone::fake;
use undertone::service::{Client, ClientError};
use undertone::session::{Hello, PackedBundle, Reason, Role, StreamName};
use undertone::units::{MessageRate, PcmFormat, StageCount};

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
#[ignore = "needs nats-server: make test-system"]
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
#[ignore = "needs nats-server: make test-system"]
async fn a_stream_of_one_size_is_of_one_size_between_daemons_and_beyond() {
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let client = async_nats::connect(server.url()).await.unwrap();
    let mut seen = client.subscribe("test.v1.live.talk.>").await.unwrap();
    client.flush().await.unwrap();
    let mut listener = b.subscriber("talk", None).await;
    let rate = MessageRate::new(3_000).unwrap();
    let hello = Hello { constant: Some(rate), ..common::hello(Role::Publish, "talk", Some(6)) };
    let mut publisher = Client::connect(&a.codes.to_string(), hello).await.unwrap();
    let (mut lengths, mut before) = (Vec::new(), listener.bytes_received());
    for n in 0..12 {
        let stages = StageCount::new([6, 1, 3][n as usize % 3]).unwrap();
        publisher.publish_padded(&packed(n).limited(stages).unwrap(), rate.bytes(5)).await.unwrap();
        // Who listens elsewhere gets messages of one size, with what was sent in them.
        let got = within(listener.next()).await.unwrap().unwrap();
        assert_eq!(got, packed(n).limited(got.stages).unwrap());
        lengths.push(listener.bytes_received() - before);
        before = listener.bytes_received();
    }
    assert!(lengths[1..].iter().all(|&l| l == lengths[1]) && lengths[1] < 60, "{lengths:?}");
    within(publisher.finish()).await.unwrap();
    let mut sizes: HashMap<String, Vec<usize>> = HashMap::new();
    // Three layers of twelve bundles, and the last word.
    for _ in 0..37 {
        let message = within(futures_util::StreamExt::next(&mut seen)).await.unwrap();
        sizes.entry(message.subject.to_string()).or_default().push(message.payload.len());
    }
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    for sizes in sizes.values() {
        assert!(sizes.len() >= 12 && sizes[..12].iter().all(|&s| s == sizes[0]), "{sizes:?}");
    }
    client.drain().await.unwrap();
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn a_listener_changes_its_mind_and_the_layers_follow() {
    use undertone::session::{Control, Message};
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let mut listener = b.subscriber("main", Some(1)).await;
    until("one layer is subscribed", async || server.live_subjects().await.len() == 1).await;
    let stages = Some(StageCount::new(5).unwrap());
    listener.send_raw(&Message::Control(Control { stages, ..Control::default() })).await.unwrap();
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
#[ignore = "needs nats-server: make test-system"]
async fn of_two_publishers_of_a_name_the_earlier_is_right_wherever_they_are() {
    let server = NatsServer::start().await;
    let [a, b, c] = three(&server).await;
    let mut publisher = a.publisher("main").await;
    assert_eq!(refused(&b, "main").await, Some(Reason::Busy));
    assert_eq!(refused(&b, "other").await, None);
    let mut listener = c.subscriber("main", None).await;
    until("the stream is followed", async || server.live_subjects().await.len() == 4).await;
    publisher.publish(packed(1_000)).await.unwrap();
    assert_eq!(within(listener.next()).await.unwrap().unwrap(), packed(1_000));

    // An earlier publisher, that could not be heard until now.
    let other = async_nats::connect(server.url()).await.unwrap();
    let epoch = Epoch { started: 1, id: 1 };
    let claim = LayerMessage::word(Kind::Claim, epoch, FAKE_ID, 0);
    other.publish("test.v1.claim.main", claim.encode().into()).await.unwrap();
    let closed = within(async {
        for n in 1_001.. {
            if let Err(e) = publisher.publish(packed(n)).await {
                return e;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!();
    });
    let closed = match closed.await {
        ClientError::Closed(close) => close,
        _ => match publisher.next().await {
            Err(ClientError::Closed(close)) => close,
            other => panic!("{other:?}"),
        },
    };
    assert_eq!(closed.reason, Reason::Busy, "{closed}");
    // Who listens elsewhere is not cut off, and hears the other one: small frame numbers become the next ones.
    let sending = tokio::spawn(async move {
        for n in 0.. {
            for m in split(&packed(n), epoch, FAKE_ID, n).unwrap() {
                other.publish(format!("test.v1.live.main.{}", m.layer), m.encode().into()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let (mut next, mut before) = (5_005, None);
    loop {
        let got = within(listener.next()).await.unwrap().unwrap();
        assert!(got.first_frame >= next, "{} after {next}", got.first_frame);
        next = got.first_frame + u64::from(got.frames);
        // The payloads of these bundles differ from those of the first publisher.
        let of_the_other = (0..200).find(|&n| packed(n).payload == got.payload);
        if of_the_other.is_some() && before.map(|b| b + 1) == of_the_other {
            break;
        }
        before = of_the_other;
    }
    sending.abort();
    for daemon in [a, b, c] {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
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
#[ignore = "needs nats-server: make test-system"]
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn what_a_stream_carried_is_kept_and_read_back() {
    let server = NatsServer::start().await;
    let daemon = Daemon::start(&format!("{}replay_s = 60\nreplay_bytes = 1048576\n", server.config())).await;
    connected(&daemon).await;
    let bus = Bus::connect(&bus_options(&server)).await.unwrap();
    let (name, before) = (StreamName::new("radio.news").unwrap(), SystemTime::now());
    until("streams are kept", async || bus.replay(&name, before).await.is_ok()).await;
    let mut publisher = daemon.publisher("radio.news").await;
    let mut other = daemon.publisher("other").await;
    for n in 0..10 {
        publisher.publish(packed(n)).await.unwrap();
        other.publish(packed(n)).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    // Two layers a bundle, and the end.
    until("all is kept", async || bus.replay(&name, before).await.unwrap().left() == 21).await;
    let mut replay = bus.replay(&name, before).await.unwrap();
    let mut assembler = Assembler::new(LAYERS, 256);
    let mut got = Vec::new();
    while let Some(message) = within(replay.next()).await.unwrap() {
        assembler.push(&message.unwrap()).unwrap();
        got.extend(assembler.pop(false).unwrap());
    }
    assert_eq!(got, (0..10).map(packed).collect::<Vec<_>>());
    assert_eq!(bus.replay(&name, SystemTime::now()).await.unwrap().left(), 0);
    drop(other);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn bundles_lost_in_an_outage_are_counted_and_a_store_that_was_lost_is_made_again() {
    let mut server = NatsServer::start().await;
    let config = format!("{}replay_s = 60\nreplay_bytes = 1048576\n", server.config());
    let (a, b) = (Daemon::start(&config).await, Daemon::start(&server.config()).await);
    for daemon in [&a, &b] {
        connected(daemon).await;
    }
    let mut there = b.subscriber("radio.news", None).await;
    until("the stream is followed", async || server.live_subjects().await.len() == 4).await;
    let mut publisher = a.publisher("radio.news").await;
    publisher.publish(packed(0)).await.unwrap();
    assert_eq!(within(there.next()).await.unwrap().unwrap(), packed(0));
    server.kill();
    until("the daemon knows", async || metric(http(&a), "nats_connected").await == 0.0).await;
    for n in 1..6 {
        publisher.publish(packed(n)).await.unwrap();
    }
    until("all are dropped", async || metric(http(&a), "nats_dropped_total").await == 5.0).await;
    server.restart_empty().await;
    for daemon in [&a, &b] {
        connected(daemon).await;
    }
    until("the stream is followed again", async || server.live_subjects().await.len() == 4).await;
    let bus = Bus::connect(&bus_options(&server)).await.unwrap();
    let name = StreamName::new("radio.news").unwrap();
    until("streams are kept again", async || bus.replay(&name, SystemTime::UNIX_EPOCH).await.is_ok()).await;
    publisher.publish(packed(6)).await.unwrap();
    assert_eq!(within(there.next()).await.unwrap().unwrap(), packed(6));
    assert_eq!(metric(http(&b), "nats_lost_total").await, 5.0);
    until("it is kept", async || bus.replay(&name, SystemTime::UNIX_EPOCH).await.unwrap().left() == 2).await;
    for daemon in [a, b] {
        daemon.stop().await;
    }
}

fn bus_options(server: &NatsServer) -> BusOptions {
    BusOptions { url: server.url(), credentials: None, ca: None, prefix: Prefix::new("test").unwrap() }
}

fn wav(seconds: u32, pitch: u32) -> Vec<u8> {
    let samples = 24_000 * seconds;
    let mut out = nats::wav_head(samples);
    let sample = |n: u32| ((f64::from(n * pitch) * 0.01).sin() * 6_000.0) as i16;
    out.extend((0..samples).flat_map(|n| sample(n).to_le_bytes()));
    out
}

fn options(root: &Path, attempts: u64) -> WorkerOptions {
    WorkerOptions { root: root.to_owned(), attempts, drain: true, patience: Duration::from_secs(60) }
}

async fn queue(server: &NatsServer) -> Jobs {
    let bus = Bus::connect(&bus_options(server)).await.unwrap();
    bus.jobs().await.unwrap()
}

fn coder() -> Coder {
    Coder::new(fake::processor(16, 7), Some(common::tokens()), Box::new(|_| Ok(None)))
}

fn job(name: &str, coded: bool) -> Job {
    Job::new(format!("in/{name}.wav"), format!("out/{name}.utn"), Wanted::Stages(4), coded)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn every_job_ends_done_or_dead_and_a_second_time_nothing_is_encoded_again() {
    let server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("in")).unwrap();
    let mut jobs = Vec::new();
    for n in 0..12 {
        fs::write(root.join(format!("in/{n}.wav")), wav(1, n + 1)).unwrap();
        jobs.push(job(&n.to_string(), n % 2 == 0));
    }
    // No recording, one that is not there, and one outside: the second is tried twice.
    fs::write(root.join("in/bad.wav"), "no sound").unwrap();
    jobs.push(job("bad", false));
    jobs.push(job("missing", false));
    jobs.push(Job::new("../x.wav".to_owned(), "x.utn".to_owned(), Wanted::Stages(4), false));
    let queue = queue(&server).await;
    queue.submit("one", &jobs).await.unwrap();
    // Again: they are known.
    queue.submit("one", &jobs).await.unwrap();
    assert_eq!(queue.status().await.unwrap().batches["one"], Progress { open: 15, done: 0, dead: 0 });

    let (_stop, stopped) = watch::channel(false);
    let (one, two) = (options(root, 2), options(root, 2));
    let (a, b) =
        tokio::join!(work(&queue, coder(), &one, stopped.clone()), work(&queue, coder(), &two, stopped.clone()));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.encoded + b.encoded, a.skipped + b.skipped, a.dead + b.dead), (12, 0, 3), "{a:?} {b:?}");
    assert_eq!(a.retried + b.retried, 1);
    let status = queue.status().await.unwrap();
    assert_eq!(status.batches["one"], Progress { open: 0, done: 12, dead: 3 });
    assert_eq!(status.running, 0);
    let dead = queue.dead("one", 10).await.unwrap();
    let why = |input: &str| dead.iter().find(|r| r.input.contains(input)).unwrap().error.clone().unwrap();
    assert!(why("missing").contains("missing.wav"), "{}", why("missing"));
    assert!(why("../x").contains("not a path below"), "{}", why("../x"));
    assert!(why("bad").contains("understood are"), "{}", why("bad"));

    // What was written is what the codec alone would write.
    let mut processor = fake::processor(16, 7);
    let mut pcm = Vec::new();
    PcmReader::new(PcmFormat::CODEC).push(&wav(1, 2)[44..], &mut pcm);
    let wanted = codec::encode_all(&mut processor, &pcm, StageCount::new(4).unwrap(), 25).unwrap();
    let mut bytes = Vec::new();
    let header = StreamHeader::packed(&fake::profile(16), StageCount::new(4).unwrap(), 25);
    let mut writer = ContainerWriter::new(header, &mut bytes);
    wanted.iter().for_each(|b| writer.write(b, &mut bytes).unwrap());
    writer.finish(Some(24_000), &mut bytes);
    assert!(fs::read(root.join("out/1.utn")).unwrap() == bytes);

    // The same again, one of them damaged.
    fs::write(root.join("out/1.utn"), "damaged").unwrap();
    queue.submit("two", &jobs[..12]).await.unwrap();
    let tally = work(&queue, coder(), &options(root, 2), stopped).await.unwrap();
    assert_eq!((tally.encoded, tally.skipped), (1, 11));
    assert!(fs::read(root.join("out/1.utn")).unwrap() == bytes);
    let parts = fs::read_dir(root.join("out")).unwrap().flatten();
    assert_eq!(parts.filter(|e| e.file_name().to_string_lossy().ends_with(".part")).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn jobs_outlive_the_server_and_a_worker_that_vanishes() {
    let mut server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/a.wav"), wav(1, 1)).unwrap();
    let queue = queue(&server).await;
    queue.submit("one", &[job("a", false)]).await.unwrap();
    server.kill();
    server.restart().await;
    let taken = async || loop {
        if let Ok(Some(taken)) = queue.next(Duration::from_secs(5)).await {
            break taken;
        }
    };
    let first = within(taken()).await;
    assert_eq!(first.job.as_ref().unwrap(), &job("a", false));
    // Given back as a worker does that is told to stop.
    first.retry(Duration::ZERO).await.unwrap();
    let second = within(taken()).await;
    assert_eq!(second.attempts, 2);
    second.progress().await.unwrap();
    second.retry(Duration::ZERO).await.unwrap();
    let (_stop, stopped) = watch::channel(false);
    let tally = work(&queue, coder(), &options(dir.path(), 5), stopped).await.unwrap();
    assert_eq!(tally.encoded, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn a_worker_makes_the_queue_again_that_nats_has_lost() {
    let mut server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let queue = queue(&server).await;
    server.kill();
    server.restart_empty().await;
    let (_stop, stopped) = watch::channel(false);
    // It has nothing to do, and ends only because it finds an empty queue.
    let tally = within(work(&queue, coder(), &options(dir.path(), 5), stopped)).await.unwrap();
    assert_eq!(tally.encoded, 0);
    queue.submit("night", &[job("a", false)]).await.unwrap();
}

/// Time in which the server writes down what was acknowledged.
const WRITTEN: Duration = Duration::from_millis(2_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn a_worker_that_drains_ends_though_the_killed_server_still_counts_what_was_acknowledged() {
    let mut server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d", "e"];
    fs::create_dir(dir.path().join("in")).unwrap();
    names.iter().for_each(|n| fs::write(dir.path().join(format!("in/{n}.wav")), wav(1, 1)).unwrap());
    let jobs = queue(&server).await;
    jobs.submit("one", &names.map(|n| job(n, false))).await.unwrap();
    for _ in 0..3 {
        let taken = within(jobs.next(Duration::from_secs(5))).await.unwrap().expect("a job");
        let input = taken.job.as_ref().unwrap().input.clone();
        let record = JobRecord { input, bytes: 1, skipped: false, attempts: 1, error: None };
        taken.finish(&record).await.unwrap();
    }
    tokio::time::sleep(WRITTEN).await;
    server.kill();
    server.restart().await;
    let open = async || jobs.status().await.map_or(0, |s| s.batches.get("one").map_or(0, |b| b.open));
    // If another server than the one of Debian 12 forgets nothing, this test has nothing to say.
    until("the server is back", async || open().await > 0).await;
    assert_eq!(open().await, 5, "the server counts three that are done");
    let (_stop, stopped) = watch::channel(false);
    let tally = within(work(&jobs, coder(), &options(dir.path(), 5), stopped)).await.unwrap();
    assert_eq!(tally.encoded, 2);
    assert!(open().await > 0, "the server still counts what nobody will be given");
    // Whoever opens the queue next clears that away, and nothing else.
    jobs.submit("two", &[job("a", false)]).await.unwrap();
    let status = queue(&server).await.status().await.unwrap();
    assert_eq!(status.batches["one"], Progress { open: 0, done: 5, dead: 0 });
    assert_eq!(status.batches["two"], Progress { open: 1, done: 0, dead: 0 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn jobs_reach_the_workers_though_the_server_lost_the_queue_and_kept_how_far_they_were() {
    let mut server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("in")).unwrap();
    fs::write(dir.path().join("in/a.wav"), wav(1, 1)).unwrap();
    let jobs = queue(&server).await;
    let empty = server.stored("test-jobs", "msgs");
    jobs.submit("one", &["x", "y", "z"].map(|n| job(n, false))).await.unwrap();
    let (_stop, stopped) = watch::channel(false);
    let tally = within(work(&jobs, coder(), &options(dir.path(), 1), stopped.clone())).await.unwrap();
    assert_eq!(tally.dead, 3, "there are no such recordings");
    tokio::time::sleep(WRITTEN).await;
    server.kill();
    server.stored("test-jobs", "msgs").iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    empty.iter().for_each(|(path, content)| fs::write(path, content).unwrap());
    server.restart().await;
    until("the server is back", async || jobs.status().await.is_ok()).await;
    jobs.submit("two", &[job("a", false)]).await.unwrap();
    let tally = within(work(&jobs, coder(), &options(dir.path(), 1), stopped)).await.unwrap();
    assert_eq!(tally.encoded, 1);
}

/// Set at the end of the test: a runtime waits for its threads.
static LET_GO: AtomicBool = AtomicBool::new(false);

/// A coder whose search panics at one step and hangs at two.
fn faulty() -> Coder {
    let fault = |steps: u32| match steps {
        0 => Ok(None),
        1 => panic!("a fault of the program"),
        _ => {
            while !LET_GO.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err("let go".to_owned())
        }
    };
    Coder::new(fake::processor(16, 7), Some(common::tokens()), Box::new(fault))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server: make test-system"]
async fn a_job_that_panics_or_hangs_or_kills_is_given_up_with_its_reason_and_the_others_are_done() {
    let server = NatsServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("in")).unwrap();
    let queue = queue(&server).await;
    let with = |name: &str, steps| {
        fs::write(root.join(format!("in/{name}.wav")), wav(1, 1)).unwrap();
        let mut job = job(name, false);
        job.refine = Some(steps);
        job
    };
    // Every worker that had this one never came back.
    queue.submit("one", &[with("kills", 0)]).await.unwrap();
    for attempt in 1..=2 {
        let taken = within(queue.next(Duration::from_secs(5))).await.unwrap().expect("a job");
        assert_eq!(taken.attempts, attempt);
        taken.retry(Duration::ZERO).await.unwrap();
    }
    let long = Job::new(format!("in/{}.wav", "x".repeat(7_000)), "out/x.utn".to_owned(), Wanted::Stages(4), false);
    queue.submit("two", &[with("panics", 1), with("hangs", 2), long, with("good", 0)]).await.unwrap();
    let options = WorkerOptions { patience: Duration::from_secs(3), ..options(root, 2) };
    let (_stop, stopped) = watch::channel(false);
    let coder = faulty().renewed_by(Arc::new(|| Ok(faulty())));
    let tally = tokio::time::timeout(Duration::from_secs(120), work(&queue, coder, &options, stopped)).await;
    LET_GO.store(true, Ordering::Relaxed);
    let tally = tally.expect("an end in time").unwrap();
    assert_eq!((tally.encoded, tally.dead, queue.open().await.unwrap()), (1, 4, 0), "{tally:?}");
    let dead = [queue.dead("one", 9).await.unwrap(), queue.dead("two", 9).await.unwrap()].concat();
    for (input, reason) in [
        ("kills", "handed out 2 times"),
        ("panics", "a fault of the program"),
        ("hangs", "did not come further"),
        ("xxx", "too long"),
    ] {
        let record = dead.iter().find(|r| r.input.contains(input)).unwrap();
        assert!(record.error.as_ref().unwrap().contains(reason), "{record:?}");
        assert!(record.input.len() <= 1_000, "a result fits into a message");
    }
}
