//! Health, metrics and state as an operator sees them.
#![cfg(feature = "full")]

mod common;

use std::net::SocketAddr;

use common::{Daemon, bundle, drain, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use undertone::service::Client;
use undertone::session::{PackedBundle, Role};

const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n[limits]\nhandshake_s = 0.3\n";

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let _ = socket.write_all(request).await;
    let mut answer = Vec::new();
    let _ = within(socket.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let answer = ask(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_streams_listeners_and_bits() {
    let daemon = Daemon::start(HTTP).await;
    let http = daemon.http.unwrap();
    assert_eq!(get(http, "/healthz").await, ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert_eq!(get(http, "/readyz").await.1, "ready\n");
    let mut listener = daemon.subscriber("news", Some(2)).await;
    let mut publisher = daemon.publisher("news").await;
    for n in 0..3 {
        publisher.publish(PackedBundle::pack(&bundle(n))).await.unwrap();
        within(listener.next()).await.unwrap().unwrap();
    }
    let metrics = get(http, "/metrics").await.1;
    for line in [
        "undertone_streams 1",
        "undertone_listeners 1",
        "undertone_bundles_total 3",
        // Three bundles of 5 frames with 6 stages of 10 bits.
        "undertone_stage_bits_total{stage=\"6\"} 150",
        "undertone_stage_bits_total{stage=\"7\"} 0",
        "undertone_phase_seconds_bucket{phase=\"send\",le=\"0.02\"}",
        "undertone_phase_seconds_bucket{phase=\"queue\",le=\"+Inf\"} 0",
        "# TYPE undertone_phase_seconds histogram",
        "undertone_stream_age_seconds{stream=\"news\"} 0.0",
        "undertone_stale_bundles_total 0",
        "undertone_skipped_frames_total 0",
    ] {
        assert!(metrics.lines().any(|l| l.starts_with(line)), "{line} in\n{metrics}");
    }
    let json = get(http, "/status.json").await.1;
    let wanted =
        "{\"stream\":\"news\",\"published\":true,\"listeners\":1,\"bundles\":3,\"payload_bytes\":114,\"age_s\":";
    assert!(json.contains(wanted) && json.contains("\"ready\":true"), "{json}");
    let table = get(http, "/status").await.1;
    assert!(
        table.lines().any(|l| l.split_whitespace().collect::<Vec<_>>().starts_with(&["news", "yes", "1", "3", "114"])),
        "{table}"
    );
    within(publisher.finish()).await.unwrap();
    drain(listener).await;
    assert!(get(http, "/status.json").await.1.contains("\"streams\":[]"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_get_an_answer_or_an_end() {
    let daemon = Daemon::start(HTTP).await;
    let http = daemon.http.unwrap();
    assert!(get(http, "/nothing").await.0.contains("404"));
    assert!(ask(http, b"POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
    assert!(ask(http, b"\xFF\xFE\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let head = ask(http, b"HEAD /healthz HTTP/1.1\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    let long = [b"GET / HTTP/1.1\r\nA: ".to_vec(), vec![b'a'; 20_000]].concat();
    assert!(ask(http, &long).await.starts_with("HTTP/1.1 431"));
    // A request that never ends.
    assert_eq!(ask(http, b"GET / HT").await, "");
    assert_eq!(get(http, "/healthz").await.1, "ok\n");
    daemon.stop().await;
}

/// Until a page of metrics has this line.
async fn until_counted(http: SocketAddr, line: &str) {
    let counted = async {
        while !get(http, "/metrics").await.1.lines().any(|l| l == line) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_and_their_failures_are_counted_and_readiness_follows() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("new");
    let daemon =
        Daemon::start(&format!("{HTTP}[record]\nfolder = \"{}\"\nrotate_minutes = 0.01\n", folder.display())).await;
    let http = daemon.http.unwrap();
    let mut publisher = daemon.publisher("news").await;
    publisher.publish(PackedBundle::pack(&bundle(0))).await.unwrap();
    until_counted(http, "undertone_recorded_files_total 1").await;
    assert_eq!(get(http, "/readyz").await.1, "ready\n");
    // The folder goes away, and a file takes its place.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::write(&folder, "").unwrap();
    let mut other = daemon.publisher("other").await;
    other.publish(PackedBundle::pack(&bundle(0))).await.unwrap();
    until_counted(http, "undertone_recording_errors_total 1").await;
    let (status, why) = get(http, "/readyz").await;
    assert!(status.contains("503") && why.starts_with("recording fails: "), "{status} {why}");
    assert!(!why.contains(dir.path().to_str().unwrap()), "{why}");
    // And is back.
    std::fs::remove_file(&folder).unwrap();
    let ready = async {
        while get(http, "/readyz").await.1 != "ready\n" {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    within(ready).await;
    within(publisher.finish()).await.unwrap();
    within(other.finish()).await.unwrap();
    daemon.stop().await;
}

const TOKENS: &str = "[[token]]\nname = \"a\"\nsecret = \"0123456789abcdef\"\nlisten = [\"news\"]\n\
                      [[token]]\nname = \"b\"\nsecret = \"fedcba9876543210\"\npublish = [\"*\"]\n";

/// The answer to a request with these lines in its head.
async fn with_head(address: SocketAddr, path: &str, lines: &str) -> String {
    ask(address, format!("GET {path} HTTP/1.1\r\n{lines}\r\n").as_bytes()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn state_and_metrics_are_told_to_who_has_a_token_and_asks_for_one_of_our_names() {
    let daemon = Daemon::start(&format!("{TOKENS}{HTTP}")).await;
    let http = daemon.http.unwrap();
    let codes = daemon.codes.to_string();
    let publish = async |stream: &str| {
        let mut hello = common::hello(Role::Publish, stream, Some(6));
        hello.token = "fedcba9876543210".to_owned();
        within(Client::connect(&codes, hello)).await.unwrap()
    };
    let _streams = [publish("news").await, publish("secret.plans").await];
    for path in ["/status", "/status.json", "/metrics"] {
        let with = async |lines: &str| with_head(http, path, &format!("Host: localhost\r\n{lines}")).await;
        for denied in [
            "",
            "Authorization: Bearer 0123456789abcdeX\r\n",
            "Authorization: Basic 0123456789abcdef\r\n",
            "Authorization: Bearer 0123456789abcdef\r\nAuthorization: Bearer 0123456789abcdef\r\n",
        ] {
            let answer = with(denied).await;
            assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("Www-Authenticate: Bearer"), "{answer}");
            assert!(!answer.contains("news"), "{answer}");
        }
        let answer = with("Authorization: bearer 0123456789abcdef\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("secret.plans"), "{answer}");
        if path != "/metrics" {
            assert!(answer.contains("news"), "{answer}");
        }
        // A page of anybody's that points its own name at us, token or not.
        for host in ["Host: evil.example\r\n", "Host: evil.example\r\nHost: localhost\r\n"] {
            let answer = with_head(http, path, &format!("{host}Authorization: Bearer 0123456789abcdef\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("http.names"), "{answer}");
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert!(with_head(http, path, "Host: any.example\r\n").await.starts_with("HTTP/1.1 200"));
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_may_be_told_its_own_state_without_a_token_but_not_through_a_proxy() {
    let daemon =
        Daemon::start(&format!("{TOKENS}[http]\nlisten = \"127.0.0.1:0\"\nstatus_without_token = true\n")).await;
    let http = daemon.http.unwrap();
    assert!(with_head(http, "/metrics", "Host: localhost\r\n").await.starts_with("HTTP/1.1 200"));
    for mark in ["X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1", "Via: 1.1 proxy", "X-Forwarded-Proto: https"]
    {
        let answer = with_head(http, "/metrics", &format!("Host: localhost\r\n{mark}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 401"), "{mark}: {answer}");
    }
    daemon.stop().await;
}
