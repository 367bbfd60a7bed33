//! `undertone bench speed`.

use anyhow::Result;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_: &Args) -> Result<()> {
    Ok(())
}
