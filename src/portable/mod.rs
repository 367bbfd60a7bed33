//! Networks in plain Rust: the model's ONNX graphs, run without ONNX Runtime.
//!
//! Knows exactly the operators that the recipe exports (operators.rs), in single precision. Sums are taken in one fixed order without
//! fused products, and transcendental functions come from libm or from polynomials here: the same samples give the same bits on every
//! machine and instruction set, browsers included. ONNX Runtime sums in another order, so it agrees within rounding only
//! (docs/portable.md has both measured).

mod arguments;
mod broadcast;
mod error;
mod graph;
mod matmul;
mod model;
mod net;
mod operators;
mod proto;
mod shaping;
mod simd;
mod tensor;

pub use error::GraphError;
pub use model::{Files, Networks, PortableError, PortableModel};
pub use net::{PortableDecoder, PortableEncoder};
