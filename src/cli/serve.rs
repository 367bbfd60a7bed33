//! `undertone serve`: the daemon.

use std::io::IsTerminal;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::encode::parse_kbps;
use crate::cli::loading::ModelFolder;
use crate::config::{Config, Log, LogTarget};
use crate::engine::{Engine, EngineError, EngineHandle};
use crate::infer;

use crate::service::{self, Bound, PageCodec};
use crate::token::TokenModel;
use crate::units::StageCount;

/// Threads that only move bytes; the engine has its own.
const IO_THREADS: usize = 2;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Configuration (TOML); packaging/undertone.toml shows every key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only check a configuration, and what it names: certificates, keys, tokens, model, folders
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    check: Option<PathBuf>,
    #[command(flatten)]
    model: ModelFolder,
    /// Rate of streams encoded here, kbit/s
    #[arg(long, value_parser = parse_kbps)]
    kbps: Option<StageCount>,
    /// Address of the first raw PCM input; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen_pcm: Option<SocketAddr>,
    /// Address for codes; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen_codes: Option<SocketAddr>,
    /// Address of the first raw PCM output; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen_pcm_out: Option<SocketAddr>,
    /// Address for HTTP; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    listen_http: Option<SocketAddr>,
}

impl Args {
    /// The file, with what the command line says on top.
    fn config(&self) -> Result<Config> {
        let mut config = match self.check.as_ref().or(self.config.as_ref()) {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        if let Some(model) = &self.model.path {
            config.codec.model = Some(model.clone());
        }
        if let Some(stages) = self.kbps {
            config.codec.stages = stages;
        }
        if let (Some(address), Some(port)) = (self.listen_pcm, config.pcm_input.first_mut()) {
            port.listen = address;
        }
        if let (Some(address), Some(port)) = (self.listen_pcm_out, config.pcm_output.first_mut()) {
            port.listen = address;
        }
        config.codes = self.listen_codes.or(config.codes);
        config.http.listen = self.listen_http.or(config.http.listen);
        config.check_addresses()?;
        Ok(config)
    }
}

/// Name of the codec in WebAssembly.
const MODULE: &str = "undertone.wasm";

type LevelHandle = reload::Handle<EnvFilter, Registry>;

fn filter(level: &str) -> Result<EnvFilter> {
    // The sound server's client calls the normal end of a device an error; what matters is reported by us.
    EnvFilter::try_new(format!("pulseaudio=off,{level}")).with_context(|| format!("log.level = {level}"))
}

/// Starts the log; the handle changes its level later.
fn start_log(log: &Log) -> Result<LevelHandle> {
    let (level, handle) = reload::Layer::new(filter(&log.level)?);
    let journal = match log.target {
        LogTarget::Stderr => false,
        LogTarget::Journald => true,
        LogTarget::Auto => std::env::var_os("JOURNAL_STREAM").is_some(),
    };
    let registry = tracing_subscriber::registry().with(level);
    if journal {
        registry.with(tracing_journald::layer().context("log.target: no systemd journal here")?).init();
    } else {
        // Colours are for people: in a file they would be rubbish.
        let colours = std::io::stderr().is_terminal();
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours)).init();
    }
    Ok(handle)
}

/// Listeners that systemd opened for us (sd_listen_fds(3)).
fn passed() -> Result<Vec<TcpListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let all = 0..passed.len();
    let mut take = |n| passed.take_tcp_listener(n).with_context(|| format!("socket {n} of LISTEN_FDS"));
    all.filter_map(|n| take(n).transpose()).collect()
}

/// Checks a configuration and what it names, and opens no port.
fn check(path: &Path, config: &Config) -> Result<()> {
    filter(&config.log.level)?;
    service::check(config)?;
    infer::load_model(config.codec.model.as_deref())?;
    outln!("{}: fine", path.display());
    Ok(())
}

pub(super) fn run(args: Args) -> Result<()> {
    let config = Arc::new(args.config()?);
    if let Some(path) = &args.check {
        return check(path, &config);
    }
    let passed = passed()?;
    let level = start_log(&config.log)?;
    let (model, factory) = infer::load_processor_factory(config.codec.model.as_deref(), config.engine.networks)?;
    let tokens = model.tokens()?;
    let page_codec = config.http.listen.and_then(|_| page_codec(&model.path));
    let mut engine = Engine::start(&config.engine.options(), factory)?;
    if !config.codec.is_never_searched() {
        engine.search(move || model.refiner(0))?;
    }
    let (pinned, threads) = engine.pinned();
    debug!(threads, pinned, "engine threads, and those of them kept to a core");
    let profile = engine.handle().profile();
    info!(model = %profile.name, id = %profile.model_id, slots = config.engine.slots, "engine ready");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(IO_THREADS).enable_all().build().context("tokio")?;
    let handle = engine.handle();
    let result = runtime.block_on(serve(args, config, passed, level, handle, (tokens, page_codec)));
    // Connections that did not end in time must not keep the engine waiting.
    runtime.shutdown_background();
    drop(engine);
    result
}

/// The codec that pages decode with by themselves: the module that `UNDERTONE_WEB` names, else the one that lies beside the program's
/// build or in `share/undertone/web` of the prefix it is installed in. Without one the daemon decodes for pages.
fn page_codec(model: &Path) -> Option<PageCodec> {
    let module = match std::env::var_os("UNDERTONE_WEB") {
        Some(named) => PathBuf::from(named),
        None => {
            let exe = std::env::current_exe().ok()?;
            let prefix = exe.ancestors().nth(2)?;
            let places = ["share/undertone/web", "web"].map(|place| prefix.join(place).join(MODULE));
            let Some(found) = places.into_iter().find(|place| place.is_file()) else {
                debug!("no {MODULE}: pages get samples");
                return None;
            };
            found
        }
    };
    match PageCodec::read(&module, model) {
        Ok(codec) => {
            info!(module = %module.display(), "pages may decode by themselves");
            Some(codec)
        }
        Err(e) => {
            warn!(error = %e, "pages get samples: the codec for browsers cannot be read");
            None
        }
    }
}

/// Says where the daemon listens.
fn announce(bound: &Bound, config: &Config) {
    let list = |from: usize, n: usize| {
        bound.addresses[from..from + n].iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    let (inputs, outputs) = (config.pcm_input.len(), config.pcm_output.len());
    let codes = list(inputs + outputs, usize::from(config.codes.is_some()));
    let http = list(inputs + outputs + usize::from(config.codes.is_some()), usize::from(config.http.listen.is_some()));
    if !http.is_empty() {
        info!(address = %http, "HTTP for operators");
    }
    if let (Some(_), Some(quic)) = (config.quic, bound.addresses.last()) {
        info!(address = %quic, "QUIC");
    }
    // One line for people and scripts, whatever the log level.
    errln!("listening pcm={} codes={codes} pcm_out={}", list(0, inputs), list(inputs, outputs));
}

/// Under systemd's watchdog: a runtime that no longer turns is restarted.
fn watchdog() -> Option<JoinHandle<()>> {
    sd_notify::watchdog_enabled().map(|within| {
        tokio::spawn(async move {
            loop {
                notify(&[sd_notify::NotifyState::Watchdog]);
                tokio::time::sleep(within / 3).await;
            }
        })
    })
}

async fn serve(
    args: Args,
    config: Arc<Config>,
    passed: Vec<TcpListener>,
    level: LevelHandle,
    engine: EngineHandle,
    (tokens, page_codec): (Option<Arc<TokenModel>>, Option<PageCodec>),
) -> Result<()> {
    let mut bound = Bound::open_with(&config, passed).await?;
    if let Some(codec) = page_codec {
        bound.offer(codec);
    }
    // Who reads that we listen may send a signal at once: from here on none ends the process by itself.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hangup = signal(SignalKind::hangup())?;
    announce(&bound, &config);
    let (sender, receiver) = watch::channel(Arc::clone(&config));
    let (tell_death, death) = oneshot::channel();
    let watched = engine.clone();
    std::thread::Builder::new().name("engine-watch".to_owned()).spawn(move || {
        let _ = tell_death.send(watched.wait_death());
    })?;
    let reloading = tokio::spawn(reload_on_hangup(hangup, args, sender, level));
    notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("serving")]);
    let watchdog = watchdog();
    let mut died = None;
    let shutdown = async {
        tokio::select! {
            reason = death => died = reason.ok().filter(|r| *r != EngineError::Stopped),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        // A second signal does not wait for anybody.
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            std::process::exit(1);
        });
    };
    let summary = service::run(bound, engine, tokens, receiver, shutdown).await;
    reloading.abort();
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    info!(?summary, "stopped");
    match died {
        Some(reason) => {
            error!(%reason, "the engine died");
            Err(reason.into())
        }
        None => Ok(()),
    }
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    // Without systemd there is nobody to tell, and that is fine.
    let _ = sd_notify::notify(states);
}

/// What a reload puts in force, and the keys that wait for a restart.
fn reloaded(args: &Args, started: &Config) -> Result<(EnvFilter, Config, Vec<&'static str>)> {
    let new = args.config()?;
    let fixed = started.needs_restart(&new);
    let new = started.reloaded(new)?;
    Ok((filter(&new.log.level)?, new, fixed))
}

async fn reload_on_hangup(mut hangup: Signal, args: Args, sender: watch::Sender<Arc<Config>>, level: LevelHandle) {
    // What needs a restart still needs it at the second reload: the measure is what the process started with.
    let started = Arc::clone(&sender.borrow());
    while hangup.recv().await.is_some() {
        match reloaded(&args, &started) {
            Ok((filter, new, fixed)) => {
                if !fixed.is_empty() {
                    warn!(keys = fixed.join(", "), "these keys take effect only after a restart");
                }
                let _ = level.reload(filter);
                sender.send_replace(Arc::new(new));
                info!("configuration reloaded");
            }
            Err(e) => error!("the configuration stays as it was: {e:#}"),
        }
    }
}
