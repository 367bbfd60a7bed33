//! `undertone status`: what a running daemon does.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long the daemon may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The daemon's HTTP port (http.listen), without TLS
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7703")]
    from: String,
    /// JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let name = || format!("{}: is the daemon running, and http.listen set?", args.from);
    let address = args.from.to_socket_addrs().with_context(name)?.next().with_context(name)?;
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE).with_context(name)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let path = if args.json { "/status.json" } else { "/status" };
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", args.from).with_context(name)?;
    let mut answer = Vec::new();
    socket.take(MAX_ANSWER).read_to_end(&mut answer).with_context(name)?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("{}: not an answer of HTTP", args.from) };
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        bail!("{}: {line}", args.from);
    }
    std::io::stdout().write_all(body.as_bytes())?;
    Ok(())
}
