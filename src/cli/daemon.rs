//! A daemon of this program's own, as a child process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a daemon may take to start.
const START: Duration = Duration::from_secs(60);

/// The daemon; it ends with this value.
pub(super) struct Daemon {
    child: Child,
    /// What it said it listens on.
    ports: String,
}

impl Daemon {
    /// Starts `undertone serve` with these arguments and waits until it listens.
    pub(super) fn start(args: &[&str], model: Option<&Path>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").args(args);
        if let Some(model) = model {
            command.arg("--model").arg(model);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().context("starting the daemon")?;
        let stderr = child.stderr.take().context("the daemon's log")?;
        let mut daemon = Self { child, ports: String::new() };
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Read to the end: a full pipe would stop the daemon.
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let (deadline, mut log) = (Instant::now() + START, Vec::new());
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = told.recv_timeout(left) else { bail!("the daemon did not start:\n{}", log.join("\n")) };
            if let Some(ports) = line.strip_prefix("listening ") {
                ports.clone_into(&mut daemon.ports);
                return Ok(daemon);
            }
            log.push(line);
        }
    }

    /// Addresses of a kind of port: `pcm`, `codes` or `pcm_out`.
    pub(super) fn addresses(&self, kind: &str) -> Vec<String> {
        let part = |p: &'_ str| p.strip_prefix(kind)?.strip_prefix('=').map(str::to_owned);
        let list = self.ports.split_whitespace().find_map(part).unwrap_or_default();
        list.split(',').map(str::to_owned).collect()
    }

    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time used so far, user and system.
    pub(super) fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        // Fields after the name in parentheses; user and system time are the 12th and 13th of them, in 1/100 s.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        Ok(Duration::from_millis(10 * (ticks(11) + ticks(12))))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.id().to_string()).status();
        let _ = self.child.wait();
    }
}
