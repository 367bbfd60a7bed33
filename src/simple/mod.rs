//! The codec in a few lines: a model, an encoder, a decoder, and whole files.
//!
//! Runs the networks in plain Rust ([`crate::portable`]), on the caller's thread, and reads nothing but the model's folder. Samples are
//! one channel of floats in -1..1, at 24 kHz unless an option says otherwise.
//!
//! ```no_run
//! use undertone::{Decoder, Encoder, Model, Rate};
//!
//! let model = Model::open("models/undertone-24k-v2")?;
//! let mut encoder = Encoder::new(&model, Rate::kbps(6.0))?;
//! let mut decoder = Decoder::new(&model);
//! # let pcm = [0.0f32; 24_000];
//! for bundle in encoder.push(&pcm)? {
//!     let sound = decoder.push(bundle)?;
//! }
//! # Ok::<(), undertone::Error>(())
//! ```

mod error;
mod live;
mod model;
mod options;
mod stream;
mod whole;

pub use error::Error;
pub use live::{Decoder, Encoder};
pub use model::Model;
pub use options::EncoderOptions;
pub use stream::{StreamDecoder, StreamEncoder};
