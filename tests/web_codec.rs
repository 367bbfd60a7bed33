//! The page that decodes and encodes by itself: what the daemon offers for it, and Chromium with real sound both ways.
#![cfg(feature = "full")]

#[path = "common/browser.rs"]
mod browser;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use browser::{Browser, ask, get};
use serde_json::{Value, json};
use undertone::service::{Client, ClientOptions};
use undertone::session::{Hello, StreamName};
use undertone::{Decoder, Model};

const RATE: f64 = 24_000.0;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn model_folder() -> PathBuf {
    root().join("models/undertone-24k-v2")
}

/// The daemon's program with the real model, and its ports.
struct Daemon {
    child: Child,
    http: SocketAddr,
    pcm: String,
    codes: String,
    _folder: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// With a module that pages decode with, and further lines of the configuration.
    fn start(module: &Path, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Which port it gets it tells in its log only; this one was free a moment ago.
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let text = format!(
            "pcm_output = []\n[codes]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"{http}\"\n[engine]\nthreads = 1\nslots = 4\n\
             [codec]\nkbps = 6\neffort = \"off\"\n[[pcm_input]]\nlisten = \"127.0.0.1:0\"\nstream = \"main\"\n\
             format = \"s16le:24000:1\"\n{more}"
        );
        let config = folder.path().join("undertone.toml");
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_undertone"))
            .args(["serve", "--config"])
            .arg(&config)
            .env("UNDERTONE_MODEL", model_folder())
            .env("UNDERTONE_WEB", module)
            .env_remove("JOURNAL_STREAM")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let mut all = String::new();
        while !line.starts_with("listening ") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the daemon never listened:\n{all}");
            all.push_str(&line);
        }
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        let port = |key: &str| line.split_whitespace().find_map(|p| p.strip_prefix(key)).unwrap().to_owned();
        Self { child, http, pcm: port("pcm="), codes: port("codes="), _folder: folder }
    }

    /// Sound into the stream "main", as the daemon takes it, until the test ends.
    fn play(&self, pcm: Vec<f32>) {
        let mut socket = TcpStream::connect(&self.pcm).unwrap();
        std::thread::spawn(move || {
            let bytes: Vec<u8> = pcm.iter().flat_map(|s| ((s * 32_767.0) as i16).to_le_bytes()).collect();
            while socket.write_all(&bytes).is_ok() {}
        });
    }
}

fn built_module() -> PathBuf {
    let module = root().join("target/web/undertone.wasm");
    assert!(module.exists(), "{}: `make web` builds it", module.display());
    module
}

/// Harmonics of a pitch, a whole number of periods long.
fn voice(hz: f64, rate: f64) -> Vec<f32> {
    let samples = (rate * 2.0) as usize;
    let wave = |n: usize| {
        (1..9).map(move |h| (f64::from(h) * hz * std::f64::consts::TAU * n as f64 / rate).sin() / f64::from(h))
    };
    (0..samples).map(|n| (0.2 * wave(n).sum::<f64>()) as f32).collect()
}

/// The energy at a frequency as a share of all.
fn share_at(pcm: &[f32], hz: f64) -> f64 {
    let turn = |n: usize| hz * std::f64::consts::TAU * n as f64 / RATE;
    let (re, im) = pcm
        .iter()
        .enumerate()
        .fold((0.0, 0.0), |(re, im), (n, &s)| (re + f64::from(s) * turn(n).cos(), im + f64::from(s) * turn(n).sin()));
    let all: f64 = pcm.iter().map(|&s| f64::from(s * s)).sum();
    2.0 * (re * re + im * im) / (pcm.len() as f64 * all.max(1e-9))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_codec_is_offered_under_names_that_last() {
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("undertone.wasm");
    std::fs::write(&module, b"\0asm, or something like it").unwrap();
    let daemon = Daemon::start(&module, "");
    let (head, body) = get(daemon.http, "/codec.json").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("no-store"), "{head}");
    let index: Value = serde_json::from_str(&body).unwrap();
    let names = |part: &str| index[part].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names("listen"),
        ["codebooks.safetensors", "decoder.onnx", "files.toml", "manifest.toml", "tokens.safetensors"]
    );
    assert!(names("publish").contains(&"encoder.onnx".to_owned()));
    let at = index["module"]["at"].as_str().unwrap();
    let (head, body) = get(daemon.http, at).await;
    assert!(head.contains("immutable") && head.contains("application/wasm") && head.contains("public"), "{head}");
    assert_eq!(body.as_bytes(), std::fs::read(&module).unwrap());
    let etag = head.lines().find_map(|l| l.strip_prefix("ETag: ").or(l.strip_prefix("Etag: "))).expect("an ETag");
    let again = format!("GET {at} HTTP/1.1\r\nHost: {}\r\nIf-None-Match: {etag}\r\n\r\n", daemon.http);
    assert!(ask(daemon.http, &again).await.starts_with("HTTP/1.1 304"));
    // The model's files are those of the folder, to the last byte, however large.
    let decoder = &index["listen"]["decoder.onnx"];
    let socket = tokio::task::spawn_blocking({
        let (http, at) = (daemon.http, decoder["at"].as_str().unwrap().to_owned());
        move || {
            let mut socket = TcpStream::connect(http).unwrap();
            write!(socket, "GET {at} HTTP/1.1\r\nHost: {http}\r\n\r\n").unwrap();
            let mut all = Vec::new();
            std::io::Read::read_to_end(&mut socket, &mut all).unwrap();
            all
        }
    });
    let answer = socket.await.unwrap();
    let content = std::fs::read(model_folder().join("decoder.onnx")).unwrap();
    assert!(answer.ends_with(&content) && answer.len() < content.len() + 2_000, "{} bytes came", answer.len());
    assert_eq!(decoder["bytes"], content.len());
    // What is no longer what its name says is not there.
    std::fs::write(&module, b"another").unwrap();
    assert!(get(daemon.http, at).await.0.starts_with("HTTP/1.1 404"));
    assert!(get(daemon.http, "/codec/../manifest.toml").await.0.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_codec_needs_the_token_that_the_page_needs() {
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("undertone.wasm");
    std::fs::write(&module, b"\0asm").unwrap();
    let daemon =
        Daemon::start(&module, "[[token]]\nname = \"a\"\nsecret = \"0123456789abcdef\"\nlisten = [\"main\"]\n");
    let with = |token: &str| {
        format!("GET /codec.json HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n", daemon.http)
    };
    assert!(get(daemon.http, "/codec.json").await.0.starts_with("HTTP/1.1 401"));
    assert!(ask(daemon.http, &with("0123456789abcdee")).await.starts_with("HTTP/1.1 401"));
    let answer = ask(daemon.http, &with("0123456789abcdef")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let index: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert!(get(daemon.http, index["module"]["at"].as_str().unwrap()).await.0.starts_with("HTTP/1.1 401"));
    // Without a module there is nothing to offer, and the daemon runs all the same.
    let daemon = Daemon::start(Path::new("nowhere.wasm"), "");
    assert!(get(daemon.http, "/codec.json").await.0.starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and the module: make test-system"]
async fn a_page_hears_a_stream_in_codes_and_falls_back_to_samples() {
    let daemon = Daemon::start(&built_module(), "");
    let pitch = 240.0;
    daemon.play(voice(pitch, RATE));
    let scheme = std::env::var("UNDERTONE_SCHEME").unwrap_or_else(|_| "light".to_owned());
    let mut browser = Browser::open(&format!("http://{}/", daemon.http), &scheme).await;
    browser.until("!!document.querySelector('[aria-label=\"Listen to main\"]')").await;
    browser.tab_to("Listen to main").await;
    browser.press("Enter", 13, "\r").await;
    browser.until("undertone.playing === 'main' && undertone.decodes === 'here' && undertone.seconds > 3").await;
    browser.until("undertone.level > -40 && undertone.kbps > 0").await;
    let near = format!("Math.abs(undertone.peak % {pitch} - {pitch} / 2) > {pitch} / 2 - 25");
    browser.until(&near).await;
    // The codes, their heads, and nothing else: the encoder was told 6 kbit/s.
    browser.until("undertone.kbps > 1.5 && undertone.kbps < 9 && undertone.heard.coded").await;
    // The encoder has the only slot.
    browser.until("document.getElementById('slots').textContent === '1 of 4'").await;
    browser.tab_to("rate").await;
    browser.press("Home", 36, "").await;
    browser.until("undertone.stages === 1 && undertone.kbps < 2").await;
    browser.press("End", 35, "").await;
    browser.until("undertone.stages > 6").await;
    if std::env::var_os("UNDERTONE_SHOTS").is_some() {
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    browser.shot(&format!("codes-{scheme}.png.b64")).await;
    println!("heard: {}", browser.eval("JSON.stringify([undertone.kbps, undertone.heard, undertone.underruns])").await);

    // Whoever would rather have samples gets them, and they cost a slot.
    browser.eval("document.getElementById('here').click()").await;
    browser.until("undertone.decodes === 'daemon' && undertone.kbps > 300 && undertone.level > -40").await;
    browser.until("document.getElementById('slots').textContent === '2 of 4'").await;
    browser.eval("document.getElementById('here').click()").await;
    browser.until("undertone.decodes === 'here' && undertone.kbps < 9").await;
    browser.until("document.getElementById('slots').textContent === '1 of 4'").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium: make test-system"]
async fn a_page_without_a_module_that_works_gets_samples() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("undertone.wasm");
    std::fs::write(&broken, b"\0asm and no more").unwrap();
    for (module, reason) in [(Path::new("nowhere.wasm"), "built without it"), (&broken, "WebAssembly")] {
        let daemon = Daemon::start(module, "");
        daemon.play(voice(240.0, RATE));
        let mut browser = Browser::open(&format!("http://{}/", daemon.http), "light").await;
        browser.until("!!document.querySelector('[aria-label=\"Listen to main\"]')").await;
        browser.tab_to("Listen to main").await;
        browser.press("Enter", 13, "\r").await;
        browser.until("undertone.decodes === 'daemon' && undertone.seconds > 1 && undertone.level > -40").await;
        browser.until(&format!("document.getElementById('where').textContent.includes('{reason}')")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium and the module: make test-system"]
async fn the_microphone_is_heard_by_another_client() {
    const PUBLISHER: &str = "[[token]]\nname = \"mouth\"\nsecret = \"0123456789abcdef\"\npublish = [\"mic\"]\n\
                             [[token]]\nname = \"ear\"\nsecret = \"fedcba9876543210\"\nlisten = [\"*\"]\n";
    let daemon = Daemon::start(&built_module(), PUBLISHER);
    let folder = tempfile::tempdir().unwrap();
    let recording = folder.path().join("voice.wav");
    let (pitch, rate) = (300.0, 48_000);
    let spec =
        hound::WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut wav = hound::WavWriter::create(&recording, spec).unwrap();
    voice(pitch, f64::from(rate)).iter().for_each(|s| wav.write_sample((s * 32_767.0) as i16).unwrap());
    wav.finalize().unwrap();
    let arguments = [
        "--use-fake-ui-for-media-stream".to_owned(),
        "--use-fake-device-for-media-stream".to_owned(),
        format!("--use-file-for-fake-audio-capture={}", recording.display()),
    ];
    let mut browser = Browser::open_with(&format!("http://{}/", daemon.http), "light", &arguments).await;
    browser.until("!!window.undertone && document.activeElement.id === 'token'").await;
    browser.call("Input.insertText", json!({"text": "0123456789abcdef"})).await;
    browser.press("Enter", 13, "\r").await;
    browser.until("document.getElementById('login').hidden").await;
    // Another name than the token may publish is refused in the daemon's words.
    browser.eval("document.getElementById('mic-name').value = 'other'").await;
    browser.tab_to("mic-button").await;
    browser.press("Enter", 13, "\r").await;
    browser.until("document.getElementById('mic-said').textContent.includes('may not publish stream other')").await;
    browser.eval("document.getElementById('mic-name').value = 'mic'").await;
    browser.press("Enter", 13, "\r").await;
    browser.until("undertone.publishing === 'mic' && undertone.publishingKbps > 0").await;
    browser.shot("mic.png.b64").await;

    let model = Model::open(model_folder()).unwrap();
    let hello = Hello {
        token: "fedcba9876543210".to_owned(),
        ..Hello::subscribe(StreamName::new("mic").unwrap(), model.profile().model_id)
    };
    let options = ClientOptions { tokens: model.tokens().cloned(), ..ClientOptions::default() };
    let mut client = Client::connect_with(&daemon.codes, hello, &options).await.unwrap();
    assert!(client.is_coded());
    let (mut decoder, mut pcm) = (Decoder::new(&model), Vec::new());
    let mut next = 0;
    while pcm.len() < 3 * 24_000 {
        let packed = client.next().await.unwrap().expect("the stream goes on");
        assert!(!packed.is_background(), "a voice is no silence");
        assert!(next == 0 || packed.first_frame == next, "frames {next} to {} are missing", packed.first_frame);
        next = packed.first_frame + u64::from(packed.frames);
        pcm.extend(decoder.push(packed.unpack().unwrap()).unwrap());
    }
    // The pitch and its harmonics, from which the codec takes something away.
    let heard = &pcm[24_000..];
    let share: f64 = (1..6).map(|h| share_at(heard, f64::from(h) * pitch)).sum();
    let beside: f64 = (1..6).map(|h| share_at(heard, (f64::from(h) + 0.5) * pitch)).sum();
    println!(
        "microphone: {share} of the energy at the pitch, {beside} beside it, {}",
        browser.eval("undertone.publishingKbps").await
    );
    assert!(share > 0.1 && share > 10.0 * beside, "{share} of the energy is at the pitch, {beside} beside it");
    browser.press("Enter", 13, "\r").await;
    browser.until("undertone.publishing === null").await;
    while client.next().await.unwrap().is_some() {}
}
