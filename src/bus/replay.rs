//! Streams that JetStream keeps for a while, and reading them back.

use std::time::{Duration, SystemTime};

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use futures_util::StreamExt;

use super::layers::LayerMessage;
use super::{ANSWER, Bus, BusError, Heard, refused, stream_token};
use crate::session::StreamName;

/// How much of the live streams is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// For how long.
    pub age: Duration,
    /// At most so many bytes, of all streams together; the oldest go first.
    pub bytes: u64,
}

/// A stream of the past, read from the oldest message wanted to the newest there was when reading began.
pub struct Replay {
    messages: pull::Ordered,
    left: u64,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Bus {
    /// Lets JetStream keep what is published live. Any daemon may ask; the last one's limits hold.
    ///
    /// # Errors
    /// [`BusError`] if the server refuses or has no JetStream.
    pub async fn keep(&self, kept: Kept) -> Result<(), BusError> {
        let config = Config {
            name: self.prefix.kept("live"),
            subjects: vec![self.prefix.subject("live", ">")],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            max_age: kept.age,
            max_bytes: i64::try_from(kept.bytes).unwrap_or(i64::MAX),
            // Publishers do not wait for this: live is live.
            no_ack: true,
            ..Config::default()
        };
        let context = self.jetstream();
        context.create_or_update_stream(config).await.map_err(refused("keep streams for replay"))?;
        Ok(())
    }

    /// Reads a stream back from `since` on.
    ///
    /// # Errors
    /// [`BusError`] if nothing is kept.
    pub async fn replay(&self, name: &StreamName, since: SystemTime) -> Result<Replay, BusError> {
        let context = self.jetstream();
        let stream = context.get_stream(self.prefix.kept("live")).await.map_err(refused("find kept streams"))?;
        let nanos = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let start = async_nats::datetime::from_nanos(i128::try_from(nanos).unwrap_or(i128::MAX))
            .map_err(refused("read a stream back"))?;
        let config = OrderedConfig {
            filter_subject: self.prefix.subject("live", &format!("{}.*", stream_token(name))),
            replay_policy: ReplayPolicy::Instant,
            deliver_policy: DeliverPolicy::ByStartTime { start_time: start },
            ..OrderedConfig::default()
        };
        let mut consumer = stream.create_consumer(config).await.map_err(refused("read a stream back"))?;
        let left = consumer.info().await.map_err(refused("read a stream back"))?.num_pending;
        let messages = consumer.messages().await.map_err(refused("read a stream back"))?;
        Ok(Replay { messages, left })
    }
}

impl Replay {
    /// Messages that are left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// The next message; None after the last one.
    ///
    /// # Errors
    /// [`BusError`] if the server fell silent.
    pub async fn next(&mut self) -> Result<Option<Heard>, BusError> {
        if self.left == 0 {
            return Ok(None);
        }
        match tokio::time::timeout(ANSWER, self.messages.next()).await {
            Ok(Some(Ok(message))) => {
                self.left = message.info().map_or(self.left - 1, |i| i.pending.min(self.left - 1));
                Ok(Some(LayerMessage::parse(&message.payload)))
            }
            Ok(Some(Err(e))) => Err(refused("read a stream back")(e)),
            Ok(None) => Ok(None),
            Err(_) => Err(refused("read a stream back")("no answer")),
        }
    }
}

/// A time as in RFC 3339: `2026-05-01T09:30:00Z`.
///
/// # Errors
/// [`BusError`] for anything else, and for times before 1970.
pub fn parse_time(text: &str) -> Result<SystemTime, BusError> {
    let time = async_nats::datetime::parse_rfc3339(text).map_err(refused("read the time"))?;
    let since = u64::try_from(time.unix_timestamp()).map_err(refused("read the time"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::new(since, time.nanosecond()))
}
