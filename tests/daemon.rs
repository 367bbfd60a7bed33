//! The daemon as a process, with the shipped model: signals, and codes from client to client.
#![cfg(feature = "full")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use undertone::bitstream::{ContainerReader, Item, ReaderOptions, Tail};
use undertone::session::{Close, Message, Reason};

const PATIENCE: Duration = Duration::from_secs(60);

fn undertone() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.env("UNDERTONE_MODEL", Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2"));
    command.env_remove("JOURNAL_STREAM");
    command
}

struct Daemon {
    child: Child,
    log: Receiver<String>,
    codes: String,
}

impl Daemon {
    fn start(config: &Path) -> Self {
        Self::spawn(undertone().args(["serve", "--config"]).arg(config))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (tell, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|l| tell.send(l)));
        let mut daemon = Self { child, log, codes: String::new() };
        let line = daemon.wait_for("listening ");
        daemon.codes = line.split_whitespace().find_map(|p| p.strip_prefix("codes=")).unwrap().to_owned();
        daemon
    }

    fn wait_for(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the daemon never said \"{text}\""));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn config(dir: &Path, more: &str) -> std::path::PathBuf {
    let path = dir.join("undertone.toml");
    let http = if more.contains("[http]") { "" } else { "[http]\nlisten = \"\"\n" };
    let text = format!(
        "pcm_input = []\npcm_output = []\n[codes]\nlisten = \"127.0.0.1:0\"\n{http}[engine]\nthreads = 1\n{more}"
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_reload_applies_what_it_can_and_names_the_rest_and_sigterm_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(&config(dir.path(), ""));
    config(dir.path(), "slots = 5\n[codec]\nkbps = 1.5\n[limits]\nmax_connections = 3\n");
    daemon.signal("-HUP");
    let line = daemon.wait_for("restart");
    assert!(line.contains("engine") && !line.contains("max_connections") && !line.contains("codec"), "{line}");
    daemon.wait_for("reloaded");
    config(dir.path(), "slots = -1\n");
    daemon.signal("-HUP");
    daemon.wait_for("stays as it was");
    daemon.signal("-TERM");
    daemon.wait_for("stopped");
    assert!(daemon.child.wait().unwrap().success());
}

#[test]
fn codes_sent_by_a_client_are_decoded_by_another_as_a_file_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let raw: Vec<u8> =
        (0..36_000).flat_map(|n| (((f64::from(n) * 0.06).sin() * 8_000.0) as i16).to_le_bytes()).collect();
    fs::write(path("in.raw"), raw).unwrap();
    let daemon = Daemon::start(&config(dir.path(), ""));
    let listen = |output: &str| {
        let mut c = undertone();
        c.arg("listen").arg(path(output)).args(["--from", &daemon.codes, "--stream", "a"]);
        c.spawn().unwrap()
    };
    let (mut wav, mut utn) = (listen("out.wav"), listen("out.utn"));
    for _ in 0..2 {
        daemon.wait_for("session open");
    }
    let send = undertone()
        .arg("send")
        .arg(path("in.raw"))
        .args([
            "--to",
            &daemon.codes,
            "--stream",
            "a",
            "--kbps",
            "3",
            "--even",
            "--effort",
            "off",
            "--raw",
            "s16le:24000:1",
        ])
        .status()
        .unwrap();
    assert!(send.success() && wav.wait().unwrap().success() && utn.wait().unwrap().success());

    let run = |args: &[&str], files: [&str; 2]| {
        let mut c = undertone();
        c.arg(args[0]).args(files.map(path)).args(&args[1..]);
        assert!(c.status().unwrap().success());
    };
    let as_live =
        ["--packed", "--kbps", "3", "--bundle", "5", "--refine", "0", "--beam", "4", "--raw", "s16le:24000:1"];
    run(&[&["encode"], &as_live[..]].concat(), ["in.raw", "file.utn"]);
    run(&["decode"], ["file.utn", "file.wav"]);
    run(&["decode"], ["out.utn", "again.wav"]);
    let samples = |name: &str| fs::read(path(name)).unwrap()[80..].to_vec();
    let (file, live, again) = (samples("file.wav"), samples("out.wav"), samples("again.wav"));
    // A live stream does not know its length: it keeps the padding of the last frame.
    assert_eq!(file.len(), 72_000);
    assert!(live[..file.len()] == file, "the live stream decodes to something else than the file");
    assert!(again == live, "a recording of the stream decodes to something else than the stream");
}

#[test]
fn a_killed_publisher_of_a_recording_is_gone_soon() {
    let dir = tempfile::tempdir().unwrap();
    // A minute: all of it would fit into what the system holds for a connection.
    fs::write(dir.path().join("in.raw"), vec![0; 60 * 48_000]).unwrap();
    let daemon = Daemon::start(&config(dir.path(), ""));
    let mut listener = undertone();
    listener.arg("listen").arg(dir.path().join("out.utn")).args(["--from", &daemon.codes, "--stream", "a"]);
    let mut listener = listener.spawn().unwrap();
    daemon.wait_for("session open");
    let mut send = undertone();
    send.arg("send").arg(dir.path().join("in.raw"));
    send.args(["--to", &daemon.codes, "--stream", "a", "--beam", "1", "--raw", "s16le:24000:1"]);
    let mut send = send.spawn().unwrap();
    daemon.wait_for("session open");
    std::thread::sleep(Duration::from_secs(2));
    send.kill().unwrap();
    send.wait().unwrap();
    let killed = Instant::now();
    assert!(listener.wait().unwrap().success());
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?} after its publisher", killed.elapsed());
}

/// Frames of a recording of 101, and whether it ends as a whole one does.
fn frames_of(path: &Path) -> (u64, Tail) {
    let mut reader = ContainerReader::new(ReaderOptions::default());
    reader.push(&fs::read(path).unwrap());
    let mut frames = 0;
    while let Some(item) = reader.next().unwrap() {
        frames += if let Item::Bundle(b) = item { u64::from(b.frames) } else { 0 };
    }
    (frames, reader.finish())
}

#[test]
fn a_publisher_that_is_told_to_end_sends_all_it_was_given_and_says_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&config(dir.path(), ""));
    // Two seconds, and the pipe stays open: a live source.
    let raw: Vec<u8> =
        (0..48_000).flat_map(|n| (((f64::from(n) * 0.06).sin() * 8_000.0) as i16).to_le_bytes()).collect();
    for signal in ["-INT", "-TERM", "-HUP", "-KILL"] {
        let heard = dir.path().join(format!("{signal}.utn"));
        let mut listen = undertone();
        listen.arg("listen").arg(&heard).args(["--from", &daemon.codes, "--stream", "a"]);
        let mut listen = listen.spawn().unwrap();
        daemon.wait_for("session open");
        let mut send = undertone();
        send.args(["send", "-", "--to", &daemon.codes, "--stream", "a", "--kbps", "3", "--even", "--effort", "off"]);
        send.args(["--raw", "s16le:24000:1"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut send = send.spawn().unwrap();
        let mut pipe = send.stdin.take().unwrap();
        pipe.write_all(&raw).unwrap();
        daemon.wait_for("session open");
        let begun = Instant::now();
        while fs::metadata(&heard).map_or(0, |m| m.len()) < 100 {
            assert!(begun.elapsed() < PATIENCE, "nothing was heard");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(Command::new("kill").args([signal, &send.id().to_string()]).status().unwrap().success());
        let sent = send.wait_with_output().unwrap();
        let said = String::from_utf8(sent.stderr).unwrap();
        assert!(listen.wait().unwrap().success(), "{signal}: {said}");
        let (frames, tail) = frames_of(&heard);
        if signal == "-KILL" {
            // What was heard before is whole, and nobody waits for more.
            assert!((5..=101).contains(&frames) && tail == Tail::Complete, "{frames} frames, {tail:?}");
        } else {
            assert!(sent.status.success(), "{signal}: {said}");
            assert_eq!((frames, tail), (101, Tail::Complete), "{signal}: {said}");
            assert!(said.contains("kbit/s of messages in 2.0 s"), "{signal}: {said}");
        }
        drop(pipe);
    }
}

#[test]
fn a_rate_counts_every_byte_of_the_messages_and_they_are_coded() {
    let dir = tempfile::tempdir().unwrap();
    // Two and a half seconds of a voice-like sound that comes and goes.
    let sample = |n: i32| {
        let t = f64::from(n) / 24_000.0;
        let voice: f64 = (1..12).map(|k| (t * 120.0 * f64::from(k) * std::f64::consts::TAU).sin() / f64::from(k)).sum();
        (voice * 4_000.0 * (t * 4.0).sin().max(0.05)) as i16
    };
    let raw: Vec<u8> = (0..60_000).flat_map(|n| sample(n).to_le_bytes()).collect();
    fs::write(dir.path().join("in.raw"), raw).unwrap();
    // A free port, which nobody takes in the moment until the daemon has it, most likely.
    let quic = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let daemon = Daemon::start(&config(dir.path(), &format!("[quic]\nlisten = \"{quic}\"\n")));
    let quic = format!("quic://{quic}");
    for (to, more, least) in [
        (&daemon.codes, &[][..], 2.0),
        (&daemon.codes, &["--constant"][..], 2.9),
        (&daemon.codes, &["--packed"][..], 2.0),
        (&quic, &[][..], 2.0),
        (&quic, &["--constant", "--latency", "200ms"][..], 2.9),
    ] {
        let mut send = undertone();
        send.arg("send").arg(dir.path().join("in.raw")).args(["--to", to, "--kbps", "3", "--beam", "1"]);
        let output = send.args(["--raw", "s16le:24000:1"]).args(more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let kbps: f64 = said.split_whitespace().find_map(|w| w.parse().ok()).unwrap();
        // The last message is a whole one, however short the rest of the sound.
        assert!((least..=3.15).contains(&kbps), "{to} {more:?}: {said}");
        assert_eq!(said.contains("coded"), !more.contains(&"--packed"), "{said}");
    }
}

/// The shell gives itself what systemd would give: its own process number, and sockets from descriptor 3 on.
const ACTIVATE: &str = "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";

#[test]
fn a_listener_of_systemd_takes_the_place_of_the_port_with_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Who connects before the daemon is there waits and is served.
    let mut early = std::net::TcpStream::connect(address).unwrap();
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = config(dir.path(), &format!("[http]\nlisten = \"{address}\"\n"));
    let activated = |config: &Path| {
        let mut command = Command::new("sh");
        command.args(["-c", ACTIVATE, env!("CARGO_BIN_EXE_undertone"), "serve", "--config"]).arg(config);
        command.env("UNDERTONE_MODEL", Path::new(env!("CARGO_MANIFEST_DIR")).join("models/undertone-24k-v2"));
        command.env_remove("JOURNAL_STREAM");
        command.stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
        command
    };
    let mut daemon = Daemon::spawn(&mut activated(&path));
    early.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ready\n"), "{answer}");
    daemon.signal("-TERM");
    daemon.wait_for("stopped");
    assert!(daemon.child.wait().unwrap().success());
    // A socket that no port of the configuration asks for is a mistake, and it is named.
    let output = activated(&config(dir.path(), "")).stderr(Stdio::piped()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains(&format!("a socket was passed for {address}")), "{text}");
}

#[test]
fn a_reload_that_would_open_a_port_to_everybody_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("undertone.toml");
    let write = |codes: &str, more: &str| {
        let text = format!(
            "pcm_input = []\npcm_output = []\n{more}[codes]\nlisten = \"{codes}\"\n[http]\nlisten = \"\"\n\
             [engine]\nthreads = 1\n"
        );
        fs::write(&path, text).unwrap();
    };
    let token = "[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\nlisten = [\"*\"]\n";
    write("0.0.0.0:0", &format!("allow_public = true\n{token}"));
    let daemon = Daemon::start(&path);
    // By itself this file is fine: no token, and a port that only this machine reaches.
    write("127.0.0.1:0", "");
    daemon.signal("-HUP");
    let line = daemon.wait_for("stays as it was");
    assert!(line.contains("codes.listen") && line.contains("login"), "{line}");
    let port = daemon.codes.rsplit(':').next().unwrap();
    let output = undertone().args(["listen", "-", "--from", &format!("127.0.0.1:{port}")]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains("the token is missing or not known"), "{text}");
}

#[test]
fn a_configuration_is_checked_with_what_it_names_and_no_port_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let path = dir.path().join("c.toml");
        fs::write(&path, text).unwrap();
        let output = undertone().args(["serve", "--check"]).arg(&path).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // The port is taken, and nobody minds.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (fine, said, _) = check(&format!("[codes]\nlisten = \"{}\"\n", taken.local_addr().unwrap()));
    assert!(fine && said.ends_with("c.toml: fine\n"), "{said}");
    for (text, wanted) in [
        ("[log]\nlevel = \"inof\"", "log.level = inof"),
        ("[codes]\nlisten = \"0.0.0.0:1\"", "allow_public"),
        ("[tls]\ncert = \"no.pem\"\nkey = \"no.key\"", "no.pem"),
        ("[codec]\nmodel = \"/nonexistent\"", "/nonexistent"),
        ("[nats]\nurl = \"nats://host\"\ncredentials = \"/nonexistent.creds\"", "/nonexistent.creds"),
        ("[[token]]\nname = \"t\"\nsecret_file = \"no.token\"\nlisten = [\"*\"]", "no.token"),
        ("[codec]\nkbits = 3", "kbits"),
    ] {
        let (fine, _, said) = check(text);
        assert!(!fine && said.contains(wanted), "{text}: {said}");
    }
}

#[test]
fn what_a_server_says_never_reaches_the_terminal_as_an_order() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for (status, body) in [("200 OK", "news\x1b[2J\u{9b}31m\n"), ("500 \x1b]0;title\x07", "\x1b[31mno\n")] {
        let mut ask = undertone();
        ask.args(["status", "--from", &address]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let asking = ask.spawn().unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        let _ = socket.read(&mut [0; 1024]).unwrap();
        socket.write_all(format!("HTTP/1.1 {status}\r\n\r\n{body}").as_bytes()).unwrap();
        drop(socket);
        let output = asking.wait_with_output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!said.is_empty() && said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
    }
    // The last words of a session, too.
    let mut listen = undertone();
    listen.args(["listen", "-", "--from", &address]).stdout(Stdio::null()).stderr(Stdio::piped());
    let listening = listen.spawn().unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let close = Close::new(Reason::Denied, "go\x1b[2J away\u{202e}");
    let mut bytes = Vec::new();
    undertone::wire::encode(&Message::Close(close), &mut bytes);
    socket.write_all(&bytes).unwrap();
    let said = String::from_utf8(listening.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("go\\u{1b}[2J away") && said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
}

#[test]
fn status_asks_for_a_token_in_words_and_takes_one() {
    let dir = tempfile::tempdir().unwrap();
    // A free port, which nobody takes in the moment until the daemon has it, most likely.
    let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let token = "[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\nlisten = [\"*\"]\n";
    let _daemon = Daemon::start(&config(dir.path(), &format!("[http]\nlisten = \"{http}\"\n{token}")));
    let ask = |secret: Option<&str>| {
        let mut command = undertone();
        command.args(["status", "--from", &http]).env_remove("UNDERTONE_TOKEN");
        if let Some(secret) = secret {
            command.env("UNDERTONE_TOKEN", secret);
        }
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (good, said) = ask(None);
    assert!(!good && said.contains("asks for a token") && said.contains("--token-file"), "{said}");
    // As `$(cat file)` without its care leaves it, and as no token can be.
    assert!(ask(Some("0123456789abcdef\r\n")).0);
    let (good, said) = ask(Some("0123456789\nabcdef"));
    assert!(
        !good && said.contains("UNDERTONE_TOKEN") && said.contains("line break") && !said.contains("abcdef"),
        "{said}"
    );
}
