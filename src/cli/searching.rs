//! The search of `send`, in a thread of its own: what was read comes out with the latents that were found for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use anyhow::Result;

use crate::capture::CaptureError;
use crate::codec::Processor;
use crate::profile::Profile;
use crate::synthesis::{Analyser, Effort, Refiner};

/// Frames of a recording that are searched together (1 s), and those after them that are looked at: less than in files, since they are
/// to be sent in their time.
const PART_FRAMES: usize = 50;
const AHEAD_FRAMES: usize = 10;

/// Parts that may wait to be sent.
const READY: usize = 1;

/// Sound, and the latents of as many frames as it completes; none if nothing is searched for.
pub(super) struct Piece {
    pub(super) pcm: Vec<f32>,
    pub(super) latents: Vec<f32>,
    /// Steps of the search by now.
    pub(super) steps: u32,
}

/// How much is searched together.
pub(super) enum Part {
    /// What a bundle holds, so many frames, which must not wait for what follows.
    Live(Arc<AtomicU8>),
    /// What is there already.
    Recording,
}

/// What searches.
pub(super) struct Searching {
    pub(super) processor: Processor,
    pub(super) refiner: Refiner,
    /// Decides on the steps; None: they stay as they are.
    pub(super) effort: Option<Effort>,
    pub(super) part: Part,
}

/// Passes on what is read, searched for if `searching` does; the queue ends after the last piece or with an error.
pub(super) fn search_ahead(
    chunks: Receiver<Result<Vec<f32>, CaptureError>>,
    searching: Option<Searching>,
) -> Receiver<Result<Piece>> {
    let (sender, receiver) = sync_channel(READY);
    std::thread::spawn(move || {
        let done = match searching {
            Some(searching) => searching.run(&chunks, &sender),
            None => chunks.iter().try_for_each(|pcm| {
                // Nobody listens any more when the program ends early.
                let piece = Piece { pcm: pcm?, latents: Vec::new(), steps: 0 };
                let _ = sender.send(Ok(piece));
                Ok(())
            }),
        };
        if let Err(e) = done {
            let _ = sender.send(Err(e));
        }
    });
    receiver
}

impl Searching {
    fn run(self, chunks: &Receiver<Result<Vec<f32>, CaptureError>>, sender: &SyncSender<Result<Piece>>) -> Result<()> {
        let Self { mut processor, mut refiner, mut effort, part } = self;
        let profile = processor.profile();
        if let Some(effort) = &effort {
            refiner.set_steps(effort.steps());
        }
        let mut analyser = Analyser::new(Arc::clone(&profile), Some(&mut refiner));
        let mut pcm = Vec::new();
        loop {
            let chunk = chunks.recv().ok().transpose()?;
            let ended = chunk.is_none();
            match &chunk {
                Some(chunk) => analyser.push(chunk),
                None => analyser.finish(),
            }
            pcm.extend(chunk.unwrap_or_default());
            match &part {
                Part::Live(frames) => analyser.set_part(usize::from(frames.load(Ordering::Relaxed))),
                Part::Recording => analyser.set_part_ahead(PART_FRAMES, AHEAD_FRAMES),
            }
            loop {
                let (mut latents, start) = (Vec::new(), Instant::now());
                if !analyser.next_part(&mut processor, &mut latents)? {
                    break;
                }
                if let Some(effort) = &mut effort {
                    let frames = latents.len() / profile.latent_dim;
                    effort.took(start.elapsed(), Profile::FRAME_TIME * frames as u32);
                    analyser.set_steps(effort.steps());
                }
                let steps = effort.map_or(0, |e| e.steps());
                if sender.send(Ok(Piece { pcm: std::mem::take(&mut pcm), latents, steps })).is_err() {
                    return Ok(());
                }
            }
            if ended {
                let _ = sender.send(Ok(Piece { pcm, latents: Vec::new(), steps: effort.map_or(0, |e| e.steps()) }));
                return Ok(());
            }
        }
    }
}
