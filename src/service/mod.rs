//! The daemon: listeners, connections, streams, shutdown.

mod access;
mod client;
mod cluster;
mod codes;
mod codings;
mod cost;
mod devices;
mod door;
mod ending;
mod fetch;
mod foreign;
mod http;
mod hub;
mod intake;
mod listener;
mod listeners;
mod metrics;
mod names;
mod outbox;
mod pacer;
mod page;
mod pcm;
mod plainly;
mod quic;
mod record;
mod shared;
mod sockets;
mod state;
mod tap;
mod tls;
mod until;
mod web;
mod wishes;

pub use client::{Client, ClientError, ClientOptions};
pub use fetch::fetch;
pub use listeners::{Bound, ServiceError, Summary, check, run};
pub use quic::{Published, QuicClient, QuicEvent};
pub use tls::{ClientTls, TlsError};
pub(crate) use until::until;
pub use web::PageCodec;

use shared::{Coding, Counters, Shared};
