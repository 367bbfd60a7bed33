//! Who may connect: TLS files, tokens and their rights.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{ConfigError, value_error};
use crate::session::{Role, StreamName};

/// Shortest secret of a token, in bytes.
const MIN_SECRET: usize = 16;
/// Longest secret of a token, in bytes; the protocol carries no more.
const MAX_SECRET: usize = 1024;

/// Files of the server's TLS; all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain of the server, its own certificate first.
    pub cert: PathBuf,
    /// Private key of the first certificate.
    pub key: PathBuf,
    /// Authorities one of which must have signed a client's certificate; None asks for no certificate.
    pub client_ca: Option<PathBuf>,
}

/// A bearer token: the digest of its secret, and its rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Name in the log; not secret.
    pub name: String,
    /// SHA-256 of the secret, so that the secret itself is neither kept nor printed.
    pub digest: [u8; 32],
    publish: Vec<Pattern>,
    listen: Vec<Pattern>,
}

impl Token {
    /// Digest of a secret as a client sends it.
    pub fn digest(secret: &str) -> [u8; 32] {
        Sha256::digest(secret.as_bytes()).into()
    }

    /// Whether the token gives this right.
    pub fn allows(&self, role: Role, stream: &StreamName) -> bool {
        let patterns = match role {
            Role::Publish => &self.publish,
            Role::Subscribe => &self.listen,
        };
        patterns.iter().any(|p| p.covers(stream))
    }
}

/// Stream names: one of them, or all that begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pattern {
    Name(StreamName),
    Prefix(String),
}

impl Pattern {
    pub(super) fn parse(key: &'static str, text: &str) -> Result<Self, ConfigError> {
        let bad = || value_error(key, text, "allowed: a stream name, or its beginning and a * (a.*, *)");
        match text.strip_suffix('*') {
            Some("") => Ok(Self::Prefix(String::new())),
            Some(start) => StreamName::new(start).map(|_| Self::Prefix(start.to_owned())).map_err(|_| bad()),
            None => StreamName::new(text).map(Self::Name).map_err(|_| bad()),
        }
    }

    pub(super) fn covers(&self, stream: &StreamName) -> bool {
        match self {
            Self::Name(name) => name == stream,
            Self::Prefix(start) => stream.as_str().starts_with(start),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTls {
    cert: String,
    key: String,
    client_ca: String,
}

impl RawTls {
    pub(super) fn check(self) -> Result<Option<Tls>, ConfigError> {
        let client_ca = (!self.client_ca.is_empty()).then(|| PathBuf::from(&self.client_ca));
        match (self.cert.as_str(), self.key.as_str()) {
            ("", "") if client_ca.is_none() => Ok(None),
            ("", _) => Err(value_error("tls.cert", "\"\"", "tls.cert and tls.key must both be given")),
            (_, "") => Err(value_error("tls.key", "\"\"", "tls.cert and tls.key must both be given")),
            (cert, key) => Ok(Some(Tls { cert: cert.into(), key: key.into(), client_ca })),
        }
    }
}

// No Debug: it would print the secret.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawToken {
    name: String,
    #[serde(default)]
    secret: String,
    #[serde(default)]
    secret_file: String,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    listen: Vec<String>,
}

impl std::fmt::Debug for RawToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawToken").field("name", &self.name).finish_non_exhaustive()
    }
}

impl RawToken {
    pub(super) fn check(self) -> Result<Token, ConfigError> {
        let secret = match (self.secret.is_empty(), self.secret_file.is_empty()) {
            (false, true) => self.secret,
            (true, false) => {
                let path = PathBuf::from(self.secret_file);
                let text = std::fs::read_to_string(&path).map_err(|source| unreadable(&self.name, path, source))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            _ => return Err(value_error("token", &self.name, "give either secret or secret_file")),
        };
        if !(MIN_SECRET..=MAX_SECRET).contains(&secret.len()) {
            // The length only: this text goes into the log.
            let got = format!("a secret of {} bytes for token {}", secret.len(), self.name);
            return Err(value_error("token", got, format!("allowed {MIN_SECRET} to {MAX_SECRET} bytes")));
        }
        if secret.chars().any(char::is_control) {
            let got = format!("a secret of {} bytes for token {}", secret.len(), self.name);
            return Err(value_error(
                "token",
                got,
                "one line, without a line break or another control character inside",
            ));
        }
        if self.publish.is_empty() && self.listen.is_empty() {
            return Err(value_error("token", &self.name, "it may neither publish nor listen; name streams, or \"*\""));
        }
        let patterns = |list: Vec<String>| {
            list.iter().map(|p| Pattern::parse("token.publish or token.listen", p)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Token {
            digest: Token::digest(&secret),
            publish: patterns(self.publish)?,
            listen: patterns(self.listen)?,
            name: self.name,
        })
    }
}

/// The file of a token that cannot be read. What does not look like a path may be the secret itself, put at the wrong key.
fn unreadable(name: &str, path: PathBuf, source: std::io::Error) -> ConfigError {
    let text = path.to_string_lossy();
    let in_a_folder = path.parent().is_some_and(|p| p.components().count() > 1 && p.is_dir());
    if in_a_folder || path.extension().is_some_and(|e| e.len() <= 8) {
        return ConfigError::Io { path, source };
    }
    let got = format!("a name of {} bytes for token {name}", text.len());
    value_error("token.secret_file", got, format!("{source} (relative names start at the working directory)"))
}

/// What makes an address safe to open to other machines.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    /// The operator said so.
    pub(super) allow_public: bool,
    /// The port speaks TLS.
    pub(super) tls: bool,
    /// Who connects must prove who they are.
    pub(super) login: bool,
}

/// Reads an address.
pub(super) fn address(key: &'static str, listen: &str) -> Result<SocketAddr, ConfigError> {
    listen.parse().map_err(|_| value_error(key, listen, "allowed: ADDRESS:PORT, as in 127.0.0.1:7701"))
}

/// Whether the address may be listened on.
pub(super) fn open(key: &'static str, address: SocketAddr, guard: Guard) -> Result<(), ConfigError> {
    let loopback = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    };
    let missing = match (guard.tls, guard.login) {
        _ if loopback || guard.allow_public => return Ok(()),
        (true, true) => return Ok(()),
        (true, false) => "login",
        (false, true) => "encryption",
        (false, false) => "encryption and login",
    };
    let tokens = ["codes.listen", "quic.listen", "http.listen"].contains(&key);
    let cure = if tokens { "[[token]] or tls.client_ca" } else { "tls.client_ca" };
    let allowed = format!(
        "not a loopback address, and this port is without {missing}: set [tls] cert and key and {cure}, \
         or allow_public = true if you mean it"
    );
    Err(value_error(key, address, allowed))
}

/// Whether an address may be listened on for QUIC, which is encrypted in any case: without certificates of the operator's nobody
/// but this machine would trust it.
///
/// # Errors
/// [`ConfigError::Value`].
pub(super) fn open_quic(key: &'static str, address: SocketAddr, guard: Guard) -> Result<(), ConfigError> {
    if !guard.tls && !address.ip().is_loopback() {
        let allowed =
            "not a loopback address: QUIC needs a certificate there that clients can check, [tls] cert and key";
        return Err(value_error(key, address, allowed));
    }
    open(key, address, guard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const TLS: &str = "[tls]\ncert = \"c.pem\"\nkey = \"k.pem\"\n";
    const TOKEN: &str = "[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\npublish = [\"a\", \"radio.*\"]\n";

    #[test]
    fn rights_are_by_role_and_stream() {
        let token = &Config::parse(TOKEN).unwrap().tokens[0];
        let allows = |role, name: &str| token.allows(role, &StreamName::new(name).unwrap());
        assert!(allows(Role::Publish, "a") && allows(Role::Publish, "radio.1"));
        assert!(!allows(Role::Publish, "ab") && !allows(Role::Publish, "radio") && !allows(Role::Subscribe, "a"));
        assert!(!format!("{token:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn a_public_address_needs_encryption_and_login() {
        let codes = "[codes]\nlisten = \"0.0.0.0:1\"\n";
        for (text, word) in [
            (codes.to_owned(), "encryption and login"),
            (format!("{codes}{TLS}"), "without login"),
            (format!("{codes}{TOKEN}"), "without encryption"),
            // Raw samples carry no token.
            (format!("[[pcm_input]]\nlisten = \"0.0.0.0:1\"\nstream = \"a\"\n{TLS}{TOKEN}"), "without login"),
            (
                format!("[[pcm_input]]\nlisten = \"0.0.0.0:1\"\nstream = \"a\"\nplain = true\n{TLS}client_ca = \"x\""),
                "without encryption and login",
            ),
        ] {
            let e = Config::parse(&text).unwrap_err().to_string();
            assert!(e.contains(word) && e.contains("0.0.0.0:1") && e.contains("allow_public"), "{e}");
            assert!(Config::parse(&format!("allow_public = true\n{text}")).is_ok());
        }
        assert!(Config::parse(&format!("{codes}{TLS}{TOKEN}")).is_ok());
        assert!(Config::parse(&format!("{codes}{TLS}client_ca = \"x\"")).is_ok());
    }

    #[test]
    fn errors_do_not_tell_secrets() {
        for (text, word) in [
            ("[[token]]\nname = \"t\"\nsecret = \"tooshort\"\nlisten = [\"*\"]", "16 to 1024"),
            ("[[token]]\nname = \"t\"\nlisten = [\"*\"]", "secret_file"),
            ("[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\\nx\"\nlisten = [\"*\"]", "line break"),
            ("[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"", "neither"),
            ("[[token]]\nname = \"t\"\nsecret = \"0123456789abcdef\"\nlisten = [\"a b\"]", "a b"),
            ("[tls]\ncert = \"a\"", "tls.key"),
        ] {
            let e = Config::parse(text).unwrap_err().to_string();
            assert!(e.contains(word) && !e.contains("tooshort") && !e.contains("0123456789abcdef"), "{e}");
        }
    }
}
