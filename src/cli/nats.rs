//! How `replay`, `worker` and `batch` reach NATS.

use std::path::PathBuf;

use crate::bus::{BusOptions, Prefix};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Where NATS is: nats://HOST:4222 or tls://HOST:4222, several separated by commas
    #[arg(long = "nats", value_name = "URL")]
    url: String,
    /// Credentials file of NATS
    #[arg(long = "nats-credentials", value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Authorities of its certificate, PEM [default: the system's]
    #[arg(long = "nats-ca", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// First part of every subject, as in the daemons' nats.prefix
    #[arg(long = "nats-prefix", value_name = "NAME", default_value = "undertone", value_parser = parse_prefix)]
    prefix: Prefix,
}

fn parse_prefix(s: &str) -> Result<Prefix, String> {
    Prefix::new(s).map_err(|e| e.to_string())
}

impl Args {
    pub(super) fn options(&self) -> BusOptions {
        BusOptions {
            url: self.url.clone(),
            credentials: self.credentials.clone(),
            ca: self.ca.clone(),
            prefix: self.prefix.clone(),
        }
    }
}
