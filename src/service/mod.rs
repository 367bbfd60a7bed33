//! The daemon: listeners, connections, streams, shutdown.

mod access;
mod client;
mod cluster;
mod codes;
mod devices;
mod door;
mod ending;
mod http;
mod hub;
mod listener;
mod listeners;
mod metrics;
mod outbox;
mod pacer;
mod pcm;
mod record;
mod shared;
mod tap;
mod tls;
mod udp;
mod web;

pub use client::{Client, ClientError, ClientOptions};
pub use listeners::{Bound, ServiceError, Summary, run};
pub use tls::{ClientTls, TlsError};
pub use udp::{UdpClient, UdpEvent};

use shared::{Coding, Counters, Shared};
