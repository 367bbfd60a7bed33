//! How `send`, `listen` and `status` reach a daemon: TLS, token, patience.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;

use super::encode::tokens;
use crate::infer::LoadedModel;
use crate::service::{ClientOptions, ClientTls};

/// Where the token comes from if there is no file: a command line could be read by others on the machine.
const TOKEN_VARIABLE: &str = "UNDERTONE_TOKEN";

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Encrypt the connection (TLS)
    #[arg(long)]
    tls: bool,
    /// Authorities that are trusted to name the server, PEM [default: the file named by SSL_CERT_FILE]
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca: Option<PathBuf>,
    /// Name in the server's certificate [default: the host of the address]
    #[arg(long, value_name = "NAME", requires = "tls")]
    server_name: Option<String>,
    /// Own certificate, if the server asks for one, PEM
    #[arg(long, value_name = "FILE", requires = "tls", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the own certificate, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// File with the bearer token [default: the environment variable UNDERTONE_TOKEN]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Seconds of the server's silence after which it is given up, 1 to 86400; a healthy one speaks every 15 s
    #[arg(long, value_name = "SECONDS", default_value = "45", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: u32,
}

/// What an address begins with that is reached over QUIC.
pub(super) const QUIC: &str = "quic://";

/// The address behind quic://, if it is one.
pub(super) fn datagrams(address: &str) -> Result<Option<&str>> {
    if address.starts_with("udp://") {
        bail!("{address}: udp:// is no more; quic:// takes its place, encrypted ([quic] at the daemon)");
    }
    Ok(address.strip_prefix(QUIC))
}

/// What connections run on: a thread beside ours, since QUIC has answers to give while we encode or decode.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

impl Args {
    pub(super) fn options(&self) -> Result<ClientOptions> {
        let tls = if self.tls {
            let variable = || std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
            let Some(ca) = self.ca.clone().or_else(variable) else {
                bail!("--tls needs to know whom to trust: give --ca FILE (PEM), or set SSL_CERT_FILE");
            };
            let tls = ClientTls::new(&ca, (self.cert.as_deref(), self.key.as_deref()))?;
            Some(tls.with_server_name(self.server_name.clone()))
        } else {
            None
        };
        Ok(ClientOptions {
            tls,
            patience: Duration::from_secs(u64::from(self.timeout)),
            tokens: None,
            wire: crate::session::Wire::ALL,
        })
    }

    /// The same with the model's token model, where it has one: `coded` must, `packed` must not be used.
    pub(super) fn coded(&self, model: &LoadedModel, coded: bool, packed: bool) -> Result<ClientOptions> {
        let tokens = match (coded, packed) {
            (true, false) => Some(tokens(model)?),
            (_, true) => None,
            (false, false) => model.tokens()?,
        };
        Ok(ClientOptions { tokens, ..self.options()? })
    }

    /// The bearer token; empty if there is none.
    pub(super) fn token(&self) -> Result<String> {
        match &self.token_file {
            None => match std::env::var(TOKEN_VARIABLE) {
                Ok(text) => one_line(&text).context(TOKEN_VARIABLE),
                Err(std::env::VarError::NotPresent) => Ok(String::new()),
                Err(std::env::VarError::NotUnicode(_)) => bail!("{TOKEN_VARIABLE} is not UTF-8"),
            },
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                one_line(&text).with_context(|| path.display().to_string())
            }
        }
    }
}

/// A token without the line ends that files and `$(cat ...)` leave behind it.
fn one_line(text: &str) -> Result<String> {
    let token = text.trim_end_matches(['\r', '\n']);
    if token.chars().any(char::is_control) {
        bail!("a token is one line, and this one has a line break or another control character inside");
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_loses_its_line_end_and_may_have_none_inside() {
        assert_eq!(one_line("0123456789abcdef\r\n").unwrap(), "0123456789abcdef");
        assert_eq!(one_line("").unwrap(), "");
        for bad in ["0123456789abcdef\n0123", "\n0123456789abcdef", "0123\x1b[0m"] {
            let e = one_line(bad).unwrap_err().to_string();
            assert!(e.contains("line break") && !e.contains("0123"), "{e}");
        }
    }
}
