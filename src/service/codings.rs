//! Bundles of a stream, coded once for all listeners that get the same.
//!
//! What a coded bundle looks like depends on the bundles that its listener got before. Listeners that got the same ones stand at the
//! same place, and what one of them has had coded there serves all. Who joins later begins with a bundle that needs none before it; at
//! the next whole ten seconds of the stream everybody begins anew in the same way, if there is anybody to be joined with.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::bitstream::CodedBundle;
use crate::session::{Close, CodingError, PackedBundle, Reason, SessionEncoder, Wire};
use crate::token::TokenModel;
use crate::units::StageCount;

/// Frames after which listeners may begin anew together: 10 s, as files do.
const TOGETHER_FRAMES: u64 = 500;

/// Results that are kept for each listener of a stream: as many bundles one of them may be behind the first.
const KEPT: usize = 2;

/// Why a bundle was not coded.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodingsError {
    #[error(transparent)]
    Bundle(#[from] CodingError),
    /// Its thread was lost, which happens only when the process ends.
    #[error("the coder was stopped")]
    Stopped,
}

impl From<CodingsError> for Close {
    fn from(e: CodingsError) -> Self {
        match e {
            CodingsError::Bundle(e) => Self::new(Reason::Protocol, e.to_string()),
            CodingsError::Stopped => stopped(),
        }
    }
}

/// A coder was lost, or a shutdown does not wait for it.
pub(super) fn stopped() -> Close {
    Close::new(Reason::ShuttingDown, "the server is shutting down")
}

/// What listeners want alike. Only those of one kind can stand at the same place for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) wire: Wire,
    pub(super) stages: StageCount,
    /// Frames that may wait for each other.
    pub(super) latency: Option<u8>,
    /// Every bundle begins anew, since the one before may be lost: such listeners always stand at the same place.
    pub(super) alone: bool,
}

/// Where a listener's coder stands: what it was given so far. Places of a stream with one number are the same.
#[derive(Debug)]
struct Place {
    /// 0: at the start.
    number: u64,
    /// Number of the first place after the start.
    chain: u64,
    state: SessionEncoder,
}

/// A coded bundle, and the place behind it.
#[derive(Debug, Clone)]
struct Made {
    bundle: CodedBundle,
    checked: bool,
    place: Arc<Place>,
}

/// What is coded, or was.
struct Entry {
    after: u64,
    after_silence: bool,
    wire: Wire,
    bundle: PackedBundle,
    made: Arc<OnceCell<Made>>,
}

#[derive(Default)]
struct State {
    next_member: u64,
    members: HashMap<u64, (Kind, u64)>,
    entries: VecDeque<Entry>,
}

/// The coded bundles of one stream. Memory is bounded: [`KEPT`] places for each listener that gets coded ones.
#[derive(Default)]
pub(super) struct Codings {
    state: Mutex<State>,
    places: AtomicU64,
}

impl std::fmt::Debug for Codings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codings").finish_non_exhaustive()
    }
}

impl Codings {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The coder of a listener that joins.
    pub(super) fn join(self: &Arc<Self>, model: Arc<TokenModel>, kind: Kind) -> ListenerCoder {
        let mut state = self.lock();
        let member = state.next_member;
        state.next_member += 1;
        state.members.insert(member, (kind, 0));
        drop(state);
        let start = Arc::new(Place { number: 0, chain: 0, state: SessionEncoder::new(model).on(kind.wire) });
        ListenerCoder {
            codings: Arc::clone(self),
            member,
            kind,
            at: Arc::clone(&start),
            start,
            silence: false,
            window: None,
        }
    }

    /// Where the result for a bundle after a place stands, or will stand.
    fn entry(&self, after: u64, after_silence: bool, wire: Wire, bundle: &PackedBundle) -> Arc<OnceCell<Made>> {
        let mut state = self.lock();
        let same =
            |e: &&Entry| e.after == after && e.after_silence == after_silence && e.wire == wire && e.bundle == *bundle;
        if let Some(entry) = state.entries.iter().find(same) {
            return Arc::clone(&entry.made);
        }
        let made = Arc::default();
        let most = if state.members.len() > 1 { KEPT * state.members.len() } else { 0 };
        state.entries.push_back(Entry { after, after_silence, wire, bundle: bundle.clone(), made: Arc::clone(&made) });
        let over = state.entries.len().saturating_sub(most);
        state.entries.drain(..over);
        made
    }

    /// Whether somebody who wants the same stands elsewhere.
    fn is_split(&self, kind: Kind, chain: u64) -> bool {
        self.lock().members.values().any(|&(k, c)| k == kind && c != chain)
    }
}

/// One listener's coder.
pub(super) struct ListenerCoder {
    codings: Arc<Codings>,
    member: u64,
    kind: Kind,
    start: Arc<Place>,
    at: Arc<Place>,
    /// Frames were left out since.
    silence: bool,
    /// Which ten seconds of the stream the bundle before was of.
    window: Option<u64>,
}

impl Drop for ListenerCoder {
    fn drop(&mut self) {
        let mut state = self.codings.lock();
        state.members.remove(&self.member);
        if state.members.len() <= 1 {
            state.entries.clear();
        }
    }
}

impl ListenerCoder {
    /// Frames are left out, as after a description of silence.
    pub(super) fn silence(&mut self) {
        self.silence = true;
    }

    /// The listener wants another number of stages from the next bundle on.
    pub(super) fn want(&mut self, stages: StageCount) {
        self.kind.stages = stages;
    }

    /// Codes a bundle off the threads that serve connections, unless that was done for another listener. The coder goes on from it only
    /// after [`ListenerCoder::sent`], so that a bundle may be tried with fewer stages. `runs` counts what was really done.
    pub(super) async fn encode(&mut self, bundle: &PackedBundle, runs: &AtomicU64) -> Result<Trial, CodingsError> {
        let window = bundle.first_frame / TOGETHER_FRAMES;
        if !self.kind.alone
            && self.window.replace(window).is_some_and(|w| w != window)
            && self.codings.is_split(self.kind, self.at.chain)
        {
            self.at = Arc::clone(&self.start);
        }
        // What begins anew does not depend on what was before.
        let silence = self.silence && self.at.number > 0;
        let cell = self.codings.entry(self.at.number, silence, self.kind.wire, bundle);
        let made = cell
            .get_or_try_init(|| async {
                let (at, bundle) = (Arc::clone(&self.at), bundle.clone());
                let number = 1 + self.codings.places.fetch_add(1, Ordering::Relaxed);
                runs.fetch_add(1, Ordering::Relaxed);
                let work = spawn_blocking(move || run(&at, number, silence, &bundle));
                work.await.map_err(|_| CodingsError::Stopped)?
            })
            .await?;
        Ok(Trial(made.clone()))
    }

    /// Notes what was sent.
    pub(super) fn sent(&mut self, trial: Trial) {
        if self.kind.alone {
            return;
        }
        self.at = trial.0.place;
        self.silence = false;
        self.codings.lock().members.insert(self.member, (self.kind, self.at.chain));
    }
}

fn run(at: &Place, number: u64, silence: bool, bundle: &PackedBundle) -> Result<Made, CodingsError> {
    let mut state = at.state.clone();
    if silence {
        state.silence();
    }
    let (bundle, checked) = state.encode(bundle)?;
    let chain = if at.number == 0 { number } else { at.chain };
    Ok(Made { bundle, checked, place: Arc::new(Place { number, chain, state }) })
}

/// A coded bundle that may be sent.
pub(super) struct Trial(Made);

impl Trial {
    /// The bundle, and whether its payload ends with a check sum.
    pub(super) fn bundle(&self) -> (CodedBundle, bool) {
        (self.0.bundle.clone(), self.0.checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitstream::Bundle;
    use crate::fake;
    use crate::session::SessionDecoder;

    fn bundle(n: u64) -> PackedBundle {
        let codes = (0..20).map(|k| (n * 37 + k * 11) as u16 % 256).collect();
        PackedBundle::pack(&Bundle::new(5 * n, 5, StageCount::new(4).unwrap(), codes).unwrap())
    }

    struct Ear(ListenerCoder, SessionDecoder);

    impl Ear {
        fn new(codings: &Arc<Codings>, model: &Arc<TokenModel>, stages: u8) -> Self {
            let kind = Kind { wire: Wire::ALL, stages: StageCount::new(stages).unwrap(), latency: None, alone: false };
            Self(codings.join(Arc::clone(model), kind), SessionDecoder::new(Arc::clone(model)).on(Wire::ALL))
        }

        async fn hear(&mut self, bundle: &PackedBundle, runs: &AtomicU64) {
            let bundle = bundle.limited(self.0.kind.stages).unwrap();
            let trial = self.0.encode(&bundle, runs).await.unwrap();
            let (coded, checked) = trial.bundle();
            self.0.sent(trial);
            assert_eq!(self.1.decode(&coded, checked).unwrap(), bundle);
        }
    }

    #[tokio::test]
    async fn listeners_that_want_the_same_share_a_coder_and_who_joins_later_soon_does() {
        let model = crate::token::fake::model(&fake::codebooks(16, 7), 1);
        let (codings, counted) = (Arc::new(Codings::default()), AtomicU64::new(0));
        let runs = || counted.swap(0, Ordering::Relaxed);
        let mut ears: Vec<_> = (0..5).map(|_| Ear::new(&codings, &model, 4)).collect();
        let mut n = 0;
        let mut play = async |ears: &mut Vec<Ear>, until: u64| {
            while n < until {
                for ear in ears.iter_mut() {
                    if n % 7 == 3 {
                        ear.0.silence();
                        ear.1.silence();
                    }
                    ear.hear(&bundle(n), &counted).await;
                }
                n += 1;
            }
        };
        play(&mut ears, 40).await;
        assert_eq!(runs(), 40);
        // Another, and one that wants less.
        ears.push(Ear::new(&codings, &model, 4));
        ears.push(Ear::new(&codings, &model, 2));
        play(&mut ears, 100).await;
        assert_eq!(runs(), 3 * 60);
        // From frame 500 on they are together.
        play(&mut ears, 150).await;
        assert_eq!(runs(), 2 * 50);
        // Who is alone keeps nothing.
        ears.truncate(1);
        play(&mut ears, 160).await;
        assert_eq!((runs(), codings.lock().entries.len()), (10, 0));
    }

    #[tokio::test]
    async fn a_bundle_that_was_only_tried_leaves_no_trace() {
        let model = crate::token::fake::model(&fake::codebooks(16, 7), 1);
        let (codings, runs) = (Arc::new(Codings::default()), AtomicU64::new(0));
        let mut ear = Ear::new(&codings, &model, 4);
        for n in 0..20 {
            ear.0.encode(&bundle(n), &runs).await.unwrap();
            ear.hear(&bundle(n).limited(StageCount::new(3).unwrap()).unwrap(), &runs).await;
        }
    }

    #[tokio::test]
    async fn those_who_ask_at_once_wait_for_one_run() {
        let model = crate::token::fake::model(&fake::codebooks(16, 7), 1);
        let (codings, counters) = (Arc::new(Codings::default()), Arc::new(AtomicU64::new(0)));
        let ears: Vec<_> = (0..8).map(|_| Ear::new(&codings, &model, 4)).collect();
        let hearing: Vec<_> = ears
            .into_iter()
            .map(|mut ear| {
                let counters = Arc::clone(&counters);
                tokio::spawn(async move {
                    ear.hear(&bundle(0), &counters).await;
                    ear
                })
            })
            .collect();
        for task in hearing {
            task.await.unwrap();
        }
        assert_eq!(counters.load(Ordering::Relaxed), 1);
    }
}
