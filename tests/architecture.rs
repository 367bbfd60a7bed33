//! The house: which module may use which, who owns a foreign crate, what the pure core may not touch.
//!
//! Every file is parsed with syn and every path in it is resolved, whichever way it is written: `use` with braces, `self`,
//! `super::super`, paths inside expressions, types, attributes and macros, names that another file re-exports. Tests inside the
//! sources may use what they like.

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use sources::{House, Source};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Core,
    Adapter,
    Composition,
}
use Layer::{Adapter, Composition, Core};

/// The modules in order. A module of the core may use what stands above it; an adapter, the core; a module of the composition, the
/// core, the adapters, and those modules beside it that are named here and stand above it.
const MODULES: &[(&str, Layer, &[&str])] = &[
    ("units", Core, &[]),
    ("profile", Core, &[]),
    ("dsp", Core, &[]),
    ("beam", Core, &[]),
    ("rvq", Core, &[]),
    ("bitstream", Core, &[]),
    ("sampling", Core, &[]),
    ("token", Core, &[]),
    ("entropy", Core, &[]),
    ("model", Core, &[]),
    ("codec", Core, &[]),
    ("portable", Core, &[]),
    ("synthesis", Core, &[]),
    ("fake", Core, &[]),
    ("recording", Core, &[]),
    ("jitter", Core, &[]),
    ("session", Core, &[]),
    ("simple", Adapter, &[]),
    ("infer", Adapter, &[]),
    ("wire", Adapter, &[]),
    ("capture", Adapter, &[]),
    ("bus", Adapter, &[]),
    ("table", Adapter, &[]),
    ("engine", Composition, &[]),
    ("config", Composition, &["engine"]),
    ("service", Composition, &["engine", "config"]),
    ("batch", Composition, &[]),
    ("referee", Composition, &[]),
    ("cli", Composition, &["engine", "config", "service", "batch", "referee"]),
];

/// Foreign crate -> modules (or files) that may name it.
const OWNERS: &[(&str, &[&str])] = &[
    ("ort", &["infer"]),
    ("async_nats", &["bus"]),
    ("prost", &["wire"]),
    ("symphonia", &["capture"]),
    ("opus_decoder", &["capture"]),
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
            "cli/bench/coded.rs",
            "cli/bench/load.rs",
            "cli/bench/rig.rs",
            "cli/bench/soak.rs",
            "cli/demo.rs",
            "cli/listen.rs",
            "cli/remote.rs",
            "cli/replay.rs",
            "cli/send.rs",
            "cli/serve.rs",
            "cli/status.rs",
            "cli/stop.rs",
            "cli/worker.rs",
        ],
    ),
    ("tokio_util", &["service"]),
    ("socket2", &["service/sockets.rs"]),
    ("quinn", &["service/quic"]),
    ("rcgen", &["service/tls.rs"]),
    ("rustls", &["service/tls.rs"]),
    ("tokio_rustls", &["service/tls.rs"]),
    ("tokio_tungstenite", &["service/web.rs", "service/web"]),
    ("futures_util", &["bus", "service/http.rs", "service/web.rs", "service/web"]),
    ("hyper", &["service/http.rs", "service/names.rs", "service/web.rs"]),
    ("hyper_util", &["service/http.rs"]),
    ("http_body_util", &["service/http.rs"]),
    ("prometheus_client", &["service/metrics.rs", "service/page.rs", "service/quic/counters.rs"]),
    ("comfy_table", &["table.rs"]),
    ("serde_json", &["bus", "cli", "referee", "service"]),
    ("getrandom", &["batch", "bus"]),
    ("half", &["portable/proto.rs", "rvq/codebook.rs"]),
    ("csv", &["referee", "table.rs"]),
    ("plotters", &["referee/chart.rs"]),
    ("embedded_graphics", &["referee/image.rs"]),
    ("listenfd", &["cli/serve.rs"]),
    ("subtle", &["service/access.rs"]),
    ("anyhow", &["cli"]),
    ("clap", &["cli"]),
    ("opusic_c", &["referee/opus.rs"]),
    ("pesq", &["referee/metrics.rs"]),
    ("png", &["referee"]),
    ("rustfft", &["referee"]),
    ("realfft", &["synthesis"]),
];

/// Files that may hold unsafe code.
const UNSAFE: &[&str] = &["portable/simd.rs", "rvq/simd.rs", "token/simd.rs"];

/// What the pure core may not name: it has no threads, no clock, no environment and no I/O. A point in time may be an argument.
const IMPURE: &[&str] =
    &["std::env", "std::fs", "std::io", "std::net", "std::os", "std::process", "std::thread", "std::time"];
const PURE: &[&str] = &["std::time::Duration", "std::time::Instant"];
const CLOCK: &str = "std::time::Instant::now";
const CLOCK_METHOD: &str = "elapsed";
const PRINTS: &[&str] = &["print", "println", "eprint", "eprintln", "dbg"];

/// Most lines of a file.
const LINES: usize = 600;

/// Fails with all that is wrong, not only the first of it.
fn nothing_wrong(wrong: &BTreeSet<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.iter().map(String::as_str).collect::<Vec<_>>().join("\n"));
}

/// Place of a module in the table.
fn place(module: &str) -> Option<usize> {
    MODULES.iter().position(|(name, ..)| *name == module)
}

/// Why a module may not use another one.
fn refusal(from: &str, to: &str) -> Option<String> {
    let (Some(user), Some(used)) = (place(from), place(to)) else {
        return Some(format!("{from} or {to} is not in the table of modules"));
    };
    let ((_, user_layer, beside), (_, used_layer, _)) = (MODULES[user], MODULES[used]);
    match (user_layer, used_layer) {
        _ if user == used => None,
        _ if used > user => Some(format!("{to} stands below {from}")),
        (Core, _) | (_, Core) | (Composition, Adapter) => None,
        _ if beside.contains(&to) => None,
        _ => Some(format!("{to} is not named as one that {from} may use beside it")),
    }
}

fn is_core(source: &Source) -> bool {
    place(source.module()).is_some_and(|at| MODULES[at].1 == Core)
}

/// Uses of modules that the table does not allow.
fn uphill(house: &House) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    for source in house.inner() {
        for used in &source.names {
            if let Some(to) = house.module_of(source, used)
                && let Some(why) = refusal(source.module(), &to)
            {
                wrong.insert(format!("{}: {why}: {}", source.file, used.text()));
            }
        }
    }
    wrong
}

#[test]
fn a_module_uses_what_stands_above_it() {
    let house = House::read();
    nothing_wrong(&uphill(&house));
    // A table that names what is not there hides a typo.
    let there: BTreeSet<&str> = house.inner().map(Source::module).collect();
    assert_eq!(there, MODULES.iter().map(|(name, ..)| *name).collect());
}

/// Circles of files that use each other.
fn circles(house: &House) -> BTreeSet<String> {
    let mut uses: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    for source in house.inner() {
        let edges = uses.entry(&source.file).or_default();
        for used in &source.names {
            if let Some(file) = house.file_of(source, used).filter(|f| *f != source.file) {
                edges.entry(file.to_owned()).or_insert_with(|| used.text());
            }
        }
    }
    let wrong = uses.keys().filter_map(|&start| {
        let circle = circle(&uses, start)?;
        // Once for each circle, not for each file of it.
        (circle.iter().min().map(|(file, _)| file.as_str()) == Some(start)).then(|| {
            let steps = circle.iter().map(|(file, name)| format!("{file} ({name})"));
            format!("{start} -> {}", steps.collect::<Vec<_>>().join(" -> "))
        })
    });
    wrong.collect()
}

#[test]
fn files_of_a_module_use_each_other_one_way() {
    nothing_wrong(&circles(&House::read()));
}

/// The shortest way from a file back to itself: the files that it leads through, each with a name that the one before uses.
fn circle(uses: &BTreeMap<&str, BTreeMap<String, String>>, start: &str) -> Option<Vec<(String, String)>> {
    let mut ways: Vec<Vec<(String, String)>> = vec![Vec::new()];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last().map_or(start, |(file, _)| file.as_str());
            for (file, name) in uses.get(last).into_iter().flatten() {
                let way = || way.iter().cloned().chain([(file.clone(), name.clone())]).collect();
                if file == start {
                    return Some(way());
                }
                if seen.insert(file.clone()) {
                    longer.push(way());
                }
            }
        }
        ways = longer;
    }
    None
}

/// Foreign crates and unsafe code outside their files.
fn trespassers(house: &House) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    for source in house.inner() {
        for used in &source.names {
            let Some(krate) = house.foreign(source, used) else { continue };
            let Some((_, owners)) = OWNERS.iter().find(|(name, _)| *name == krate) else { continue };
            if !owners.iter().any(|o| source.file == *o || source.file.starts_with(&format!("{o}/"))) {
                wrong.insert(format!("{}: {}", source.file, used.text()));
            }
        }
        if source.has_unsafe && !UNSAFE.contains(&source.file.as_str()) {
            wrong.insert(format!("{}: unsafe", source.file));
        }
    }
    wrong
}

#[test]
fn foreign_crates_have_one_owner() {
    nothing_wrong(&trespassers(&House::read()));
}

/// What the core names of threads, clocks, the environment and I/O.
fn impurities(house: &House) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    for source in house.inner().filter(|s| is_core(s)) {
        for used in &source.names {
            let name = source.spelled_out(used);
            let names = |path: &str| name == path || name.starts_with(&format!("{path}::"));
            let impure = IMPURE.iter().any(|p| names(p)) && !PURE.iter().any(|p| names(p));
            if impure || names(CLOCK) || PRINTS.contains(&name.as_str()) {
                wrong.insert(format!("{}: {name}", source.file));
            }
        }
        if source.methods.contains(CLOCK_METHOD) {
            wrong.insert(format!("{}: {CLOCK_METHOD}()", source.file));
        }
    }
    wrong
}

#[test]
fn the_core_has_no_threads_no_clock_no_environment_and_no_io() {
    nothing_wrong(&impurities(&House::read()));
}

#[test]
fn files_can_be_read_in_one_sitting() {
    for source in House::read().all() {
        assert!(source.lines <= LINES, "{} has {} lines, at most {LINES}", source.file, source.lines);
    }
}

/// A house of small files, to try the rules on.
fn house(files: &[(&str, &str)]) -> House {
    House::of(files.iter().map(|&(file, text)| (file.to_owned(), text.to_owned())))
}

#[test]
fn every_way_of_writing_a_use_is_seen() {
    for uphill_use in [
        "use crate::{units, session::{self, Role}};",
        "use super::super::session::Role as R;",
        "fn f() { crate::session::open(); }",
        "fn f(x: &dyn crate::session::Peer) {}",
        "fn f() { println!(\"{}\", crate::session::VERSION); }",
        "#[derive(crate::session::Derived)] struct S;",
        "mod inner { use super::super::super::session::Role; }",
    ] {
        let found = uphill(&house(&[("rvq/search.rs", uphill_use), ("session/mod.rs", ""), ("units.rs", "")]));
        assert!(!found.is_empty(), "{uphill_use}");
    }
    let tests = "#[cfg(test)] mod tests { use crate::session::Role; }";
    assert!(uphill(&house(&[("rvq/search.rs", tests), ("session/mod.rs", "")])).is_empty());
    // Adapters do not know each other.
    assert_eq!(uphill(&house(&[("wire/a.rs", "use crate::infer::A;"), ("infer.rs", "")])).len(), 1);
}

#[test]
fn circles_are_found_through_names_that_are_passed_on() {
    let (one, other) = (("dsp/a.rs", "use super::B;"), ("dsp/b.rs", "use super::a::A;"));
    let found = circles(&house(&[("dsp/mod.rs", "mod a; mod b; pub use b::B;"), one, other]));
    assert_eq!(found.len(), 1, "{found:?}");
    let found = circles(&house(&[("dsp/mod.rs", "mod a; mod b; pub use b::B;"), one, ("dsp/b.rs", "")]));
    assert!(found.is_empty(), "{found:?}");
    // What a module defines itself may not need its parts that use it.
    let found = circles(&house(&[("dsp/mod.rs", "mod a; use a::A; struct S(A);"), ("dsp/a.rs", "use super::S;")]));
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn threads_clocks_environment_and_foreign_crates_are_found_by_any_name() {
    for impure in [
        "use std::{fmt, env as e};",
        "fn f() { std::thread::yield_now(); }",
        "use std::time::Instant as I; fn f() { I::now(); }",
        "fn f(at: std::time::Instant) { at.elapsed(); }",
        "use std::time::{Duration, SystemTime};",
        "fn f() { eprintln!(\"x\"); }",
    ] {
        assert!(!impurities(&house(&[("dsp/a.rs", impure)])).is_empty(), "{impure}");
    }
    let pure = "use std::time::{Duration, Instant}; fn f(now: Instant) -> Instant { now + Duration::ZERO }";
    assert!(impurities(&house(&[("dsp/a.rs", pure)])).is_empty());
    for foreign in ["use ort as o;", "fn f() { ::ort::init(); }", "#[ort::test] fn f() {}", "unsafe fn f() {}"] {
        assert_eq!(trespassers(&house(&[("dsp/a.rs", foreign)])).len(), 1, "{foreign}");
    }
    // A variable may be called what it likes.
    assert!(trespassers(&house(&[("dsp/a.rs", "fn f(png: u8) -> u8 { png }")])).is_empty());
}
