//! The daemon's configuration: raw TOML -> checked values. packaging/undertone.toml shows every key.

/// Declares a section whose keys have defaults.
macro_rules! section {
    ($name:ident { $($key:ident: $type:ty = $default:expr),* $(,)? }) => {
        #[derive(Debug, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name { $($key: $type,)* }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }
    };
}

mod device;
mod error;
mod http;
mod limits;
mod log;
mod nats;
mod record;
mod reload;
mod security;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::engine::{EffortMode, EngineOptions};
use crate::infer::Networks;
use crate::jitter::Pace;
use crate::profile::Profile;
use crate::session::StreamName;
use crate::units::{OutOfRange, PcmFormat, StageCount};
pub use device::DevicePort;
use device::RawDevice;
pub use error::ConfigError;
use error::{value_error, within};
pub use http::Http;
use http::RawHttp;
pub use limits::Limits;
use limits::RawLimits;
use log::RawLog;
pub use log::{Log, LogTarget};
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
    /// Where codes are published and subscribed over QUIC.
    pub quic: Option<SocketAddr>,
    /// Where operators ask for health and metrics, and browsers for the page.
    pub http: Http,
    /// How other daemons are reached; None is not at all.
    pub nats: Option<Nats>,
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

/// How raw samples are encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Codec {
    /// Model folder; None is the shipped model.
    pub model: Option<PathBuf>,
    /// Stages of new streams.
    pub stages: StageCount,
    /// Loud bundles get more stages and quiet ones fewer.
    pub graded: bool,
    /// Silence is described instead of sent.
    pub dtx: bool,
    /// Frames of 20 ms in a bundle.
    pub frames_per_bundle: u8,
    /// Every message to a listener has one size.
    pub constant: bool,
    /// How much is searched.
    pub effort: EffortMode,
}

impl Codec {
    /// Whether a daemon that starts with this needs nothing to search with.
    pub fn is_never_searched(&self) -> bool {
        self.effort == EffortMode::Steps(0)
    }
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
    quic: RawQuic,
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

section!(RawCodes { listen: String = "127.0.0.1:7701".to_owned() });
section!(RawQuic { listen: String = String::new() });
section!(RawCodec {
    model: String = String::new(),
    kbps: f64 = 6.0,
    graded: bool = true,
    dtx: bool = true,
    frames_per_bundle: u8 = 5,
    constant: bool = false,
    effort: RawEffort = RawEffort::Word("auto".to_owned())
});
/// [`EffortMode`] as it is written.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RawEffort {
    Steps(u32),
    Word(String),
}

impl RawEffort {
    fn check(self) -> Result<EffortMode, ConfigError> {
        match self {
            Self::Steps(steps) => within("codec.effort", steps, 0, 200).map(EffortMode::Steps),
            Self::Word(word) if word == "auto" => Ok(EffortMode::Auto),
            Self::Word(word) if word == "off" => Ok(EffortMode::Steps(0)),
            Self::Word(word) => Err(value_error("codec.effort", word, "allowed \"off\", \"auto\", 0 to 200")),
        }
    }
}

section!(RawEngine {
    threads: usize = 0,
    pin: bool = true,
    slots: usize = 128,
    max_batch: usize = 32,
    gather_us: u64 = 500,
    networks: String = "int8".to_owned(),
});

impl Default for Config {
    fn default() -> Self {
        Self::parse("").expect("the defaults are within their own ranges")
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Reads TOML text; keys left out have their defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the key, the value and what is allowed.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|e| ConfigError::syntax(text, &e))?;
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
        let quic = match raw.quic.listen.as_str() {
            "" => None,
            listen => Some(address("quic.listen", listen)?),
        };
        let config = Self {
            allow_public: public,
            tls,
            tokens,
            pcm_input: ports("pcm_input", input)?,
            pcm_output: ports("pcm_output", output)?,
            device_input: devices("device_input", raw.device_input)?,
            device_output: devices("device_output", raw.device_output)?,
            codes,
            http: raw.http.check()?,
            nats: raw.nats.check()?,
            record: raw.record.check()?,
            quic,
            limits: raw.limits.check()?,
            codec: raw.codec.check()?,
            engine: raw.engine.check()?,
            log: raw.log.check()?,
        };
        config.check_addresses()?;
        config.check_distinct()?;
        Ok(config)
    }
}

impl Config {
    /// Whether no two ports have one address: the second would not open. Datagrams have numbers of their own.
    fn check_distinct(&self) -> Result<(), ConfigError> {
        let raw = |key: &'static str, ports: &[PcmPort]| ports.iter().map(|p| (key, p.listen)).collect::<Vec<_>>();
        let single = |key: &'static str, address: Option<SocketAddr>| address.map(|a| (key, a));
        let mut all = raw("pcm_input", &self.pcm_input);
        all.extend(raw("pcm_output", &self.pcm_output));
        all.extend(single("codes.listen", self.codes));
        all.extend(single("http.listen", self.http.listen));
        for (n, (key, address)) in all.iter().enumerate().filter(|(_, (_, a))| a.port() != 0) {
            if let Some((other, _)) = all[..n].iter().find(|(_, a)| a == address) {
                return Err(value_error(key, address, format!("{other} listens there already")));
            }
        }
        Ok(())
    }

    /// Whether every address that other machines can reach is guarded by encryption and login, or allowed.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the address and what is missing.
    pub fn check_addresses(&self) -> Result<(), ConfigError> {
        // A client certificate is a login for every port; a token only where the protocol carries one.
        let certified = self.tls.as_ref().is_some_and(|t| t.client_ca.is_some());
        let guard = Guard { allow_public: self.allow_public, tls: self.tls.is_some(), login: certified };
        let raw = |port: &PcmPort| Guard { tls: guard.tls && !port.plain, login: certified && !port.plain, ..guard };
        self.pcm_input.iter().try_for_each(|p| security::open("pcm_input", p.listen, raw(p)))?;
        self.pcm_output.iter().try_for_each(|p| security::open("pcm_output", p.listen, raw(p)))?;
        let codes = Guard { login: certified || !self.tokens.is_empty(), ..guard };
        self.quic.iter().try_for_each(|&a| security::open_quic("quic.listen", a, codes))?;
        self.codes.iter().try_for_each(|&a| security::open("codes.listen", a, codes))?;
        self.http.check_address(codes)
    }
}

impl RawCodec {
    fn check(self) -> Result<Codec, ConfigError> {
        let stages =
            StageCount::from_kbps(self.kbps).map_err(|e| value_error("codec.kbps", self.kbps, e.to_string()))?;
        Ok(Codec {
            model: (!self.model.is_empty()).then(|| PathBuf::from(self.model)),
            stages,
            graded: self.graded,
            dtx: self.dtx,
            frames_per_bundle: within(
                "codec.frames_per_bundle",
                self.frames_per_bundle,
                1,
                Profile::MAX_FRAMES_PER_BUNDLE,
            )?,
            constant: self.constant,
            effort: self.effort.check()?,
        })
    }
}

impl RawEngine {
    fn check(self) -> Result<Engine, ConfigError> {
        Ok(Engine {
            threads: within("engine.threads", self.threads, 0, 1024)?,
            pin: self.pin,
            slots: within("engine.slots", self.slots, 1, 100_000)?,
            max_batch: within("engine.max_batch", self.max_batch, 1, 256)?,
            gather: Duration::from_micros(within("engine.gather_us", self.gather_us, 0, 20_000)?),
            networks: self
                .networks
                .parse()
                .map_err(|_| value_error("engine.networks", &self.networks, "allowed float, int8"))?,
        })
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
    fn two_ports_with_one_address_are_refused() {
        let output = "[[pcm_output]]\nlisten = \"127.0.0.1:5\"\nstream = \"a\"\n";
        for (text, wanted) in [
            (format!("{output}{output}"), "pcm_output = 127.0.0.1:5: pcm_output listens there already"),
            (format!("{output}[codes]\nlisten = \"127.0.0.1:5\"\n"), "codes.listen"),
            ("[codes]\nlisten = \"127.0.0.1:7703\"\n".to_owned(), "http.listen"),
        ] {
            let e = Config::parse(&text).unwrap_err().to_string();
            assert!(e.contains(wanted), "{e}");
        }
        let apart = format!("{output}[quic]\nlisten = \"127.0.0.1:5\"\n[codes]\nlisten = \"127.0.0.1:0\"\n");
        assert!(Config::parse(&format!("{apart}[http]\nlisten = \"127.0.0.1:0\"\n")).is_ok());
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        assert_eq!(Config::parse(SHIPPED).unwrap(), Config::default());
        let keys = "allow_public, [tls], cert, key, client_ca, # [[token]], max_connections_per_address, \
            reserved_percent, public_url, status_without_token, new_connections_per_s, plain, [[pcm_input]], \
            [[pcm_output]], # [[device_input]], # [[device_output]], # device, listen, stream, format, \
            [codes], [http], [nats], url, credentials, ca, prefix, replay_s, replay_bytes, names, [record], \
            folder, streams, rotate_minutes, rotate_mb, disk_mb, fsync, [quic], max_connections, \
            handshake_s, idle_s, listener_queue_bundles, max_lag_ms, pace, send_buffer_bytes, model, kbps, \
            frames_per_bundle, constant, effort, threads, slots, max_batch, gather_us, networks, level, \
            target";
        for key in keys.split(", ") {
            assert!(SHIPPED.lines().any(|l| l.starts_with(key)), "{key}");
        }
    }

    #[test]
    fn errors_name_key_value_and_range() {
        for (text, wanted) in [
            ("nonsense = 1", vec!["nonsense"]),
            ("[codec]\nkbits = 3", vec!["kbits"]),
            ("[codec]\nkbps = 13", vec!["codec.kbps", "13", "0.5 to 12"]),
            ("[codec]\neffort = \"much\"", vec!["codec.effort", "much", "auto"]),
            ("[codec]\neffort = 201", vec!["codec.effort", "201", "0 to 200"]),
            ("[codec]\nframes_per_bundle = 51", vec!["frames_per_bundle", "51", "1 to 50"]),
            ("[limits]\nmax_lag_ms = 50", vec!["limits.max_lag_ms", "50", "100 to 60000"]),
            (
                "[[pcm_input]]\nlisten = \"127.0.0.1:1\"\nstream = \"a\"\npace = \"slow\"",
                vec!["slow", "auto", "recording"],
            ),
            ("[limits]\nidle_s = -1", vec!["idle_s", "-1", "0.05 to 86400"]),
            ("[codes]\nlisten = \"0.0.0.0:7701\"", vec!["codes.listen", "0.0.0.0:7701", "allow_public"]),
            ("[quic]\nlisten = \"0.0.0.0:7704\"", vec!["quic.listen", "0.0.0.0:7704", "tls"]),
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
        let effort = |text: &str| Config::parse(&format!("[codec]\neffort = {text}")).unwrap().codec.effort;
        assert_eq!(
            [effort("\"off\""), effort("\"auto\""), effort("7")],
            [EffortMode::Steps(0), EffortMode::Auto, EffortMode::Steps(7)]
        );
        assert!(Config::parse("allow_public = true\n[codes]\nlisten = \"0.0.0.0:7701\"").is_ok());
    }
}
