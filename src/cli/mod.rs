//! The command line: parse, run, exit code.

#[macro_use]
mod print;

mod batch;
mod bench;
mod codebooks;
mod daemon;
mod decode;
mod demo;
mod devices;
mod encode;
mod generate;
mod listen;
mod loading;
mod lossy;
mod message;
mod model;
mod nats;
mod progress;
mod remote;
mod replay;
mod searching;
mod send;
mod serve;
mod status;
mod stop;
mod tokens;
mod trim;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Live neural audio coding, 0.5 to 8 kbit/s.
#[derive(Debug, Parser)]
#[command(name = "undertone", version, about, long_about = None, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  undertone encode talk.wav talk.utn --kbps 3          a recording to a file of codes
  undertone decode talk.utn talk.wav                   and back
  arecord -f S16_LE -r 24000 -c 1 -t raw | undertone encode --raw s16le:24000:1 - - | ssh HOST 'undertone decode - - | aplay'
  undertone serve                                      the daemon: raw PCM in on 7700, codes on 7701, PCM out on 7702
  undertone send talk.wav --stream radio --kbps 3      publish codes to a daemon
  undertone listen out.wav --stream radio              subscribe and decode
  undertone send --device default --stream talk        a microphone as a stream; undertone devices lists names
  undertone listen --device default --stream talk      and to a loudspeaker";

#[derive(Debug, Subcommand)]
enum Command {
    /// Encode a recording, or a pipe as it comes
    Encode(encode::Args),
    /// Decode a file of codes, or a pipe as it comes
    Decode(decode::Args),
    /// Run the daemon
    Serve(serve::Args),
    /// Encode here and publish the codes to a daemon
    Send(send::Args),
    /// Subscribe to a daemon's stream and decode it here
    Listen(listen::Args),
    /// List sound devices for --device and the configuration
    Devices(devices::Args),
    /// Hear what a stream carried a while ago, from what NATS keeps
    Replay(replay::Args),
    /// Encode recordings from the queue on NATS
    Worker(worker::Args),
    /// Hand recordings to the workers, and see how far they are
    Batch(batch::Args),
    /// Show what a running daemon does
    Status(status::Args),
    /// Send recordings through a daemon and back, and measure it
    Demo(demo::Args),
    /// Cut a voice message into packets that radios and meshes carry, and read them back with gaps
    Message(message::Args),
    /// Continue a recording with the token model
    Generate(generate::Args),
    /// Load a daemon; with feature referee also compare with Opus and measure speed
    Bench(bench::Args),
    /// Look at a codec model or check it
    Model(model::Args),
}

/// Runs the command line; the exit code is 0 on success, 1 on failure, 2 on a wrong call.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    // For tests: what a machine with less than this one computes.
    if let Ok(level) = std::env::var("UNDERTONE_SIMD") {
        crate::rvq::SimdLevel::limit(&level);
    }
    let result = match cli.command {
        Command::Encode(args) => encode::run(&args),
        Command::Decode(args) => decode::run(&args),
        Command::Serve(args) => serve::run(args),
        Command::Send(args) => send::run(args),
        Command::Listen(args) => listen::run(args),
        Command::Devices(args) => devices::run(&args),
        Command::Replay(args) => replay::run(args),
        Command::Worker(args) => worker::run(args),
        Command::Batch(args) => batch::run(args),
        Command::Status(args) => status::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Message(args) => message::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Model(args) => model::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our pipe went away: nobody is left to tell.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            // What a server said, or a name of a file, may hold what a terminal would obey.
            errln!("undertone: {}", crate::session::printable(&print::reasons(&e)));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.chain().filter_map(|c| c.downcast_ref::<std::io::Error>()).any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
