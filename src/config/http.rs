//! The port for operators and browsers.

use std::net::SocketAddr;

use super::security::{Guard, address, open};
use super::{ConfigError, value_error};

/// Health, metrics and state for operators, the page for browsers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Http {
    /// Where it listens; None is nowhere.
    pub listen: Option<SocketAddr>,
    /// Names by which it may be reached, besides addresses and localhost.
    pub names: Vec<String>,
    /// Origin under which a proxy shows the page, as browsers write it: scheme, name, and a port that is not the usual.
    pub public_origin: Option<String>,
    /// State and metrics are told without a token, on loopback and to who comes through no proxy.
    pub status_without_token: bool,
}

section!(RawHttp {
    listen: String = "127.0.0.1:7703".to_owned(),
    names: Vec<String> = Vec::new(),
    public_url: String = String::new(),
    status_without_token: bool = false,
});

impl RawHttp {
    pub(super) fn check(self) -> Result<Http, ConfigError> {
        let listen = match self.listen.as_str() {
            "" => None,
            listen => Some(address("http.listen", listen)?),
        };
        let public_origin = match self.public_url.as_str() {
            "" => None,
            url => Some(origin(url).ok_or_else(|| {
                // As given it may hold a password.
                value_error("http.public_url", "(as given)", "allowed: https://NAME or https://NAME:PORT, or http://")
            })?),
        };
        Ok(Http { listen, names: self.names, public_origin, status_without_token: self.status_without_token })
    }
}

impl Http {
    /// Whether the address may be listened on.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the address and what is missing.
    pub(super) fn check_address(&self, guard: Guard) -> Result<(), ConfigError> {
        let Some(listen) = self.listen else { return Ok(()) };
        if self.status_without_token && !listen.ip().is_loopback() {
            let allowed = "true only while http.listen is a loopback address: others would see streams and metrics";
            return Err(value_error("http.status_without_token", true, allowed));
        }
        open("http.listen", listen, guard)
    }

    /// The name in the public origin, without its port.
    pub fn public_name(&self) -> Option<&str> {
        let (_, host) = self.public_origin.as_deref()?.split_once("://")?;
        Some(match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        })
    }
}

/// The origin of a URL that has nothing behind its host, as browsers write it.
fn origin(url: &str) -> Option<String> {
    let lower = url.strip_suffix('/').unwrap_or(url).to_ascii_lowercase();
    let (scheme, host) = lower.split_once("://")?;
    let usual = match scheme {
        "https" => ":443",
        "http" => ":80",
        _ => return None,
    };
    let host = host.strip_suffix(usual).unwrap_or(host);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let port_fits = host.rsplit_once(':').is_none_or(|(_, p)| p.ends_with(']') || p.parse::<u16>().is_ok());
    (!host.is_empty() && host.chars().all(plain) && port_fits).then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    #[test]
    fn a_public_url_becomes_the_origin_that_browsers_send() {
        for (url, wanted) in [
            ("https://Audio.example.org/", Some("https://audio.example.org")),
            ("https://audio.example.org:443", Some("https://audio.example.org")),
            ("http://audio.example.org:8080", Some("http://audio.example.org:8080")),
            ("https://[2001:db8::1]:8443", Some("https://[2001:db8::1]:8443")),
            ("audio.example.org", None),
            ("https://audio.example.org/undertone", None),
            ("https://me:pass@audio.example.org", None),
            ("https://audio.example.org:port", None),
            ("ftp://audio.example.org", None),
            ("https://", None),
        ] {
            assert_eq!(origin(url).as_deref(), wanted, "{url}");
        }
        let http = Config::parse("[http]\npublic_url = \"https://a.example:8443\"").unwrap().http;
        assert_eq!(http.public_name(), Some("a.example"));
    }

    #[test]
    fn without_a_token_only_loopback_is_told_anything() {
        let text = "allow_public = true\n[http]\nstatus_without_token = true\n";
        assert!(Config::parse(text).unwrap().http.status_without_token);
        let e = Config::parse(&format!("{text}listen = \"0.0.0.0:7703\"")).unwrap_err().to_string();
        assert!(e.contains("http.status_without_token = true") && e.contains("loopback"), "{e}");
    }

    #[test]
    fn tokens_are_a_login_of_the_port() {
        let tls = "[tls]\ncert = \"c\"\nkey = \"k\"\n[http]\nlisten = \"0.0.0.0:7703\"\n";
        let token = "[[token]]\nname = \"a\"\nsecret = \"0123456789abcdef\"\nlisten = [\"*\"]\n";
        assert!(Config::parse(&format!("{tls}{token}")).is_ok());
        let e = Config::parse(tls).unwrap_err().to_string();
        assert!(e.contains("http.listen") && e.contains("without login") && e.contains("[[token]]"), "{e}");
    }
}
