//! `undertone worker`: encode recordings from the queue.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;
use tracing_subscriber::EnvFilter;

use super::encode::parse_beam;
use crate::batch::{Coder, JOB_PATIENCE, WorkerOptions, work};
use crate::bus::Bus;
use crate::cli::loading::ModelFolder;
use crate::rvq::BeamWidth;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder that all workers share; jobs name files below it, and nothing else is touched
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// Attempts after which a job is given up, 1 to 100
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=100))]
    attempts: u64,
    /// End when every job is done or given up, instead of waiting for more
    #[arg(long)]
    drain: bool,
    /// Width of the codebook search, 1 (fastest) to 16 (best); the same for all workers
    #[arg(long, default_value = "16", value_parser = parse_beam)]
    beam: BeamWidth,
    #[command(flatten)]
    model: ModelFolder,
    #[command(flatten)]
    nats: super::nats::Args,
}

pub(super) fn run(args: Args) -> Result<()> {
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new("info")).with_ansi(colours);
    log.with_writer(std::io::stderr).init();
    let make = {
        let (folder, beam) = (args.model.clone(), args.beam);
        move || -> Result<Coder> {
            let model = folder.load()?;
            let (processor, tokens) = (model.processor(beam)?, model.tokens()?);
            let refiner = Box::new(move |steps| model.refiner(steps).map_err(|e| e.to_string()));
            Ok(Coder::new(processor, tokens, refiner))
        }
    };
    let coder = make()?.renewed_by(Arc::new(move || make().map_err(|e| super::print::reasons(&e))));
    let (root, attempts, drain) = (args.root, args.attempts, args.drain);
    let options = WorkerOptions { root, attempts, drain, patience: JOB_PATIENCE };
    // One thread moves bytes, another one encodes.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("tokio")?;
    let tally = runtime.block_on(async {
        let (tell, stop) = watch::channel(false);
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::spawn(async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            let _ = tell.send(true);
            // A second signal does not wait for the job to be given back.
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            std::process::exit(1);
        });
        let jobs = Bus::connect(&args.nats.options()).await?.jobs().await?;
        info!(root = %options.root.display(), "waiting for jobs");
        anyhow::Ok(work(&jobs, coder, &options, stop).await?)
    });
    // A job that hangs does not hold up the end.
    runtime.shutdown_background();
    let tally = tally?;
    errln!(
        "{} encoded, {} were there already, {} attempts failed, {} given up",
        tally.encoded,
        tally.skipped,
        tally.retried,
        tally.dead
    );
    Ok(())
}
