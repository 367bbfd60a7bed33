//! A stream that goes on for one listener after its publisher ended it.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::Shared;
use super::codings::stopped;
use super::pacer::Pacer;
use crate::bitstream::Bundle;
use crate::sampling::Params;
use crate::session::{Close, Continuation, PackedBundle};
use crate::token::{Generator, TokenModel};
use crate::units::StageCount;

/// Frames remembered for it: the token model's window.
const HISTORY: usize = 128;

/// Frames of a bundle that is made here.
const FRAMES: u16 = 5;

/// What a listener that asked for a continuation has heard.
pub(super) struct Ending {
    wish: Continuation,
    heard: VecDeque<Vec<u16>>,
    stages: StageCount,
    next_frame: u64,
}

impl Ending {
    pub(super) fn new(wish: Continuation) -> Self {
        Self { wish, heard: VecDeque::new(), stages: StageCount::MAX, next_frame: 0 }
    }

    pub(super) fn heard(&mut self, bundle: &PackedBundle) {
        let Ok(codes) = bundle.unpack() else { return };
        for frame in codes.codes.chunks_exact(codes.stages.index()) {
            if self.heard.len() == HISTORY {
                self.heard.pop_front();
            }
            self.heard.push_back(frame.to_vec());
        }
        self.stages = bundle.stages;
        self.next_frame = bundle.first_frame.saturating_add(u64::from(bundle.frames));
    }

    /// Makes the model ready; None if nothing was heard. Takes some milliseconds.
    pub(super) fn start(self, model: Arc<TokenModel>) -> Option<Continuer> {
        let temperature = f32::from(self.wish.temperature_percent) / 100.0;
        let params = Params::default().temperature(temperature).unwrap_or(Params::greedy());
        if self.heard.is_empty() {
            return None;
        }
        let history = self.heard.iter().map(Vec::as_slice);
        let generator = Generator::new(model, history, self.stages, params, self.wish.seed);
        Some(Continuer { generator, left: self.wish.frames, stages: self.stages, next_frame: self.next_frame })
    }
}

/// A continuation on its way to a listener, in real time.
pub(super) struct Continued {
    shared: Shared,
    pacer: Pacer,
    /// None while the next bundle is made, and after the last.
    source: Option<Continuer>,
    _room: OwnedSemaphorePermit,
}

impl Continued {
    /// None if there is nothing to continue, or no room for another coded session.
    pub(super) async fn start(ending: Ending, shared: &Shared) -> Result<Option<Self>, Close> {
        let Some(coding) = &shared.coding else { return Ok(None) };
        let Ok(room) = Arc::clone(&coding.room).try_acquire_owned() else {
            warn!("all of limits.coded_sessions are in use: a stream is not continued");
            return Ok(None);
        };
        let model = Arc::clone(&coding.model);
        let source = spawn_blocking(move || ending.start(model)).await.map_err(|_| stopped())?;
        Ok(source.map(|source| Self {
            shared: shared.clone(),
            pacer: Pacer::default(),
            source: Some(source),
            _room: room,
        }))
    }

    /// The next bundle, when its time has come; None after the last, and when the server stops.
    pub(super) async fn next(&mut self) -> Result<Option<PackedBundle>, Close> {
        let Some(mut source) = self.source.take() else { return Ok(None) };
        let work = spawn_blocking(move || (source.next(), source));
        let (bundle, back) = work.await.map_err(|_| stopped())?;
        let Some(bundle) = bundle else { return Ok(None) };
        tokio::select! {
            () = self.shared.stop_output.cancelled() => return Ok(None),
            () = self.pacer.wait(self.shared.engine.profile().media_time(bundle.frames)) => {}
        }
        self.source = Some(back);
        Ok(Some(bundle))
    }
}

/// Bundles of the continuation.
pub(super) struct Continuer {
    generator: Generator,
    left: u16,
    stages: StageCount,
    next_frame: u64,
}

impl Continuer {
    /// The next bundle; None after the last.
    pub(super) fn next(&mut self) -> Option<PackedBundle> {
        let frames = self.left.min(FRAMES);
        let mut codes = Vec::new();
        (0..frames).for_each(|_| self.generator.frame(&mut codes));
        let bundle = Bundle::new(self.next_frame, frames as u8, self.stages, codes).ok()?;
        self.left -= frames;
        self.next_frame += u64::from(frames);
        Some(PackedBundle::pack(&bundle))
    }
}
