//! The daemon's configuration: raw TOML -> checked values. packaging/undertone.toml shows every key.

mod device;
mod error;
mod record;
mod security;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::engine::EngineOptions;
use crate::infer::Networks;
use crate::jitter::Pace;
use crate::profile::Profile;
use crate::session::{StreamName, Timeouts};
use crate::units::{OutOfRange, PcmFormat, StageCount};
pub use device::DevicePort;
use device::RawDevice;
pub use error::ConfigError;
use error::{value_error, within};
pub use nats::Nats;
use nats::RawNats;
use record::RawRecord;
pub use record::{Fsync, Record};
use security::{Guard, RawTls, RawToken, address};
pub use security::{Tls, Token};

/// What the daemon runs with.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Whether addresses may be other than loopback without encryption and login.
    pub allow_public: bool,
    /// TLS of every port that is not `plain`; None is none.
    pub tls: Option<Tls>,
    /// Who may publish and subscribe codes; empty is everybody.
    pub tokens: Vec<Token>,
    /// Where raw samples come in.
    pub pcm_input: Vec<PcmPort>,
    /// Where raw samples go out.
    pub pcm_output: Vec<PcmPort>,
    /// Microphones that become streams.
    pub device_input: Vec<DevicePort>,
    /// Loudspeakers that play streams.
    pub device_output: Vec<DevicePort>,
    /// Where codes are published and subscribed.
    pub codes: Option<SocketAddr>,
    /// Where codes are published and subscribed over UDP.
    pub udp: Option<SocketAddr>,
    /// Where operators ask for health and metrics, and browsers for the page.
    pub http: Option<SocketAddr>,
    /// How other daemons are reached; None is not at all.
    pub nats: Option<Nats>,
    /// Names by which browsers may reach the page, besides addresses and localhost.
    pub http_names: Vec<String>,
    /// Recording of streams; None is none.
    pub record: Option<Record>,
    /// What clients may do.
    pub limits: Limits,
    /// How raw samples are encoded.
    pub codec: Codec,
    /// The engine.
    pub engine: Engine,
    /// The log.
    pub log: Log,
}

/// A port for raw samples of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcmPort {
    /// Address.
    pub listen: SocketAddr,
    /// Stream that the samples become, or come from.
    pub stream: StreamName,
    /// Format of the samples.
    pub format: PcmFormat,
    /// No TLS here even if the daemon has it.
    pub plain: bool,
    /// Where samples come in: whether they are worth less when they are late.
    pub pace: Pace,
}

/// What clients may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, over all ports.
    pub max_connections: usize,
    /// Connections at once of one address; an IPv6 network of 64 bits counts as one.
    pub max_connections_per_address: usize,
    /// New connections a second of one address; as many may come at once.
    pub new_connections_per_s: u32,
    /// Patience with handshakes and silence.
    pub timeouts: Timeouts,
    /// Bundles that wait for a listener before it skips ahead, and if that does not help is closed as too slow.
    pub listener_queue: usize,
    /// How late live sound may be before it is left out.
    pub max_lag: Duration,
    /// Bytes that the system may hold for a listener of codes.
    pub send_buffer: u32,
    /// Sessions at once whose bundles are range-coded.
    pub coded_sessions: usize,
}

/// How raw samples are encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Codec {
    /// Model folder; None is the shipped model.
    pub model: Option<PathBuf>,
    /// Stages of new streams.
    pub stages: StageCount,
    /// Loud bundles get more stages and quiet ones fewer.
    pub graded: bool,
    /// Frames of 20 ms in a bundle.
    pub frames_per_bundle: u8,
}

/// The engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Engine {
    /// Threads; 0 is one for every core.
    pub threads: usize,
    /// Whether each thread is kept to a core, where there is one for each.
    pub pin: bool,
    /// Streams that may be encoded or decoded here at once.
    pub slots: usize,
    /// Most jobs in one network call.
    pub max_batch: usize,
    /// How long a call waits for company.
    pub gather: Duration,
    /// How the networks compute.
    pub networks: Networks,
}

impl Engine {
    /// As the engine takes it.
    pub fn options(&self) -> EngineOptions {
        let default = EngineOptions::default();
        EngineOptions {
            threads: if self.threads == 0 { default.threads } else { self.threads },
            slots: self.slots,
            max_batch: self.max_batch,
            gather: self.gather,
            pin: self.pin,
        }
    }
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Filter, as in `info` or `undertone=debug`.
    pub level: String,
    /// Where it goes.
    pub target: LogTarget,
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogTarget {
    /// The journal under systemd, else the standard error.
    Auto,
    /// The standard error.
    Stderr,
    /// The systemd journal.
    Journald,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    allow_public: bool,
    tls: RawTls,
    token: Vec<RawToken>,
    pcm_input: Option<Vec<RawPort>>,
    pcm_output: Option<Vec<RawPort>>,
    device_input: Vec<RawDevice>,
    device_output: Vec<RawDevice>,
    codes: RawCodes,
    http: RawHttp,
    nats: RawNats,
    record: RawRecord,
    udp: RawUdp,
    limits: RawLimits,
    codec: RawCodec,
    engine: RawEngine,
    log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    listen: String,
    stream: String,
    #[serde(default = "codec_format")]
    format: String,
    #[serde(default)]
    plain: bool,
    #[serde(default)]
    pace: RawPace,
}

/// [`Pace`] as it is written.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawPace {
    #[default]
    Auto,
    Live,
    Recording,
}

impl From<RawPace> for Pace {
    fn from(pace: RawPace) -> Self {
        match pace {
            RawPace::Auto => Self::Unknown,
            RawPace::Live => Self::Live,
            RawPace::Recording => Self::Recording,
        }
    }
}

fn codec_format() -> String {
    PcmFormat::CODEC.to_string()
}

/// Declares a section whose keys have defaults.
macro_rules! section {
    ($name:ident { $($key:ident: $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Debug, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name { $($key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

mod nats;

section!(RawCodes { listen: String = "127.0.0.1:7701".to_owned() });
section!(RawHttp { listen: String = String::new(), names: Vec<String> = Vec::new() });
section!(RawUdp { listen: String = String::new() });
section!(RawLimits {
    max_connections: usize = 256,
    max_connections_per_address: usize = 256,
    new_connections_per_s: u32 = 200,
    handshake_s: f64 = 5.0,
    idle_s: f64 = 30.0,
    listener_queue_bundles: usize = 64,
    max_lag_ms: u64 = 400,
    send_buffer_bytes: u32 = 16_384,
    coded_sessions: usize = 64,
});
section!(RawCodec { model: String = String::new(), kbps: f64 = 6.0, graded: bool = true, frames_per_bundle: u8 = 5 });
section!(RawEngine {
    threads: usize = 0,
    pin: bool = true,
    slots: usize = 128,
    max_batch: usize = 32,
    gather_us: u64 = 500,
    networks: String = "int8".to_owned(),
});
section!(RawLog { level: String = "info".to_owned(), target: LogTarget = LogTarget::Auto });

impl Default for Config {
    fn default() -> Self {
        Self::parse("").expect("the defaults are within their own ranges")
    }
}

impl Config {
    /// Reads a file.
    ///
    /// Errors: [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads TOML text; keys left out have their defaults.
    ///
    /// Errors: [`ConfigError`] naming the key, the value and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let public = raw.allow_public;
        let tls = raw.tls.check()?;
        let tokens = raw.token.into_iter().map(RawToken::check).collect::<Result<Vec<_>, _>>()?;
        let port = |key, listen: &str| RawPort {
            listen: listen.to_owned(),
            stream: key,
            format: codec_format(),
            plain: false,
            pace: RawPace::Auto,
        };
        let input = raw.pcm_input.unwrap_or_else(|| vec![port("main".to_owned(), "127.0.0.1:7700")]);
        let output = raw.pcm_output.unwrap_or_else(|| vec![port("main".to_owned(), "127.0.0.1:7702")]);
        let ports = |key: &'static str, ports: Vec<RawPort>| {
            ports.into_iter().map(|p| p.check(key)).collect::<Result<Vec<_>, _>>()
        };
        let devices = |key: &'static str, devices: Vec<RawDevice>| {
            devices.into_iter().map(|d| d.check(key)).collect::<Result<Vec<_>, _>>()
        };
        let codes = match raw.codes.listen.as_str() {
            "" => None,
            listen => Some(address("codes.listen", listen)?),
        };
        let http = match raw.http.listen.as_str() {
            "" => None,
            listen => Some(address("http.listen", listen)?),
        };
        let udp = match raw.udp.listen.as_str() {
            "" => None,
            listen => Some(address("udp.listen", listen)?),
        };
        let seconds = |key, got| within(key, got, 0.05, 86_400.0).map(Duration::from_secs_f64);
        let stages = StageCount::from_kbps(raw.codec.kbps)
            .map_err(|e| value_error("codec.kbps", raw.codec.kbps, e.to_string()))?;
        let config = Self {
            allow_public: public,
            tls,
            tokens,
            pcm_input: ports("pcm_input", input)?,
            pcm_output: ports("pcm_output", output)?,
            device_input: devices("device_input", raw.device_input)?,
            device_output: devices("device_output", raw.device_output)?,
            codes,
            http,
            nats: raw.nats.check()?,
            http_names: raw.http.names,
            record: raw.record.check()?,
            udp,
            limits: Limits {
                max_connections: within("limits.max_connections", raw.limits.max_connections, 1, 100_000)?,
                max_connections_per_address: within(
                    "limits.max_connections_per_address",
                    raw.limits.max_connections_per_address,
                    1,
                    100_000,
                )?,
                new_connections_per_s: within(
                    "limits.new_connections_per_s",
                    raw.limits.new_connections_per_s,
                    1,
                    100_000,
                )?,
                timeouts: Timeouts {
                    handshake: seconds("limits.handshake_s", raw.limits.handshake_s)?,
                    idle: seconds("limits.idle_s", raw.limits.idle_s)?,
                },
                listener_queue: within(
                    "limits.listener_queue_bundles",
                    raw.limits.listener_queue_bundles,
                    // A publisher may be half a second ahead: 25 bundles of one frame.
                    32,
                    10_000,
                )?,
                max_lag: Duration::from_millis(within("limits.max_lag_ms", raw.limits.max_lag_ms, 100, 60_000)?),
                send_buffer: within("limits.send_buffer_bytes", raw.limits.send_buffer_bytes, 4_096, 4_194_304)?,
                coded_sessions: within("limits.coded_sessions", raw.limits.coded_sessions, 0, 100_000)?,
            },
            codec: Codec {
                model: (!raw.codec.model.is_empty()).then(|| PathBuf::from(raw.codec.model)),
                stages,
                graded: raw.codec.graded,
                frames_per_bundle: within(
                    "codec.frames_per_bundle",
                    raw.codec.frames_per_bundle,
                    1,
                    Profile::MAX_FRAMES_PER_BUNDLE,
                )?,
            },
            engine: Engine {
                threads: within("engine.threads", raw.engine.threads, 0, 1024)?,
                pin: raw.engine.pin,
                slots: within("engine.slots", raw.engine.slots, 1, 100_000)?,
                max_batch: within("engine.max_batch", raw.engine.max_batch, 1, 256)?,
                gather: Duration::from_micros(within("engine.gather_us", raw.engine.gather_us, 0, 20_000)?),
                networks: raw
                    .engine
                    .networks
                    .parse()
                    .map_err(|_| value_error("engine.networks", &raw.engine.networks, "allowed float, int8"))?,
            },
            log: Log { level: raw.log.level, target: raw.log.target },
        };
        config.check_addresses()?;
        Ok(config)
    }

    /// Keys that differ in `new` and take effect only after a restart.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        [
            ("pcm_input", self.pcm_input != new.pcm_input),
            ("pcm_output", self.pcm_output != new.pcm_output),
            ("device_input", self.device_input != new.device_input),
            ("device_output", self.device_output != new.device_output),
            ("http.listen", self.http != new.http),
            ("record", self.record != new.record),
            ("udp.listen", self.udp != new.udp),
            ("codes.listen", self.codes != new.codes),
            ("nats", self.nats != new.nats),
            ("tls (its files may change)", self.tls != new.tls),
            ("limits.send_buffer_bytes", self.limits.send_buffer != new.limits.send_buffer),
            ("limits.coded_sessions", self.limits.coded_sessions != new.limits.coded_sessions),
            ("codec.model", self.codec.model != new.codec.model),
            ("engine", self.engine != new.engine),
            ("log.target", self.log.target != new.log.target),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

impl Config {
    /// Whether every address that other machines can reach is guarded by encryption and login, or allowed.
    ///
    /// Errors: [`ConfigError::Value`] naming the address and what is missing.
    pub fn check_addresses(&self) -> Result<(), ConfigError> {
        // A client certificate is a login for every port; a token only where the protocol carries one.
        let certified = self.tls.as_ref().is_some_and(|t| t.client_ca.is_some());
        let guard = Guard { allow_public: self.allow_public, tls: self.tls.is_some(), login: certified };
        let raw = |port: &PcmPort| Guard { tls: guard.tls && !port.plain, login: certified && !port.plain, ..guard };
        self.pcm_input.iter().try_for_each(|p| security::open("pcm_input", p.listen, raw(p)))?;
        self.pcm_output.iter().try_for_each(|p| security::open("pcm_output", p.listen, raw(p)))?;
        let codes = Guard { login: certified || !self.tokens.is_empty(), ..guard };
        self.udp.iter().try_for_each(|&a| security::open_datagrams("udp.listen", a, self.allow_public))?;
        self.codes.iter().try_for_each(|&a| security::open("codes.listen", a, codes))?;
        self.http.iter().try_for_each(|&a| security::open("http.listen", a, guard))
    }
}

impl RawPort {
    fn check(self, key: &'static str) -> Result<PcmPort, ConfigError> {
        let bad = |e: OutOfRange| value_error(key, &e.got, format!("{} must be {}", e.what, e.allowed));
        Ok(PcmPort {
            listen: address(key, &self.listen)?,
            stream: StreamName::new(&self.stream).map_err(bad)?,
            format: self.format.parse().map_err(bad)?,
            plain: self.plain,
            pace: self.pace.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../packaging/undertone.toml");

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        assert_eq!(Config::parse(SHIPPED).unwrap(), Config::default());
        for key in [
            "allow_public",
            "[tls]",
            "cert",
            "key",
            "client_ca",
            "# [[token]]",
            "max_connections_per_address",
            "new_connections_per_s",
            "plain",
            "[[pcm_input]]",
            "[[pcm_output]]",
            "# [[device_input]]",
            "# [[device_output]]",
            "# device",
            "listen",
            "stream",
            "format",
            "[codes]",
            "[http]",
            "[nats]",
            "url",
            "credentials",
            "ca",
            "prefix",
            "replay_s",
            "replay_bytes",
            "names",
            "[record]",
            "folder",
            "streams",
            "rotate_minutes",
            "rotate_mb",
            "disk_mb",
            "fsync",
            "[udp]",
            "max_connections",
            "handshake_s",
            "idle_s",
            "listener_queue_bundles",
            "max_lag_ms",
            "pace",
            "send_buffer_bytes",
            "model",
            "kbps",
            "frames_per_bundle",
            "threads",
            "slots",
            "max_batch",
            "gather_us",
            "networks",
            "level",
            "target",
        ] {
            assert!(SHIPPED.lines().any(|l| l.starts_with(key)), "{key}");
        }
    }

    #[test]
    fn errors_name_key_value_and_range() {
        for (text, wanted) in [
            ("nonsense = 1", vec!["nonsense"]),
            ("[codec]\nkbits = 3", vec!["kbits"]),
            ("[codec]\nkbps = 13", vec!["codec.kbps", "13", "0.5 to 12"]),
            ("[codec]\nframes_per_bundle = 51", vec!["frames_per_bundle", "51", "1 to 50"]),
            ("[limits]\nmax_lag_ms = 50", vec!["limits.max_lag_ms", "50", "100 to 60000"]),
            (
                "[[pcm_input]]\nlisten = \"127.0.0.1:1\"\nstream = \"a\"\npace = \"slow\"",
                vec!["slow", "auto", "recording"],
            ),
            ("[limits]\nidle_s = -1", vec!["idle_s", "-1", "0.05 to 86400"]),
            ("[codes]\nlisten = \"0.0.0.0:7701\"", vec!["codes.listen", "0.0.0.0:7701", "allow_public"]),
            ("[udp]\nlisten = \"0.0.0.0:7704\"", vec!["udp.listen", "0.0.0.0:7704", "allow_public"]),
            ("[codes]\nlisten = \"here\"", vec!["codes.listen", "here", "ADDRESS:PORT"]),
            ("[[pcm_input]]\nlisten = \"127.0.0.1:1\"\nstream = \"a b\"", vec!["pcm_input", "a b", "1 to 64"]),
            ("[nats]\nprefix = \"a.b\"", vec!["nats.prefix", "a.b", "1 to 32"]),
            ("[nats]\nurl = \"http://a\"", vec!["nats.url", "nats://", "tls://"]),
            ("[nats]\nreplay_bytes = 5", vec!["nats.replay_bytes", "5", "1048576 to"]),
            ("[log]\ntarget = \"file\"", vec!["target", "file"]),
        ] {
            let e = Config::parse(text).unwrap_err().to_string();
            assert!(wanted.iter().all(|w| e.contains(w)), "{e}");
        }
        assert!(Config::parse("allow_public = true\n[codes]\nlisten = \"0.0.0.0:7701\"").is_ok());
    }

    #[test]
    fn a_reload_says_what_it_cannot_change() {
        let old = Config::default();
        let new = Config::parse("[codec]\nkbps = 3\n[codes]\nlisten = \"127.0.0.1:1\"\n[engine]\nslots = 3").unwrap();
        assert_eq!(old.needs_restart(&new), ["codes.listen", "engine"]);
    }
}
