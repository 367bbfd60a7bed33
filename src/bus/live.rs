//! Live streams: publishing, following, and who may publish.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::{Client, Request, Subscriber};
use futures_util::{Stream, StreamExt};

use super::layers::{Epoch, Kind, LAYERS, LayerMessage, MessageError, split, split_constant};
use super::rights::{Rights, Verdict};
use super::{Bus, BusCounters, BusError, Prefix, refused, stream_token};
use crate::session::{PackedBundle, StreamName};
use crate::units::{MessageRate, ModelId};

/// How long an earlier publisher has to object. Where there is none, NATS says so at once.
const OBJECTION: Duration = Duration::from_millis(300);

/// The right to publish a stream; dropping it gives the right up.
pub struct Claim {
    bus: Bus,
    name: StreamName,
    rights: Rights,
    others: Subscriber,
    /// Most frames of a bundle so far.
    longest: u8,
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claim").field("stream", &self.name).field("epoch", &self.rights.epoch).finish_non_exhaustive()
    }
}

impl Bus {
    /// Claims a stream; None if an earlier publisher objects. While NATS is away everything may be claimed: who was
    /// later finds out when it is back.
    ///
    /// # Errors
    /// [`BusError`] if NATS cannot be asked.
    pub async fn claim(&self, name: &StreamName, model: ModelId) -> Result<Option<Claim>, BusError> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let epoch = Epoch { started: u64::try_from(started).unwrap_or(u64::MAX), id: self.id };
        let subject = self.prefix.subject("claim", &stream_token(name));
        // Listening before asking: of two that ask at the same time, one hears the other.
        let others = self.client.subscribe(subject.clone()).await.map_err(refused("claim a stream"))?;
        let rights = Rights::new(epoch, model, Instant::now());
        let mut claim = Claim { bus: self.clone(), name: name.clone(), rights, others, longest: 0 };
        if !self.is_connected() {
            return Ok(Some(claim));
        }
        let request = Request::new().payload(claim.rights.word(Kind::Claim).into()).timeout(Some(OBJECTION));
        let asked = self.client.send_request(subject, request);
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => {
                    // No answer, or nobody there to give one: nobody objects.
                    let objects = answer.is_ok_and(|m| matches!(claim.rights.hear(&m.payload), Ok(Verdict::GiveWay)));
                    return Ok((!objects).then_some(claim));
                }
                other = claim.others.next() => match other {
                    Some(message) => if claim.hear(message).await { return Ok(None) },
                    None => return Err(BusError::Connect("closed".to_owned())),
                },
            }
        }
    }

    /// Follows a stream that others publish, with its first `layers` layers.
    pub fn follow(&self, name: &StreamName) -> LiveStream {
        LiveStream {
            client: self.client.clone(),
            prefix: self.prefix.clone(),
            token: stream_token(name),
            layers: Default::default(),
            turn: 0,
        }
    }
}

impl Claim {
    /// Who publishes.
    pub fn epoch(&self) -> Epoch {
        self.rights.epoch
    }

    /// Takes another's claim: objects, or gives way. True if we give way.
    async fn hear(&mut self, message: async_nats::Message) -> bool {
        let verdict = self.rights.hear(&message.payload);
        match (&verdict, message.reply) {
            (Ok(Verdict::Object), Some(reply)) => {
                let _ = self.bus.client.publish(reply, self.rights.word(Kind::Claim).into()).await;
            }
            (Err(_), _) => BusCounters::add(&self.bus.counters.malformed, 1),
            _ => {}
        }
        matches!(verdict, Ok(Verdict::GiveWay))
    }

    /// Waits until an earlier publisher turns up, and meanwhile tells the others that we are here. Cancel-safe.
    pub async fn challenged(&mut self) {
        loop {
            tokio::select! {
                other = self.others.next() => match other {
                    Some(message) => if self.hear(message).await { return },
                    // The connection was closed for good: the process ends.
                    None => std::future::pending().await,
                },
                () = tokio::time::sleep_until(self.rights.due().into()) => {
                    if let Some(word) = self.rights.repeat(Instant::now()).filter(|_| self.bus.is_connected()) {
                        let subject = self.bus.prefix.subject("claim", &stream_token(&self.name));
                        let _ = self.bus.client.publish(subject, word.into()).await;
                    }
                }
            }
        }
    }

    /// Publishes a bundle, or drops it if NATS is away: what is live must not arrive later. With `constant` in messages of one size
    /// for each layer.
    pub async fn publish(&mut self, bundle: &PackedBundle, constant: Option<MessageRate>) {
        let counters = &self.bus.counters;
        let (sequence, epoch, model) = (self.rights.next_sequence(), self.rights.epoch, self.rights.model);
        self.longest = self.longest.max(bundle.frames);
        let split = match constant {
            Some(rate) => split_constant(bundle, rate, epoch, model, sequence),
            None => split(bundle, epoch, model, sequence),
        };
        let messages = match split {
            Ok(messages) if self.bus.is_connected() => messages,
            _ => return BusCounters::add(&counters.dropped, 1),
        };
        for message in messages {
            let subject = self.bus.prefix.subject("live", &format!("{}.{}", stream_token(&self.name), message.layer));
            let bytes = message.encode_for(self.longest);
            BusCounters::add(&counters.messages, 1);
            BusCounters::add(&counters.bytes, bytes.len() as u64);
            if self.bus.client.publish(subject, bytes.into()).await.is_err() {
                return BusCounters::add(&counters.dropped, 1);
            }
        }
        BusCounters::add(&counters.published, 1);
    }

    /// Says that the stream has ended, or that it goes on from elsewhere.
    pub async fn finish(self, kind: Kind) {
        if !self.bus.is_connected() {
            return;
        }
        let subject = self.bus.prefix.subject("live", &format!("{}.0", stream_token(&self.name)));
        let _ = self.bus.client.publish(subject, self.rights.word(kind).into()).await;
        let _ = self.bus.flush().await;
    }
}

/// What came from a stream that is followed.
pub type Heard = Result<LayerMessage, MessageError>;

/// A stream that others publish; dropping it takes the subscriptions back.
pub struct LiveStream {
    client: Client,
    prefix: Prefix,
    token: String,
    layers: [Option<Subscriber>; LAYERS],
    turn: usize,
}

impl std::fmt::Debug for LiveStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveStream").field("stream", &self.token).finish_non_exhaustive()
    }
}

impl LiveStream {
    /// Subscribes to the first `layers` layers and to no others.
    ///
    /// # Errors
    /// [`BusError`] if the connection was closed for good.
    pub async fn set_layers(&mut self, layers: usize) -> Result<(), BusError> {
        for number in 0..LAYERS {
            if number >= layers {
                self.layers[number] = None;
            } else if self.layers[number].is_none() {
                let subject = self.prefix.subject("live", &format!("{}.{number}", self.token));
                let subscriber = self.client.subscribe(subject).await.map_err(refused("subscribe"))?;
                self.layers[number] = Some(subscriber);
            }
        }
        Ok(())
    }

    /// The next message of any layer; None if the connection was closed for good. Cancel-safe.
    pub async fn next(&mut self) -> Option<Heard> {
        let message = std::future::poll_fn(|cx| self.poll(cx)).await?;
        Some(LayerMessage::parse(&message.payload))
    }

    /// In turn, so that layers stay about as far as each other.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<async_nats::Message>> {
        for step in 0..LAYERS {
            let number = (self.turn + step) % LAYERS;
            let Some(layer) = &mut self.layers[number] else { continue };
            if let Poll::Ready(message) = Pin::new(layer).poll_next(cx) {
                self.turn = number + 1;
                return Poll::Ready(message);
            }
        }
        Poll::Pending
    }
}
