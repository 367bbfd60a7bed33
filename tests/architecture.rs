//! The house has three layers and an arrow may only point down; foreign crates have one owner each.

use std::fs;
use std::path::{Path, PathBuf};

const CORE: &[&str] = &[
    "bitstream",
    "codec",
    "dsp",
    "entropy",
    "jitter",
    "model",
    "recording",
    "rvq",
    "sampling",
    "session",
    "synthesis",
    "token",
    "units",
];
const ADAPTERS: &[&str] = &["bus", "capture", "infer", "wire"];
const COMPOSITION: &[&str] = &["batch", "cli", "config", "engine", "referee", "service"];

/// Foreign crate -> modules (or files) that may name it.
const OWNERS: &[(&str, &[&str])] = &[
    ("ort", &["infer"]),
    ("async_nats", &["bus"]),
    ("prost", &["wire"]),
    ("symphonia", &["capture"]),
    ("hound", &["capture"]),
    ("cpal", &["capture/device"]),
    ("rtrb", &["capture/device"]),
    ("constriction", &["entropy"]),
    ("rand_chacha", &["sampling"]),
    ("rubato", &["dsp/resample.rs"]),
    ("rustix", &["engine/cores.rs"]),
    (
        "tokio",
        &[
            "batch",
            "bus",
            "service",
            "cli/batch.rs",
            "cli/bench/load.rs",
            "cli/bench/rig.rs",
            "cli/bench/soak.rs",
            "cli/demo.rs",
            "cli/devices.rs",
            "cli/listen.rs",
            "cli/replay.rs",
            "cli/send.rs",
            "cli/serve.rs",
            "cli/worker.rs",
        ],
    ),
    ("tokio_util", &["service"]),
    ("rustls", &["service/tls.rs"]),
    ("tokio_rustls", &["service/tls.rs"]),
    ("tokio_tungstenite", &["service/web.rs"]),
    ("futures_util", &["bus", "service/web.rs"]),
    ("serde_json", &["bus", "service/web.rs"]),
    ("listenfd", &["cli/serve.rs"]),
    ("subtle", &["service/access.rs", "service/udp/cookie.rs"]),
    ("anyhow", &["cli"]),
    ("clap", &["cli"]),
    ("opusic_c", &["referee/opus.rs"]),
    ("pesq", &["referee/metrics.rs"]),
    ("png", &["referee"]),
    ("rustfft", &["referee"]),
    ("realfft", &["synthesis"]),
];

/// Modules of the composition layer that each may use from their own layer.
const SIDEWAYS: &[(&str, &[&str])] = &[
    ("batch", &[]),
    ("cli", &["batch", "config", "engine", "referee", "service"]),
    ("service", &["config", "engine"]),
    ("config", &["engine"]),
    ("engine", &[]),
    ("referee", &[]),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&src, &mut paths);
    let name = |p: &PathBuf| p.strip_prefix(&src).expect("below src").to_string_lossy().into_owned();
    paths.iter().map(|p| (name(p), fs::read_to_string(p).expect("a source is text"))).collect()
}

/// Code of a file without comments and without its tests, which may use what they like.
fn code(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
    body.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

fn names(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn arrows_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in all() {
        let module = file.split(['/', '.']).next().unwrap_or("");
        let code = code(&text);
        let allowed: Vec<&str> = if CORE.contains(&module) {
            CORE.to_vec()
        } else if ADAPTERS.contains(&module) {
            [CORE, &[module]].concat()
        } else if COMPOSITION.contains(&module) {
            let side = SIDEWAYS.iter().find(|(m, _)| *m == module).expect("listed").1;
            [CORE, ADAPTERS, side, &[module]].concat()
        } else {
            assert!(["lib", "main"].contains(&module), "{file}: module {module} is in no layer");
            continue;
        };
        for target in [CORE, ADAPTERS, COMPOSITION].concat() {
            if !allowed.contains(&target) && code.contains(&format!("crate::{target}")) {
                wrong.push(format!("{file} uses crate::{target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn foreign_crates_have_one_owner() {
    let mut wrong = Vec::new();
    for (file, text) in all() {
        let code = code(&text);
        for (krate, owners) in OWNERS {
            let owned = owners.iter().any(|o| file == *o || file.starts_with(&format!("{o}/")));
            if !owned && names(&code, &format!("{krate}::")) {
                wrong.push(format!("{file} names {krate}"));
            }
        }
        if names(&code, "unsafe ") && !["rvq/simd.rs", "token/simd.rs"].contains(&file.as_str()) {
            wrong.push(format!("{file} has unsafe code"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_reads_no_clock_and_starts_no_thread() {
    for (file, text) in all() {
        if CORE.contains(&file.split(['/', '.']).next().unwrap_or("")) {
            for word in ["Instant::now", "SystemTime", "thread::", "std::fs", "std::net", "println!"] {
                assert!(!code(&text).contains(word), "{file} uses {word}");
            }
        }
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    for (file, text) in all() {
        assert!(text.lines().count() <= 600, "{file} has {} lines", text.lines().count());
    }
}
