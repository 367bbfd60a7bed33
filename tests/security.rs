//! TLS, tokens, and peers that abuse them.
#![cfg(feature = "full")]

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Daemon, bundle, bytes, drain, hear, hello, speak, tone, within};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use undertone::service::{Client, ClientError, ClientOptions, ClientTls};
use undertone::session::{Control, Hello, Message, PackedBundle, Reason, Role};

/// An authority and what it signed, in files that go away with it.
struct Papers {
    dir: tempfile::TempDir,
}

impl Papers {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for (name, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn section(&self, with_clients: bool) -> String {
        let show = |name| self.path(name).display().to_string();
        let client = if with_clients { format!("client_ca = \"{}\"\n", show("ca.pem")) } else { String::new() };
        format!("[tls]\ncert = \"{}\"\nkey = \"{}\"\n{client}", show("server.pem"), show("server.key"))
    }

    fn options(&self, identity: bool) -> ClientOptions {
        let (cert, key) = (self.path("client.pem"), self.path("client.key"));
        let identity: (Option<&Path>, Option<&Path>) = if identity { (Some(&cert), Some(&key)) } else { (None, None) };
        ClientOptions { tls: Some(ClientTls::new(&self.path("ca.pem"), identity).unwrap()), ..Default::default() }
    }
}

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
    // Not worth a word.
    assert_eq!(speak(daemon.codes, &bytes(&Message::Hello(hello(Role::Subscribe, "a", None)))).await, []);
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
        let ack = Message::HelloAck { version: 1, model_id: ack.model_id, stages, coding: None };
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
