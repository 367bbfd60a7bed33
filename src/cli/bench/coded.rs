//! Streams that come coded and leave coded: what a relay does for a publisher and a listener that have the token model.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until, timeout};

use super::rig::{Meter, STALLED, note, pitched};
use crate::codec::{Bucket, Encoder};
use crate::infer::LoadedModel;
use crate::jitter::Pace;
use crate::profile::Profile;
use crate::recording::LIVE_BUNDLE;
use crate::rvq::BeamWidth;
use crate::session::{
    Hello, Message, PackedBundle, SessionEncoder, StreamName, ThinReader, ThinWriter, TokenTag, Wire,
};
use crate::units::{ModelId, StageCount};
use crate::wire::{Framer, encode};

/// Seconds of sound that publishers repeat; each time the coder begins anew.
const SECONDS: usize = 10;

/// A second of media in bundles.
const BUNDLE_TIME: Duration = Profile::FRAME_TIME.saturating_mul(LIVE_BUNDLE as u32);

/// What every publisher sends, made once: the machine is the daemon's while it is measured.
pub(super) struct Broadcast {
    messages: Vec<Vec<u8>>,
    model: ModelId,
    tag: TokenTag,
}

impl Broadcast {
    /// Messages of `kbps`, coded and graded.
    pub(super) fn new(model: &LoadedModel, kbps: StageCount) -> Result<Self> {
        let tokens = model.tokens()?.context("the model has no token model")?;
        let mut processor = model.processor(BeamWidth::GREEDY)?;
        let mut encoder = Encoder::new(model.profile.clone(), model.profile.stages, LIVE_BUNDLE)?;
        encoder.set_job_frames(usize::from(LIVE_BUNDLE));
        encoder.hold_rate(Bucket::new(kbps.kbps(), 2, 7.5), true);
        let (mut coder, mut thin) = (SessionEncoder::new(Arc::clone(&tokens)).on(Wire::ALL), ThinWriter::default());
        let mut messages = Vec::new();
        for second in 0..SECONDS {
            let pcm: Vec<f32> = pitched(second).map(|sample| f32::from(sample) / 32_768.0).collect();
            encoder.push(&pcm);
            while let Some(made) = processor.encode(&mut encoder)? {
                let packed = PackedBundle::pack(&made);
                let (bundle, checked) = coder.encode(&packed)?;
                let mut bytes = Vec::new();
                encode(&thin.thin(Message::Coded { sequence: 0, bundle, checked }), &mut bytes);
                encoder.spent(made.frames, packed.codes(), 8 * bytes.len() as u64);
                messages.push(bytes);
            }
        }
        Ok(Self { messages, model: model.profile.model_id, tag: TokenTag::of(&tokens) })
    }

    async fn connect(&self, address: &str, hello: Hello) -> Result<TcpStream> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut bytes = Vec::new();
        encode(&Message::Hello(Hello { coding: Some(self.tag), wire: Wire::ALL, ..hello }), &mut bytes);
        socket.write_all(&bytes).await?;
        Ok(socket)
    }
}

/// Starts a publisher and a listener of a stream of their own: a bundle in every 100 ms, and what comes back is timed.
pub(super) fn stream(address: &str, number: usize, what: &Arc<Broadcast>) -> Arc<Meter> {
    let meter = Arc::new(Meter::default());
    let (task, address, what) = (Arc::clone(&meter), address.to_owned(), Arc::clone(what));
    tokio::spawn(async move {
        let ended = both_ways(&task, &address, number, &what).await;
        task.end(ended.is_ok());
    });
    meter
}

async fn both_ways(meter: &Meter, address: &str, number: usize, what: &Broadcast) -> Result<()> {
    let name = StreamName::new(&format!("load.{number}"))?;
    let mut output = what.connect(address, Hello::subscribe(name.clone(), what.model)).await?;
    // The listener must be there before the first bundle is.
    sleep(Duration::from_millis(100)).await;
    let hello = Hello::publish(name, what.model, StageCount::MAX, LIVE_BUNDLE);
    let mut input = what.connect(address, Hello { pace: Pace::Live, ..hello }).await?;
    // When each bundle was sent.
    let sent: Mutex<Vec<Instant>> = Mutex::default();
    let sending = async {
        let (mut said, start) =
            ([0; 256], tokio::time::Instant::now() + BUNDLE_TIME.mul_f64(number as f64 * 0.618 % 1.0));
        for bundle in 0u32.. {
            let due = start + BUNDLE_TIME * bundle;
            sleep_until(due).await;
            note(&meter.lateness, due.elapsed());
            if meter.stopped() {
                break;
            }
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            input.write_all(&what.messages[bundle as usize % what.messages.len()]).await?;
            if let Ok(0) = input.try_read(&mut said) {
                bail!("the daemon closed the input");
            }
        }
        input.shutdown().await?;
        Ok(())
    };
    let receiving = async {
        let (mut framer, mut buffer, mut reader) = (Framer::default(), [0; 4 << 10], ThinReader::new(true, Wire::ALL));
        loop {
            let Ok(read) = timeout(STALLED, output.read(&mut buffer)).await else {
                bail!("nothing came back for {STALLED:?}")
            };
            let (n, now) = (read?, Instant::now());
            framer.push(&buffer[..n]);
            while let Some(message) = framer.next()? {
                match reader.whole(message)? {
                    Message::Coded { bundle, .. } => {
                        let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                        let at = sent.get(bundle.first_frame as usize / usize::from(LIVE_BUNDLE));
                        note(&meter.latencies, at.map_or(STALLED, |&at| now.saturating_duration_since(at)));
                        meter.came();
                    }
                    Message::HelloAck { coding: None, .. } => bail!("the daemon does not code"),
                    Message::Close(_) if meter.stopped() => return Ok(()),
                    Message::Close(close) => return Err(close.into()),
                    _ => {}
                }
            }
            if n == 0 {
                bail!("the daemon closed the output");
            }
        }
    };
    tokio::try_join!(sending, receiving)?;
    Ok(())
}
