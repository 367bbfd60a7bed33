//! Sound devices of the daemon: microphones that become streams, streams that go to loudspeakers.
//!
//! Each device has a thread of its own, because its library waits; a short queue joins the thread to a task of tokio.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::Shared;
use super::hub::Listener;
use super::pcm::{EncodedStream, PcmError, Sound};
use super::shared::DeviceState;
use crate::capture::device::{CpalBackend, DeviceEvent, DeviceInput, DeviceOutput, DeviceStats, Report};
use crate::config::{Config, DevicePort};
use crate::jitter::{Keep, Pace};
use crate::profile::Profile;
use crate::units::StageCount;

/// Pieces of 20 ms that wait between a microphone's thread and its encoder; beyond, the device's ring fills up.
const CAPTURED: usize = 16;

/// Bundles' worth of samples that wait between a decoder and its loudspeaker's thread, which is slow only while it opens.
const DECODED: usize = 64;

/// Pause before a stream that could not be opened (its name is taken, the engine is full) is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// The configured devices, not yet running.
pub(super) struct Devices {
    inputs: Vec<(DevicePort, DeviceInput)>,
    outputs: Vec<(DevicePort, DeviceOutput)>,
}

impl Devices {
    pub(super) fn new(config: &Config) -> Self {
        let input =
            |p: &DevicePort| (p.clone(), DeviceInput::when_there(&p.device, Box::new(CpalBackend), report("input", p)));
        let output = |p: &DevicePort| {
            (p.clone(), DeviceOutput::when_there(&p.device, Box::new(CpalBackend), report("output", p)))
        };
        Self {
            inputs: config.device_input.iter().map(input).collect(),
            outputs: config.device_output.iter().map(output).collect(),
        }
    }

    pub(super) fn states(&self) -> Vec<DeviceState> {
        let state = |direction, port: &DevicePort, stats: &Arc<DeviceStats>| DeviceState {
            direction,
            port: port.clone(),
            stats: Arc::clone(stats),
        };
        let inputs = self.inputs.iter().map(|(port, d)| state("input", port, d.stats()));
        inputs.chain(self.outputs.iter().map(|(port, d)| state("output", port, d.stats()))).collect()
    }

    /// Runs every device until the daemon stops.
    pub(super) fn start(self, shared: &Shared, inputs: &TaskTracker, outputs: &TaskTracker) {
        for (port, device) in self.inputs {
            inputs.spawn(serve_input(shared.clone(), port, device));
        }
        for (port, device) in self.outputs {
            outputs.spawn(serve_output(shared.clone(), port, device));
        }
    }
}

fn report(direction: &'static str, port: &DevicePort) -> Report {
    let (device, stream) = (port.device.clone(), port.stream.clone());
    Box::new(move |event| match event {
        DeviceEvent::Opened => info!(device, %stream, direction, "device {event}"),
        _ => warn!(device, %stream, direction, "device {event}"),
    })
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Option<std::thread::JoinHandle<()>> {
    match std::thread::Builder::new().name(name.to_owned()).spawn(work) {
        Ok(handle) => Some(handle),
        Err(e) => {
            warn!(error = %e, "no thread for a device");
            None
        }
    }
}

async fn serve_input(shared: Shared, port: DevicePort, mut device: DeviceInput) {
    let (sender, mut captured) = mpsc::channel(CAPTURED);
    // The thread ends when its queue does.
    let capture = thread("device-in", move || {
        loop {
            let mut pcm = Vec::new();
            device.read(&mut pcm);
            if sender.blocking_send(pcm).is_err() {
                return;
            }
        }
    });
    if capture.is_none() {
        return;
    }
    while !shared.stop_input.is_cancelled() {
        if let Err(e) = input(&shared, &port, &mut captured).await {
            warn!(device = port.device, stream = %port.stream, error = %e, "device is not published; tried again in {RETRY:?}");
            // What is said meanwhile is not kept: it would be late for ever after.
            let forget = async { while captured.recv().await.is_some() {} };
            tokio::select! {
                () = shared.stop_input.cancelled() => {}
                _ = tokio::time::timeout(RETRY, forget) => {}
            }
        }
    }
}

/// Publishes what the device gives until the daemon stops.
async fn input(shared: &Shared, port: &DevicePort, captured: &mut mpsc::Receiver<Vec<f32>>) -> Result<(), PcmError> {
    let mut source = EncodedStream::open(shared, &port.stream, Pace::Live).await?;
    loop {
        tokio::select! {
            biased;
            () = shared.stop_input.cancelled() => break,
            pcm = captured.recv(), if source.reads() => match pcm {
                Some(pcm) => source.push(&pcm).await?,
                None => break,
            },
            () = source.wait() => source.pass_on()?,
        }
    }
    source.finish().await
}

/// What a loudspeaker's thread is told.
enum Order {
    Play(Vec<f32>),
    /// The stream ended; another may follow.
    Rest,
}

async fn serve_output(shared: Shared, port: DevicePort, device: DeviceOutput) {
    let (sender, orders) = sync_channel(DECODED);
    let Some(playing) = thread("device-out", move || play(device, &orders)) else { return };
    while !shared.stop_output.is_cancelled() {
        let mut listener = shared.listen(&port.stream, Keep::Prompt);
        listener.fill_silence(Profile::FRAME_TIME);
        if let Err(e) = output(&shared, &port, &mut listener, &sender).await {
            drop(listener);
            warn!(device = port.device, stream = %port.stream, error = %e, "stream is not played; tried again in {RETRY:?}");
            tokio::select! {
                () = shared.stop_output.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        // A thread that is opening its device finds the next stream behind the queue.
        let _ = sender.try_send(Order::Rest);
    }
    drop(sender);
    // What was accepted is heard to its end.
    let _ = tokio::task::spawn_blocking(move || playing.join()).await;
}

fn play(mut device: DeviceOutput, orders: &Receiver<Order>) {
    while let Ok(order) = orders.recv() {
        match order {
            Order::Play(pcm) => device.write(&pcm),
            Order::Rest => device.rest(),
        }
    }
    device.finish();
}

/// Plays one stream to its end, or until the daemon stops.
async fn output(
    shared: &Shared,
    port: &DevicePort,
    listener: &mut Listener,
    sender: &SyncSender<Order>,
) -> Result<(), PcmError> {
    // A slot of the engine is taken only while there is something to decode.
    let mut sound: Option<Sound<'_>> = None;
    let mut full = false;
    loop {
        let bundle = tokio::select! {
            next = listener.next() => next.ok(),
            () = shared.stop_output.cancelled() => listener.queued(),
        };
        let Some(heard) = bundle else { return Ok(()) };
        shared.skipped(listener, &port.stream);
        if sound.is_none() {
            sound = Some(Sound::open(shared, &port.stream)?);
            info!(device = port.device, stream = %port.stream, "stream is played");
        }
        let Some(sound) = &mut sound else { return Ok(()) };
        let pcm = sound.decode(&heard, StageCount::MAX).await?.to_vec();
        listener.delivered(&heard);
        let refused = matches!(sender.try_send(Order::Play(pcm)), Err(TrySendError::Full(_)));
        if refused && !full {
            warn!(device = port.device, stream = %port.stream, "the device is busy opening: samples are dropped");
        }
        full = refused;
    }
}
