//! `undertone status`: what a running daemon does.

use std::io::Write;

use anyhow::{Context, Result, bail};

use crate::service;
use crate::session::printable;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The daemon's HTTP port (http.listen)
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7703")]
    from: String,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: super::remote::Args,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let name = || format!("{}: is the daemon running, and http.listen set?", args.from);
    let path = if args.json { "/status.json" } else { "/status" };
    let (token, options) = (args.remote.token()?, args.remote.options()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(service::fetch(&args.from, path, &token, &options));
    let (line, body) = answer.with_context(name)?;
    match line.split(' ').nth(1) {
        Some("200") => {}
        Some("401") => bail!("{}: the daemon asks for a token it knows: --token-file, or UNDERTONE_TOKEN", args.from),
        _ => bail!("{}: {line}: {}", args.from, body.lines().next().unwrap_or_default()),
    }
    // Whoever answers may have written anything.
    std::io::stdout().write_all(printable(&body).as_bytes())?;
    Ok(())
}
