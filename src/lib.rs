//! undertone: a streaming neural audio codec that runs as a system service.
//!
//! ```text
//! samples -> dsp (resample, frame) -> codec::Encoder -> EncodeJob -> network + rvq -> codes
//!         -> bitstream::Bundle -> .utn container, or protobuf over TCP
//! bundles -> codec::Decoder -> DecodeJob -> rvq + network -> samples -> dsp -> listener
//! ```
//!
//! Three layers; an arrow may only point down (`tests/architecture.rs` enforces it):
//! 1. the pure core: synchronous, no threads, no clock, no I/O; built alone by `--no-default-features`;
//! 2. adapters, each of which owns one foreign crate: [`infer`] (ONNX Runtime), [`wire`] (protobuf), [`capture`] (files, sound
//!    devices), [`bus`] (NATS);
//! 3. composition: [`batch`], [`engine`], [`service`], [`config`], [`referee`], [`cli`].
//!
//! The networks run by ONNX Runtime ([`infer`]) or, without it, in plain Rust ([`portable`]).
//!
//! The core encodes and decodes with any implementation of the networks; here with the deterministic fake:
//!
//! ```
//! use undertone::codec::{self, Processor};
//! use undertone::fake;
//! use undertone::units::StageCount;
//!
//! let mut processor: Processor = fake::processor(16, 7);
//! let pcm: Vec<f32> = (0..24_000).map(|n| (n as f32 * 0.05).sin() * 0.3).collect();
//! let bundles = codec::encode_all(&mut processor, &pcm, StageCount::new(6)?, 5)?;
//! let decoded = codec::decode_all(&mut processor, &bundles)?;
//! assert!(decoded.len() >= pcm.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Layer 1: the pure core.
pub mod beam;
pub mod bitstream;
pub mod codec;
pub mod dsp;
pub mod entropy;
pub mod fake;
pub mod jitter;
pub mod model;
#[cfg(feature = "portable")]
pub mod portable;
pub mod profile;
pub mod recording;
pub mod rvq;
pub mod sampling;
pub mod session;
pub mod synthesis;
pub mod token;
pub mod units;

// Layer 2: adapters.
#[cfg(feature = "portable")]
pub mod simple;

#[cfg(feature = "full")]
pub mod bus;
#[cfg(feature = "full")]
pub mod capture;
#[cfg(feature = "full")]
pub mod infer;
#[cfg(feature = "full")]
mod table;
#[cfg(feature = "wire")]
pub mod wire;

// Layer 3: composition.
#[cfg(feature = "full")]
pub mod batch;
#[cfg(feature = "full")]
pub mod cli;
#[cfg(feature = "full")]
pub mod config;
#[cfg(feature = "full")]
pub mod engine;
#[cfg(feature = "full")]
pub mod referee;
#[cfg(feature = "full")]
pub mod service;

// What most users need, without the way to it.
pub use bitstream::{ABSENT, BitstreamError, Bundle, Item, PackedBundle, ReaderOptions, StreamHeader, Tail};
pub use codec::{CodecError, Concealer, ProcessError, Processor};
pub use entropy::{StreamError, StreamReader, StreamWriter};
pub use profile::Profile;
pub use recording::Rate;
pub use sampling::Params;
#[cfg(feature = "portable")]
pub use simple::{Decoder, Encoder, EncoderOptions, Error, Model, StreamDecoder, StreamEncoder};
pub use token::{TokenError, TokenModel};
pub use units::{CODEC_RATE, ModelId, OutOfRange, PcmFormat, SampleRate, StageCount};
