//! `undertone bench`: how many streams a daemon carries; against Opus, under loss, and where the time goes.

mod coded;
mod load;
#[cfg(feature = "referee")]
mod loss;
mod machine;
#[cfg(feature = "referee")]
mod peer;
#[cfg(feature = "referee")]
mod plan;
#[cfg(feature = "referee")]
mod rate;
#[cfg(feature = "referee")]
mod recordings;
mod rig;
#[cfg(feature = "referee")]
mod scorer;
mod soak;
#[cfg(feature = "referee")]
mod speed;

use anyhow::Result;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Streams against latency, up to what a daemon can carry and past it
    Load(load::Args),
    /// Minutes of streams that come and go, some of them bad: memory and missed frames
    Soak(soak::Args),
    /// Quality over rate: every recording of a folder through undertone and Opus
    #[cfg(feature = "referee")]
    Rate(rate::Args),
    /// Quality under packet loss, beside Opus with its repairs
    #[cfg(feature = "referee")]
    Loss(loss::Args),
    /// What a frame costs, stage by stage, and how cost grows
    #[cfg(feature = "referee")]
    Speed(speed::Args),
}

pub(super) fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Load(args) => load::run(args),
        What::Soak(args) => soak::run(args),
        #[cfg(feature = "referee")]
        What::Rate(args) => rate::run(args),
        #[cfg(feature = "referee")]
        What::Loss(args) => loss::run(args),
        #[cfg(feature = "referee")]
        What::Speed(args) => speed::run(args),
    }
}
