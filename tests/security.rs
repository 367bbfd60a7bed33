//! TLS, tokens, and peers that abuse them.
#![cfg(feature = "full")]

mod common;
#[path = "common/papers.rs"]
mod papers;

use std::time::Duration;

use common::{Daemon, bundle, bytes, drain, hear, hello, speak, tone, within};
use papers::Papers;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use undertone::config::Config;
use undertone::service::{Client, ClientError, ClientOptions};
use undertone::session::{Control, Hello, Message, PackedBundle, Reason, Role};

async fn connect(daemon: &Daemon, hello: Hello, options: &ClientOptions) -> Result<Client, ClientError> {
    within(Client::connect_with(&daemon.codes.to_string(), hello, options)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_pass_through_tls_and_only_through_tls() {
    let papers = Papers::new();
    let daemon = Daemon::start(&papers.section(false)).await;
    let options = papers.options(false);
    let listener = connect(&daemon, hello(Role::Subscribe, "a", None), &options).await.unwrap();
    let mut publisher = connect(&daemon, hello(Role::Publish, "a", Some(6)), &options).await.unwrap();
    for n in 0..3 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
    }
    within(publisher.finish()).await.unwrap();
    let got = drain(listener).await;
    assert_eq!(got, (0..3).map(|n| PackedBundle::pack(&bundle(n))).collect::<Vec<_>>());
    // Raw samples need TLS too: plain ones are an error, not sound.
    let mut plain = TcpStream::connect(daemon.pcm).await.unwrap();
    let _ = plain.write_all(&tone(0.1)).await;
    let _ = within(plain.read_to_end(&mut Vec::new())).await;
    // And so does the protocol.
    assert!(within(Client::connect(&daemon.codes.to_string(), hello(Role::Subscribe, "a", None))).await.is_err());
    // An authority that did not sign the server's certificate is not enough.
    assert!(connect(&daemon, hello(Role::Subscribe, "a", None), &Papers::new().options(false)).await.is_err());
    let wrong = ClientOptions {
        tls: options.tls.clone().map(|t| t.with_server_name(Some("elsewhere.example".to_owned()))),
        ..options
    };
    assert!(connect(&daemon, hello(Role::Subscribe, "a", None), &wrong).await.is_err());
    let summary = daemon.stop().await;
    assert_eq!((summary.bundles, summary.hostile), (3, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_a_login() {
    let papers = Papers::new();
    let daemon = Daemon::start(&papers.section(true)).await;
    let publisher = connect(&daemon, hello(Role::Publish, "a", Some(6)), &papers.options(true)).await.unwrap();
    within(publisher.finish()).await.unwrap();
    assert!(connect(&daemon, hello(Role::Publish, "a", Some(6)), &papers.options(false)).await.is_err());
    assert_eq!(daemon.stop().await.hostile, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_before_inside_and_after_the_handshake_ends_that_connection_alone() {
    let papers = Papers::new();
    let text = format!("{}\n[limits]\nhandshake_s = 0.3\n", papers.section(false));
    let daemon = Daemon::start(&text).await;
    let options = papers.options(false);
    let good = connect(&daemon, hello(Role::Publish, "good", Some(6)), &options).await.unwrap();
    // A slow loris: a TLS record that never ends.
    let mut slow = TcpStream::connect(daemon.codes).await.unwrap();
    slow.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(within(slow.read_to_end(&mut Vec::new())).await.unwrap_or(0), 0);
    // A flood of noise.
    let mut noise = TcpStream::connect(daemon.codes).await.unwrap();
    let _ = noise.write_all(&[0x5A; 100_000]).await;
    let _ = within(noise.read_to_end(&mut Vec::new())).await;
    within(good.finish()).await.unwrap();
    assert_eq!(daemon.stop().await.hostile, 2);
}

const TOKENS: &str = "[[token]]\nname = \"studio\"\nsecret = \"the-studio-secret\"\npublish = [\"news\"]\n\
                      [[token]]\nname = \"fan\"\nsecret = \"the-secret-of-a-fan\"\nlisten = [\"news\", \"radio.*\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn tokens_give_rights_by_stream_and_role() {
    let daemon = Daemon::start(TOKENS).await;
    let (studio, fan) = ("the-studio-secret", "the-secret-of-a-fan");
    for (role, stream, token, wanted) in [
        (Role::Publish, "news", studio, None),
        (Role::Subscribe, "radio.1", fan, None),
        (Role::Publish, "other", studio, Some("token studio may not publish stream other")),
        (Role::Subscribe, "news", studio, Some("token studio may not listen to stream news")),
        (Role::Publish, "news", fan, Some("token fan may not publish")),
        (Role::Publish, "news", "", Some("missing or not known")),
        (Role::Publish, "news", "the-studio-secreT", Some("missing or not known")),
        (Role::Publish, "news", "the-studio-secret ", Some("missing or not known")),
    ] {
        let hello = Hello { token: token.to_owned(), ..hello(role, stream, Some(6)) };
        match (connect(&daemon, hello, &ClientOptions::default()).await, wanted) {
            (Ok(_), None) => {}
            (Err(ClientError::Closed(c)), Some(text)) => {
                assert_eq!(c.reason, Reason::Denied);
                assert!(c.text.contains(text), "{c}");
            }
            (other, _) => panic!("{role:?} {stream}: {other:?}"),
        }
    }
    assert_eq!(daemon.stop().await.refused, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_of_a_hello_is_cut_at_the_deadline() {
    let daemon = Daemon::start("[limits]\nhandshake_s = 0.3").await;
    let mut socket = TcpStream::connect(daemon.codes).await.unwrap();
    let whole = bytes(&Message::Hello(hello(Role::Publish, "a", Some(6))));
    for byte in whole {
        // One byte at a time, each long before the deadline, all together long after it.
        if socket.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let _ = hear(&mut socket).await;
    assert_eq!(daemon.stop().await.hostile, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_messages_is_ended_and_an_oversized_one_is_not_read() {
    let daemon = Daemon::start("").await;
    let mut flood = bytes(&Message::Hello(hello(Role::Subscribe, "a", None)));
    (0..2_000).for_each(|_| flood.extend(bytes(&Message::Control(Control::default()))));
    let answer = speak(daemon.codes, &flood).await;
    assert!(
        matches!(answer.last(), Some(Message::Close(c)) if c.reason == Reason::Protocol && c.text.contains("flood")),
        "{answer:?}"
    );
    // A length of 2^35 - 1.
    let answer = speak(daemon.codes, &[0xFF, 0xFF, 0xFF, 0xFF, 0x7F]).await;
    assert!(matches!(answer.last(), Some(Message::Close(c)) if c.reason == Reason::Protocol), "{answer:?}");
    assert_eq!(daemon.stop().await.hostile, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_cannot_take_all_places() {
    let daemon = Daemon::start("[limits]\nmax_connections_per_address = 2").await;
    let publisher = daemon.publisher("a").await;
    let listener = daemon.subscriber("a", None).await;
    let answer = speak(daemon.codes, &bytes(&Message::Hello(hello(Role::Subscribe, "a", None)))).await;
    let [Message::Close(close)] = &answer[..] else { panic!("{answer:?}") };
    assert!(close.reason == Reason::Full && close.text.contains("limits.max_connections_per_address"), "{close}");
    within(publisher.finish()).await.unwrap();
    drain(listener).await;
    assert_eq!(daemon.stop().await.refused, 1);
}

/// A server that answers the Hello and then says nothing more.
async fn mute_server() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let ack = hello(Role::Publish, "a", Some(6));
        let stages = ack.stages.unwrap();
        let _ = socket.read(&mut [0; 1024]).await;
        let ack =
            Message::HelloAck { version: 1, model_id: ack.model_id, stages, coding: None, wire: Default::default() };
        socket.write_all(&bytes(&ack)).await.unwrap();
        std::future::pending::<()>().await;
    });
    (address, serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gives_up_a_server_that_vanished() {
    let options = ClientOptions { patience: Duration::from_millis(400), ..Default::default() };
    let (address, serving) = mute_server().await;
    let mut listener = Client::connect_with(&address, hello(Role::Subscribe, "a", None), &options).await.unwrap();
    let e = within(listener.next()).await.unwrap_err();
    assert!(matches!(e, ClientError::Silent { .. }), "{e}");
    serving.abort();
    // A publisher notices although the system takes everything it sends.
    let (address, serving) = mute_server().await;
    let mut publisher = Client::connect_with(&address, hello(Role::Publish, "a", Some(6)), &options).await.unwrap();
    let e = within(async {
        loop {
            match publisher.sign_of_life().await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(e) => return e,
            }
        }
    });
    let e = e.await;
    assert!(matches!(e, ClientError::Silent { .. }), "{e}");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_tls_to_a_plain_port_or_the_reverse_is_told_so() {
    let papers = Papers::new();
    let (plain, secure) = (Daemon::start("").await, Daemon::start(&papers.section(false)).await);
    let hello = || hello(Role::Subscribe, "a", None);
    let said = |result: Result<Client, ClientError>| result.expect_err("refused").to_string();
    let e = said(connect(&plain, hello(), &papers.options(false)).await);
    assert!(e.contains("does not speak TLS on this port"), "{e}");
    let e = said(connect(&secure, hello(), &ClientOptions::default()).await);
    assert!(e.contains("speaks TLS here: connect with --tls"), "{e}");
    // Samples would be noise, or sound that is somebody's handshake.
    let handshake = [0x16, 3, 1, 0, 9, 1, 0, 0, 5, 3, 3, 0, 0, 0];
    for port in [plain.pcm, plain.pcm_out] {
        let mut socket = TcpStream::connect(port).await.unwrap();
        socket.write_all(&handshake).await.unwrap();
        assert_eq!(within(socket.read_to_end(&mut Vec::new())).await.unwrap_or(0), 0);
    }
    // And the daemon names it, too.
    let answer = speak(plain.codes, &handshake).await;
    assert!(matches!(&answer[..], [Message::Close(c)] if c.text.contains("the client speaks TLS")), "{answer:?}");
    let answer = speak(plain.codes, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(matches!(&answer[..], [Message::Close(c)] if c.text.contains("http.listen")), "{answer:?}");
    let summary = plain.stop().await;
    assert_eq!((summary.bundles, summary.hostile), (0, 4));
    secure.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_named_with_the_reason() {
    let papers = Papers::new();
    let wrong = |file: &str, text: &str| {
        std::fs::write(papers.path(file), text).unwrap();
        let config = Config::parse(&papers.section(true)).unwrap();
        let e = undertone::service::check(&config).unwrap_err().to_string();
        assert!(e.contains(papers.path(file).to_str().unwrap()), "{e}");
        e
    };
    let key = std::fs::read_to_string(papers.path("server.key")).unwrap();
    for encrypted in [
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAoGCCqGSM49AwEH\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAoG\n-----END RSA PRIVATE KEY-----\n",
    ] {
        let e = wrong("server.key", encrypted);
        assert!(e.contains("the key is encrypted") && e.contains("openssl pkey"), "{e}");
    }
    assert!(wrong("server.key", "nothing").contains("no private key in it"));
    let other = std::fs::read_to_string(papers.path("client.key")).unwrap();
    assert!(wrong("server.key", &other).contains("does not belong to"));
    std::fs::write(papers.path("server.key"), key).unwrap();
    assert!(wrong("ca.pem", "nothing").contains("no certificate in it"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_of_samples_that_says_at_once_that_it_has_nothing_to_say_hears_the_stream() {
    let daemon = Daemon::start("").await;
    // As `nc -N` does, or a client whose standard input is closed.
    let mut half = TcpStream::connect(daemon.pcm_out).await.unwrap();
    half.shutdown().await.unwrap();
    let mut input = TcpStream::connect(daemon.pcm).await.unwrap();
    // The listener is in the hub before the stream begins, or hears it from its next bundle on.
    for _ in 0..10 {
        input.write_all(&tone(0.1)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    input.shutdown().await.unwrap();
    let mut heard = Vec::new();
    within(half.read_to_end(&mut heard)).await.unwrap();
    assert!(heard.len() >= 24_000, "{} bytes of a second", heard.len());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_address_leaves_operators_and_other_addresses_their_places() {
    let daemon = Daemon::start("[http]\nlisten = \"127.0.0.1:0\"\n[limits]\nmax_connections = 40\n").await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(TcpStream::connect(daemon.codes).await.unwrap());
    }
    // Its own operators still see the daemon, and another address has its place.
    let mut http = TcpStream::connect(daemon.http.unwrap()).await.unwrap();
    http.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(http.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(daemon.codes).await.unwrap();
    other.write_all(&bytes(&Message::Hello(hello(Role::Subscribe, "a", None)))).await.unwrap();
    let mut first = [0; 2];
    within(other.read_exact(&mut first)).await.unwrap();
    drop((held, other));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_places_are_for_operators_and_for_who_logs_in() {
    let limits = "[http]\nlisten = \"127.0.0.1:0\"\n[limits]\nmax_connections = 8\nmax_connections_per_address = 100\n\
                  reserved_percent = 50\n";
    for (tokens, welcome) in [("", false), (TOKENS, true)] {
        let daemon = Daemon::start(&format!("{tokens}{limits}")).await;
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut listener = TcpStream::connect(daemon.pcm_out).await.unwrap();
            listener.write_all(&[0]).await.unwrap();
            held.push(listener);
        }
        // Connections are accepted in their order, on every port.
        let mut refused = TcpStream::connect(daemon.pcm_out).await.unwrap();
        assert_eq!(within(refused.read(&mut [0; 1])).await.unwrap_or(0), 0, "a fifth listener of samples");
        let hello = Hello { token: "the-secret-of-a-fan".to_owned(), ..hello(Role::Subscribe, "news", None) };
        let client = connect(&daemon, hello, &ClientOptions::default()).await;
        assert_eq!(client.is_ok(), welcome);
        let mut http = TcpStream::connect(daemon.http.unwrap()).await.unwrap();
        http.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        within(http.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.ends_with("ready\n"), "{answer}");
        drop((held, client));
        daemon.stop().await;
    }
}
