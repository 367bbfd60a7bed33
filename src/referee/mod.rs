//! Measuring and showing what the codec does.
//!
//! The comparison against Opus needs cargo's feature `referee` (docs/architecture.md says why it is not on by default).

mod chart;
mod image;
mod loss;
mod map;
#[cfg(feature = "referee")]
mod metrics;
#[cfg(feature = "referee")]
mod opus;
#[cfg(feature = "referee")]
mod ours;
#[cfg(feature = "referee")]
mod report;
#[cfg(feature = "referee")]
mod run;
mod spectrogram;
mod stats;
mod stoi;
#[cfg(feature = "referee")]
mod table;

pub use chart::{Chart, Line, Scale, svg};
pub use loss::{LossError, LossModel, LossTrace, parse_trace};
pub use map::write_codebook_map;
#[cfg(feature = "referee")]
pub use metrics::{MAX_LAG, Scores, align, log_spectral_distance, score, shift};
#[cfg(feature = "referee")]
pub use opus::{Opus, OpusSettings, Repair};
#[cfg(feature = "referee")]
pub use ours::{CodedFile, Payload, Undertone};
#[cfg(feature = "referee")]
pub use report::{Listening, write_report};
#[cfg(feature = "referee")]
pub use run::{Codec, Outcome, Packet, RefereeError, cpu_time, measure, wav_bytes};
pub use spectrogram::write_spectrograms;
pub use stats::{Interval, bootstrap, mean, rate_at};
pub use stoi::estoi;
#[cfg(feature = "referee")]
pub use table::{
    Row, Summary, equivalent_rate, read_rows, summarise, summary_lines, write_rows, write_summary_csv,
    write_summary_json,
};
