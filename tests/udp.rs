//! The daemon over UDP behind a bad network, with the fake model.
#![cfg(feature = "full")]

mod common;
#[path = "common/impair.rs"]
mod impair;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{Daemon, bundle, drain, hello, within};
use impair::{Impairment, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use undertone::bitstream::Bundle;
use undertone::referee::LossModel;
use undertone::service::{Client, ClientError, ClientOptions, UdpClient, UdpEvent};
use undertone::session::{Close, Control, Hello, Message, PackedBundle, Reason, Role, Wire};
use undertone::units::StageCount;
use undertone::wire::{COOKIE_LEN, Datagram, MAX_DATAGRAM};

const UDP: &str = "[udp]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n";
const PATIENCE: Duration = Duration::from_secs(20);
const FOREVER: Duration = Duration::MAX;

fn udp(daemon: &Daemon) -> SocketAddr {
    *daemon.addresses.last().unwrap()
}

async fn connect(address: SocketAddr, role: Role, stream: &str) -> UdpClient {
    within(UdpClient::connect(&address.to_string(), hello(role, stream, Some(6)), PATIENCE)).await.unwrap()
}

/// Everything a listener hears: bundles, and frames lost.
async fn listen(mut client: UdpClient) -> (Vec<Bundle>, u64, UdpClient) {
    let (mut bundles, mut lost) = (Vec::new(), 0);
    while let Some(event) = within(client.next()).await.unwrap() {
        match event {
            UdpEvent::Bundle(b) => bundles.push(b.unpack().unwrap()),
            UdpEvent::Lost(n) => lost += n,
            UdpEvent::Restart => panic!("no restart here"),
        }
    }
    (bundles, lost, client)
}

/// A relay between one client and the daemon that treats datagrams to the client (or to the daemon) badly.
struct Proxy {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Bad until `until` of the stream's own time, which a busy machine does not stretch.
    async fn start(server: SocketAddr, how: Impairment, to_client: bool, until: Duration) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        back.connect(server).await.unwrap();
        let address = front.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut network, mut client) = (Network::new(how), None);
            let (mut up, mut down) = ([0; 2048], [0; 2048]);
            loop {
                let (bytes, towards_client) = tokio::select! {
                    received = front.recv_from(&mut up) => {
                        let Ok((n, from)) = received else { continue };
                        client = Some(from);
                        (up[..n].to_vec(), false)
                    }
                    received = back.recv(&mut down) => {
                        let Ok(n) = received else { continue };
                        (down[..n].to_vec(), true)
                    }
                };
                // Only bundles suffer; the rest is repeated until it is answered, and would make the test slow.
                let ways = match Datagram::decode(&bytes).ok().and_then(|d| d.content) {
                    Some(Message::Bundle { bundle, .. }) if towards_client == to_client => {
                        let at = Duration::from_millis(20) * bundle.first_frame as u32;
                        if at < until { network.send(at) } else { vec![Duration::ZERO] }
                    }
                    _ => vec![Duration::ZERO],
                };
                for way in ways {
                    let (front, back, bytes) = (Arc::clone(&front), Arc::clone(&back), bytes.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(way).await;
                        let _ = match client {
                            Some(client) if towards_client => front.send_to(&bytes, client).await,
                            _ => back.send(&bytes).await,
                        };
                    });
                }
            }
        });
        Self { address, task }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Publishes `n` bundles in real time over TCP.
async fn publish(daemon: &Daemon, stream: &str, n: u64) {
    let mut publisher = daemon.publisher(stream).await;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    for i in 0..n {
        tick.tick().await;
        publisher.publish(PackedBundle::pack(&bundle(i))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    within(socket.read_to_string(&mut text)).await.unwrap();
    text
}

fn metric(page: &str, name: &str) -> u64 {
    let line = page.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Every frame has the codes it was published with (fewer stages are allowed), frames come in order and none twice.
fn assert_true_to(bundles: &[Bundle]) -> u64 {
    let mut next = 0;
    let mut frames = 0;
    for b in bundles {
        for (f, codes) in (b.first_frame..).zip(b.codes.chunks(b.stages.index())) {
            if f < next {
                // The rest of a bundle that was late in part.
                continue;
            }
            next = f + 1;
            frames += 1;
            let sent = bundle(f / 5);
            let at = (f % 5) as usize * sent.stages.index();
            assert_eq!(*codes, sent.codes[at..at + codes.len()], "frame {f}");
        }
    }
    frames
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_network_carries_everything_both_ways() {
    let daemon = Daemon::start(UDP).await;
    let tcp = daemon.subscriber("a", None).await;
    let listener = connect(udp(&daemon), Role::Subscribe, "a").await;
    let mut publisher = connect(udp(&daemon), Role::Publish, "a").await;
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
async fn a_bad_network_loses_what_it_loses_and_nothing_is_out_of_place() {
    let daemon = Daemon::start(UDP).await;
    let how = Impairment {
        loss: LossModel::Gilbert { loss: 0.15, burst: 2.0 },
        duplicates: 0.1,
        reordered: (0.1, Duration::from_millis(150)),
        jitter: Duration::from_millis(40),
        outage: None,
        seed: 3,
    };
    let proxy = Proxy::start(udp(&daemon), how, true, FOREVER).await;
    let good = daemon.subscriber("a", None).await;
    let listener = connect(proxy.address, Role::Subscribe, "a").await;
    let hearing = tokio::spawn(listen(listener));
    publish(&daemon, "a", 100).await;
    let (bundles, lost, mut client) = hearing.await.unwrap();
    let frames = assert_true_to(&bundles);
    let report = client.report();
    assert!(report.lost() > 0 && report.duplicated > 0 && report.reordered > 0, "{report:?}");
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
    assert!(metric(&page, "undertone_udp_packets_lost_total") > 0);
    assert!(metric(&page, "undertone_udp_rebuilt_ms_total") > 0);
    assert!(metric(&page, "undertone_udp_packets_duplicated_total") > 0);
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_falls_while_packets_are_lost_and_comes_back() {
    let daemon = Daemon::start(UDP).await;
    let how = Impairment { loss: LossModel::Gilbert { loss: 0.3, burst: 2.0 }, ..Impairment::default() };
    let proxy = Proxy::start(udp(&daemon), how, true, Duration::from_secs(5)).await;
    let hearing = tokio::spawn(listen(connect(proxy.address, Role::Subscribe, "a").await));
    let watching = {
        let http = daemon.http.unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            (get(http, "/metrics").await, get(http, "/status").await, get(http, "/status.json").await)
        })
    };
    publish(&daemon, "a", 220).await;
    let (bundles, ..) = hearing.await.unwrap();
    // Copies are single frames; what has five frames is as the server sent it.
    let sent: Vec<_> = bundles.iter().filter(|b| b.frames == 5).map(|b| b.stages.value()).collect();
    let lowest = sent.iter().position(|&s| s <= 3).unwrap_or_else(|| panic!("{sent:?}"));
    assert_eq!((sent[0], *sent.last().unwrap()), (6, 6), "{sent:?}");
    // It comes back stage by stage.
    assert!(sent[lowest..].windows(2).all(|w| w[1] <= w[0] + 1), "{sent:?}");
    let (metrics, table, json) = watching.await.unwrap();
    assert!(metrics.contains("undertone_udp_listener_stages{listener=\"0\",stream=\"a\"}"), "{metrics}");
    assert!(table.contains("listener over UDP"), "{table}");
    assert!(json.contains("\"udp_listeners\":[{\"stream\":\"a\",\"stages\":"), "{json}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_seconds_of_outage_are_two_seconds_and_the_stream_goes_on() {
    let daemon = Daemon::start(UDP).await;
    let outage = Some((Duration::from_millis(1_500), Duration::from_secs(2)));
    let how = Impairment { outage, ..Impairment::default() };
    let proxy = Proxy::start(udp(&daemon), how, true, FOREVER).await;
    let hearing = tokio::spawn(listen(connect(proxy.address, Role::Subscribe, "a").await));
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
    let daemon = Daemon::start(UDP).await;
    let how = Impairment {
        loss: LossModel::Uniform { loss: 0.1 },
        duplicates: 0.2,
        reordered: (0.2, Duration::from_millis(130)),
        jitter: Duration::from_millis(20),
        outage: None,
        seed: 5,
    };
    let proxy = Proxy::start(udp(&daemon), how, false, FOREVER).await;
    let listener = tokio::spawn(drain(daemon.subscriber("a", None).await));
    let mut publisher = connect(proxy.address, Role::Publish, "a").await;
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
    let daemon = Daemon::start(UDP).await;
    let victim = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    victim.connect(udp(&daemon)).await.unwrap();
    // The attacker sends in the victim's name, and sees no answer: it can only guess.
    let guess = |fill, session| {
        let content = Some(Message::Hello(hello(Role::Subscribe, "a", None)));
        Datagram { session, cookie: Some([fill; COOKIE_LEN]), content, ..Datagram::default() }.encode()
    };
    let mut sent = 0;
    for n in 0..20 {
        let bytes = guess(n, u64::from(n));
        sent += victim.send(&bytes).await.unwrap();
    }
    let none = Datagram::message(0, Message::Hello(hello(Role::Subscribe, "a", None))).encode();
    victim.send(&none).await.unwrap();
    let publishing = publish(&daemon, "a", 5);
    publishing.await;
    let (mut got, mut buffer) = (0, [0; 2048]);
    while let Ok(n) = victim.try_recv(&mut buffer) {
        got += n;
        let d = Datagram::decode(&buffer[..n]).unwrap();
        assert!(d.cookie.is_some() && d.content.is_none(), "{d:?}");
    }
    assert!(got > 0 && got < sent, "{got} bytes for {sent}");
    let page = get(daemon.http.unwrap(), "/metrics").await;
    assert_eq!(metric(&page, "undertone_udp_unproven_total"), 20);
    assert_eq!(metric(&page, "undertone_udp_ignored_total"), 1);
    assert_eq!(metric(&page, "undertone_listeners"), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_oversize_and_foreign_datagrams_are_counted_and_change_nothing() {
    let daemon = Daemon::start(UDP).await;
    let hearing = tokio::spawn(listen(connect(udp(&daemon), Role::Subscribe, "a").await));
    let attacker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    attacker.connect(udp(&daemon)).await.unwrap();
    let close = Datagram::message(7, Message::Close(Close::new(Reason::Done, "")));
    let evil = [
        vec![],
        vec![0xFF; 40],
        vec![0; MAX_DATAGRAM + 500],
        close.encode(),
        Datagram::message(0, Message::Bundle { sequence: 0, bundle: PackedBundle::pack(&bundle(0)) }).encode(),
        Datagram::message(0, Message::Control(Control { stages: Some(StageCount::MAX), ..Control::default() }))
            .encode(),
    ];
    for bytes in &evil {
        attacker.send(bytes).await.unwrap();
    }
    publish(&daemon, "a", 10).await;
    let (bundles, lost, _) = hearing.await.unwrap();
    assert_eq!((assert_true_to(&bundles), lost), (50, 0));
    let page = get(daemon.http.unwrap(), "/metrics").await;
    assert_eq!(metric(&page, "undertone_udp_ignored_total"), evil.len() as u64);
    assert_eq!(daemon.stop().await.hostile, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why() {
    let token = "[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\nlisten = [\"a\"]\n";
    let daemon = Daemon::start(&format!("{token}{UDP}")).await;
    let address = udp(&daemon).to_string();
    let attempt = async |hello| UdpClient::connect(&address, hello, PATIENCE).await.map(|_| ());
    let with = |stream: &str, secret: &str| Hello { token: secret.to_owned(), ..hello(Role::Subscribe, stream, None) };
    for refused in [with("a", ""), with("a", "0123456789abcdeX"), with("b", "0123456789abcdef")] {
        let e = within(attempt(refused)).await.unwrap_err();
        assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::Denied), "{e}");
    }
    let wrong = Hello { model_id: undertone::units::ModelId([1; 8]), ..with("a", "0123456789abcdef") };
    let e = within(attempt(wrong)).await.unwrap_err();
    assert!(matches!(&e, ClientError::Closed(c) if c.reason == Reason::Model), "{e}");
    within(attempt(with("a", "0123456789abcdef"))).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_of_nonsense_is_closed_and_a_vanished_one_gives_its_name_back() {
    let daemon = Daemon::start(&format!("[limits]\nidle_s = 0.5\n{UDP}")).await;
    let mut liar = connect(udp(&daemon), Role::Publish, "a").await;
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
    drop(connect(udp(&daemon), Role::Publish, "b").await);
    // The name is free again once the idle time is over.
    let again = async {
        while UdpClient::connect(&udp(&daemon).to_string(), hello(Role::Publish, "b", Some(6)), PATIENCE).await.is_err()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    within(again).await;
    let summary = daemon.stop().await;
    assert!(summary.hostile >= 2, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_the_publisher_is_not_taken_for_a_loss() {
    let daemon = Daemon::start(UDP).await;
    let mut listener = connect(udp(&daemon), Role::Subscribe, "a").await;
    let hearing = tokio::spawn(async move {
        let (mut bundles, mut lost) = (Vec::new(), 0);
        while let Some(event) = within(listener.next()).await.unwrap() {
            match event {
                UdpEvent::Bundle(b) => bundles.push(b.unpack().unwrap()),
                UdpEvent::Lost(n) => lost += n,
                UdpEvent::Restart => {}
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

/// What a listener hears: bundles as they came, frames lost, and how often the stream began anew.
async fn heard(mut listener: UdpClient) -> (Vec<PackedBundle>, u64, u32) {
    let (mut bundles, mut lost, mut restarts) = (Vec::new(), 0, 0);
    while let Some(event) = within(listener.next()).await.unwrap() {
        match event {
            UdpEvent::Bundle(b) => bundles.push(b),
            UdpEvent::Lost(n) => lost += n,
            UdpEvent::Restart => restarts += 1,
        }
    }
    (bundles, lost, restarts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_described_over_udp_and_nothing_counts_as_lost() {
    let daemon = Daemon::start(UDP).await;
    let options = ClientOptions { wire: Wire::default(), ..ClientOptions::default() };
    let plain = hello(Role::Subscribe, "a", None);
    let plain = Client::connect_with(&daemon.codes.to_string(), plain, &options).await.unwrap();
    let tcp = tokio::spawn(drain(plain));
    let listening = tokio::spawn(heard(connect(udp(&daemon), Role::Subscribe, "a").await));
    let mut publisher = connect(udp(&daemon), Role::Publish, "a").await;
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
async fn live_sound_that_waited_too_long_is_not_sent_over_udp() {
    let daemon = Daemon::start(UDP).await;
    let listening = tokio::spawn(heard(connect(udp(&daemon), Role::Subscribe, "a").await));
    let mut live = hello(Role::Publish, "a", Some(6));
    live.pace = undertone::jitter::Pace::Live;
    let mut publisher = within(UdpClient::connect(&udp(&daemon).to_string(), live, PATIENCE)).await.unwrap();
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
async fn a_publisher_over_udp_may_pause_and_loses_nothing() {
    let daemon = Daemon::start(UDP).await;
    let listener = tokio::spawn(drain(daemon.subscriber("a", None).await));
    let mut publisher = connect(udp(&daemon), Role::Publish, "a").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_port_a_nat_has_changed_is_told_why_it_hears_nothing() {
    let daemon = Daemon::start(UDP).await;
    let server = udp(&daemon);
    // A NAT that gives the client a new port after its first second.
    let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    let nat = tokio::spawn(async move {
        let mut backs = [UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap()];
        let (mut client, mut up, mut down) = (None, [0; 2048], [0; 2048]);
        loop {
            tokio::select! {
                Ok((n, from)) = front.recv_from(&mut up) => {
                    client = Some(from);
                    // A report is what an open session sends first.
                    if Datagram::decode(&up[..n]).is_ok_and(|d| d.report.is_some()) {
                        backs.swap(0, 1);
                    }
                    backs[0].send_to(&up[..n], server).await.unwrap();
                }
                Ok((n, _)) = backs[0].recv_from(&mut down) => {
                    if let Some(client) = client {
                        front.send_to(&down[..n], client).await.unwrap();
                    }
                }
            }
        }
    });
    let mut listener = connect(address, Role::Subscribe, "a").await;
    let e = within(listener.next()).await.unwrap_err();
    let ClientError::Closed(close) = e else { panic!("{e}") };
    assert!(close.reason == Reason::Protocol && close.text.contains("NAT"), "{close}");
    nat.abort();
    daemon.stop().await;
}
