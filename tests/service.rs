//! The daemon over real TCP, with the fake model.
#![cfg(feature = "full")]

mod common;

use std::time::{Duration, Instant};

use common::{Daemon, HTTP, bundle, drain, hello, tokens, tone, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use undertone::codec;
use undertone::dsp::{PcmReader, PcmWriter};
use undertone::fake;
use undertone::jitter::Pace;
use undertone::service::{Client, ClientError, ClientOptions};
use undertone::session::{Continuation, Hello, Message, PackedBundle, Reason, Role, Wire};
use undertone::units::{PcmFormat, StageCount};

#[tokio::test(flavor = "multi_thread")]
async fn codes_arrive_as_published_and_rates_are_lowered_by_dropping_stages() {
    let daemon = Daemon::start("").await;
    let (all, few) = (daemon.subscriber("a", None).await, daemon.subscriber("a", Some(2)).await);
    let mut publisher = daemon.publisher("a").await;
    for n in 0..8 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let (all, few) = (drain(all).await, drain(few).await);
    assert_eq!(all.len(), 8);
    let two = StageCount::new(2).unwrap();
    for (n, (a, f)) in (0..).zip(all.iter().zip(&few)) {
        assert_eq!(a.unpack().unwrap(), bundle(n));
        assert_eq!(f.unpack().unwrap(), bundle(n).truncated(two));
    }
    assert_eq!(few.len(), 8);
    assert_eq!(daemon.stop().await.bundles, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_samples_come_back_as_the_codec_alone_would_give_them() {
    let daemon = Daemon::start_with(HTTP, "kbps = 3\ngraded = false\neffort = \"off\"").await;
    let codes = daemon.subscriber("main", None).await;
    let mut player = TcpStream::connect(daemon.pcm_out).await.unwrap();
    daemon.until("\"listeners\":2").await;
    let sent = tone(0.73);
    let mut source = TcpStream::connect(daemon.pcm).await.unwrap();
    source.write_all(&sent).await.unwrap();
    source.shutdown().await.unwrap();
    let mut played = Vec::new();
    within(player.read_to_end(&mut played)).await.unwrap();

    let mut processor = fake::processor(16, 7);
    let mut pcm = Vec::new();
    PcmReader::new(PcmFormat::CODEC).push(&sent, &mut pcm);
    let wanted = codec::encode_all(&mut processor, &pcm, StageCount::new(6).unwrap(), 5).unwrap();
    let got: Vec<_> = drain(codes).await.iter().map(|b| b.unpack().unwrap()).collect();
    assert_eq!(got, wanted);
    let decoded = codec::decode_all(&mut processor, &wanted).unwrap();
    let mut bytes = Vec::new();
    PcmWriter::new(PcmFormat::CODEC).push(&decoded[240..], &mut bytes);
    assert_eq!(played, bytes);
    assert!(played.len() >= sent.len());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn padded_messages_have_one_size_and_carry_as_many_stages_as_fit() {
    let daemon = Daemon::start("").await;
    for model in [None, Some(tokens())] {
        let options = ClientOptions { tokens: model, ..ClientOptions::default() };
        let address = daemon.codes.to_string();
        let hello = hello(Role::Publish, "a", Some(6));
        let mut publisher = Client::connect_with(&address, hello, &options).await.unwrap();
        let mut listener = daemon.subscriber("a", None).await;
        for (n, size, stages) in [(0, 70, 6..7), (1, 70, 6..7), (2, 41, 3..7), (3, 41, 3..7), (4, 70, 6..7)] {
            let (whole, before) = (PackedBundle::pack(&bundle(n)), publisher.bytes_sent());
            let (sent, length) = publisher.publish_padded(&whole, size).await.unwrap();
            assert_eq!(publisher.bytes_sent() - before, size as u64);
            assert!(stages.contains(&sent.value()) && length <= size, "{sent} stages in {length} bytes");
            assert_eq!(within(listener.next()).await.unwrap(), Some(whole.limited(sent).unwrap()));
        }
        let e = publisher.publish_padded(&PackedBundle::pack(&bundle(5)), 8).await.unwrap_err();
        assert!(matches!(e, ClientError::Small { bytes: 8, frames: 5 }), "{e}");
        within(publisher.finish()).await.unwrap();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_sound_that_comes_late_is_dropped_and_a_recording_is_not() {
    let daemon = Daemon::start("").await;
    for (pace, few) in [(Pace::Live, true), (Pace::Recording, false), (Pace::Unknown, false)] {
        let hello = Hello { pace, ..hello(Role::Publish, "a", Some(6)) };
        let mut publisher = Client::connect(&daemon.codes.to_string(), hello).await.unwrap();
        let mut listener = daemon.subscriber("a", None).await;
        let start = Instant::now();
        // Three seconds at once: what a stall leaves behind, or a file.
        for n in 0..30 {
            publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
        }
        let mut got = Vec::new();
        while got.last() != Some(&145) {
            got.push(within(listener.next()).await.unwrap().unwrap().first_frame);
        }
        if few {
            assert!(got.len() <= 15 && start.elapsed() < Duration::from_millis(1_500), "{got:?} {:?}", start.elapsed());
        } else {
            assert_eq!(got, (0..30).map(|n| 5 * n).collect::<Vec<_>>(), "{pace:?}");
            assert!(start.elapsed() >= Duration::from_secs(2), "a recording is passed on in real time");
        }
        within(publisher.finish()).await.unwrap();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn frame_numbers_that_jump_do_not_become_seconds_of_sound() {
    let daemon = Daemon::start(HTTP).await;
    let mut player = TcpStream::connect(daemon.pcm_out).await.unwrap();
    daemon.until("\"listeners\":1").await;
    let mut publisher = daemon.publisher("main").await;
    // Ten bundles of 100 ms, each behind a gap of 4.9 s.
    for n in 0..10 {
        publisher.publish(PackedBundle::pack(&bundle(50 * n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let mut played = Vec::new();
    within(player.read_to_end(&mut played)).await.unwrap();
    let seconds = played.len() as f64 / 48_000.0;
    assert!((0.9..2.5).contains(&seconds), "{seconds} s of sound");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_joiners_start_at_the_next_bundle() {
    let daemon = Daemon::start("").await;
    let early = daemon.subscriber("a", None).await;
    let mut publisher = daemon.publisher("a").await;
    for n in 0..3 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    let mut first = early;
    for _ in 0..3 {
        within(first.next()).await.unwrap().unwrap();
    }
    let late = daemon.subscriber("a", None).await;
    publisher.publish(PackedBundle::pack(&bundle(3))).await.unwrap();
    within(publisher.finish()).await.unwrap();
    let got = drain(late).await;
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].first_frame, 15);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_has_one_publisher_and_its_name_is_free_again_after_it() {
    let daemon = Daemon::start("").await;
    let publisher = daemon.publisher("a").await;
    let second = Client::connect(&daemon.codes.to_string(), hello(Role::Publish, "a", Some(6))).await;
    let Ok(mut second) = second else {
        let e = second.unwrap_err();
        assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::Busy && c.text.contains('a')), "{e}");
        within(publisher.finish()).await.unwrap();
        let again = daemon.publisher("a").await;
        within(again.finish()).await.unwrap();
        assert_eq!(daemon.stop().await.refused, 1);
        return;
    };
    let _ = second.next().await;
    panic!("two publishers of one stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_flushes_encoders_and_loses_no_accepted_sample() {
    let daemon = Daemon::start(HTTP).await;
    let codes = daemon.subscriber("main", None).await;
    let mut source = TcpStream::connect(daemon.pcm).await.unwrap();
    source.write_all(&tone(0.25)).await.unwrap();
    // Two whole bundles and a half: the half must come out when the daemon stops.
    daemon.until("\"bundles\":2").await;
    let reading = tokio::spawn(drain(codes));
    let summary = daemon.stop().await;
    let frames: u64 = reading.await.unwrap().iter().map(|b| u64::from(b.frames)).sum();
    assert_eq!(frames, (6_000u64 + 240).div_ceil(480));
    assert_eq!(summary.bundles, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_the_middle_loses_nothing_that_was_sent() {
    let daemon = Daemon::start("").await;
    let codes = daemon.subscriber("main", None).await;
    {
        let mut source = TcpStream::connect(daemon.pcm).await.unwrap();
        source.write_all(&tone(0.25)).await.unwrap();
        source.flush().await.unwrap();
        // Dropped without a word.
    }
    let frames: u64 = drain(codes).await.iter().map(|b| u64::from(b.frames)).sum();
    assert_eq!(frames, (6_000u64 + 240).div_ceil(480));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_refuses_at_once() {
    let daemon = Daemon::start("[limits]\nmax_connections = 1").await;
    let publisher = daemon.publisher("a").await;
    let second = within(Client::connect(&daemon.codes.to_string(), hello(Role::Subscribe, "a", None))).await;
    assert!(second.is_err());
    within(publisher.finish()).await.unwrap();
    assert_eq!(daemon.stop().await.refused, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coded_sessions_carry_the_same_codes_and_others_fall_back_to_packed() {
    let daemon = Daemon::start("[limits]\ncoded_sessions = 2").await;
    let address = daemon.codes.to_string();
    let connect = async |role, tokens| {
        let options = ClientOptions { tokens: Some(tokens), ..ClientOptions::default() };
        Client::connect_with(&address, hello(role, "main", Some(6)), &options).await
    };
    let mut publisher = connect(Role::Publish, tokens()).await.unwrap();
    let mut coded = connect(Role::Subscribe, tokens()).await.unwrap();
    let mut plain = daemon.subscriber("main", Some(2)).await;
    // Another model of the same size, and one session too many.
    let other = undertone::token::fake::model(&undertone::fake::codebooks(16, 7), 2);
    let mut differs = connect(Role::Subscribe, other).await.unwrap();
    let mut late = connect(Role::Subscribe, tokens()).await.unwrap();
    let agreed = [&publisher, &coded, &plain, &differs, &late].map(Client::is_coded);
    assert_eq!(agreed, [true, true, false, false, false]);
    for i in 0..8 {
        publisher.publish(PackedBundle::pack(&bundle(i))).await.unwrap();
    }
    publisher.finish().await.unwrap();
    for i in 0..8 {
        let sent = PackedBundle::pack(&bundle(i));
        for client in [&mut coded, &mut differs, &mut late] {
            assert_eq!(client.next().await.unwrap().as_ref(), Some(&sent));
        }
        assert_eq!(plain.next().await.unwrap().unwrap(), sent.limited(StageCount::new(2).unwrap()).unwrap());
    }
    assert!(coded.next().await.unwrap().is_none());
    let summary = daemon.stop().await;
    assert_eq!((summary.fallbacks, summary.hostile), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_thin_between_peers_that_know_it_and_the_same_for_all_others() {
    const BUNDLES: u64 = 12;
    let daemon = Daemon::start("").await;
    let connect = async |role, model: Option<_>, wire| {
        let options = ClientOptions { tokens: model, wire, ..ClientOptions::default() };
        Client::connect_with(&daemon.codes.to_string(), hello(role, "a", Some(6)), &options).await.unwrap()
    };
    for coded in [false, true] {
        let model = || coded.then(tokens);
        // Publishers of both kinds, of the same codes.
        for wire in [Wire::ALL, Wire::default()] {
            let mut old = connect(Role::Subscribe, model(), Wire::default()).await;
            let mut new = connect(Role::Subscribe, model(), Wire::ALL).await;
            assert_eq!((old.wire(), new.wire()), (Wire::default(), Wire::ALL));
            let mut publisher = connect(Role::Publish, model(), wire).await;
            let before = (old.bytes_received(), new.bytes_received());
            let mut sent = 0;
            for n in 0..BUNDLES {
                let bundle = PackedBundle::pack(&bundle(n));
                sent += bundle.payload.len() as u64;
                publisher.publish(bundle).await.unwrap();
            }
            for n in 0..BUNDLES {
                for client in [&mut old, &mut new] {
                    let got = within(client.next()).await.unwrap();
                    assert_eq!(got, Some(PackedBundle::pack(&bundle(n))));
                }
            }
            let (old, new) = (old.bytes_received() - before.0, new.bytes_received() - before.1);
            assert!(old >= new + BUNDLES * 10, "{old} {new}");
            if !coded {
                assert!(new <= sent + BUNDLES * 2 + 4, "{new} bytes for {sent} of codes");
            }
            publisher.finish().await.unwrap();
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coded_bundle_that_makes_no_sense_closes_only_its_own_session() {
    let daemon = Daemon::start("").await;
    let (mut honest, mut liar) = (daemon.publisher("good").await, daemon.publisher("bad").await);
    let mut listener = daemon.subscriber("good", None).await;
    // `bad` never agreed on a token model.
    let stages = StageCount::new(6).unwrap();
    let coded = undertone::bitstream::CodedBundle {
        first_frame: 0,
        frames: 5,
        stages,
        graded: false,
        restart: true,
        packed: false,
        payload: vec![1; 20],
    };
    liar.send_raw(&Message::Coded { sequence: 0, bundle: coded, checked: true }).await.unwrap();
    let closed = loop {
        match liar.next().await {
            Ok(Some(_)) => {}
            other => break other.unwrap_err().to_string(),
        }
    };
    assert!(closed.contains("no token model was agreed on"), "{closed}");
    honest.publish(PackedBundle::pack(&bundle(0))).await.unwrap();
    assert!(listener.next().await.unwrap().is_some());
    drop(honest);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_for_those_who_asked_and_the_same_for_the_same_seed() {
    let daemon = Daemon::start("").await;
    let address = daemon.codes.to_string();
    let wish = |seed| Some(Continuation { frames: 12, temperature_percent: 80, seed });
    let connect = async |seed| {
        let hello = Hello { continuation: wish(seed), ..hello(Role::Subscribe, "main", Some(3)) };
        Client::connect(&address, hello).await.unwrap()
    };
    let mut publisher = daemon.publisher("main").await;
    let (mut one, mut same, mut other) = (connect(1).await, connect(1).await, connect(2).await);
    let mut plain = daemon.subscriber("main", None).await;
    for i in 0..4 {
        publisher.publish(PackedBundle::pack(&bundle(i))).await.unwrap();
    }
    publisher.finish().await.unwrap();
    let all = async |client: &mut Client| {
        let mut bundles = Vec::new();
        while let Some(b) = client.next().await.unwrap() {
            bundles.push(b);
        }
        bundles
    };
    assert_eq!(all(&mut plain).await.len(), 4);
    let first = all(&mut one).await;
    let shape: Vec<_> = first.iter().map(|b| (b.first_frame, b.frames, b.stages.value())).collect();
    assert_eq!(shape[3..], [(15, 5, 3), (20, 5, 3), (25, 5, 3), (30, 2, 3)]);
    assert_eq!(all(&mut same).await, first);
    let differs = all(&mut other).await;
    assert!(differs[..4] == first[..4] && differs[4..] != first[4..]);
    daemon.stop().await;
}
