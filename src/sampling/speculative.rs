//! Speculative sampling: a small model drafts, the large one checks (Leviathan et al. 2023; Chen et al. 2023).
//!
//! Tokens have exactly the target's distribution: a draft token x is kept with probability min(1, p(x) / q(x)); the first
//! one refused is replaced by a draw from the part of p above q; if all are kept, the target adds one of its own.

use super::{Distribution, Sampler, TokenSource};

/// What drafting gave so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Tokens the draft proposed.
    pub proposed: u64,
    /// Proposals that were kept.
    pub accepted: u64,
    /// Tokens in all.
    pub tokens: u64,
    /// Rounds: times the target was asked.
    pub rounds: u64,
}

impl Stats {
    /// Share of proposals that were kept; 0 before the first.
    pub fn acceptance(&self) -> f64 {
        if self.proposed == 0 { 0.0 } else { self.accepted as f64 / self.proposed as f64 }
    }
}

/// Runs rounds of drafting and checking.
#[derive(Debug, Clone)]
pub struct Speculative {
    ahead: usize,
    most: usize,
    adaptive: bool,
    stats: Stats,
    /// Running share of kept proposals, for the adaptive length.
    recent: f32,
}

/// Longest draft.
pub const MAX_AHEAD: usize = 16;

impl Speculative {
    /// Drafts of `ahead` tokens (0 to 16; 0 is plain sampling). With `adaptive` the length follows what is accepted, between
    /// 0 and `ahead`.
    pub fn new(ahead: usize, adaptive: bool) -> Self {
        let most = ahead.min(MAX_AHEAD);
        Self { ahead: most, most, adaptive, stats: Stats::default(), recent: 1.0 }
    }

    /// What drafting gave so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// One round: appends 1 to `ahead + 1` tokens to `out`, but never more than `limit` (at least 1). Draft and target then
    /// stand behind them.
    pub fn round<D: TokenSource, T: TokenSource>(
        &mut self,
        draft: &mut D,
        target: &mut T,
        sampler: &mut Sampler,
        limit: usize,
        out: &mut Vec<u16>,
    ) {
        let ahead = self.ahead.min(limit.saturating_sub(1));
        let start = draft.mark();
        let (mut proposals, mut guesses) = (Vec::with_capacity(ahead), Vec::with_capacity(ahead));
        let mut logits = Vec::new();
        for _ in 0..ahead {
            let mut q = Distribution::default();
            draft.logits(&mut logits);
            sampler.distribution(&logits, &proposals, &mut q);
            let token = sampler.draw(&q);
            draft.push(token);
            proposals.push(token);
            guesses.push(q);
        }
        let (mut kept, mut own) = (0, None);
        let mut p = Distribution::default();
        for (i, q) in guesses.iter().enumerate() {
            target.logits(&mut logits);
            sampler.distribution(&logits, &proposals[..i], &mut p);
            let token = proposals[i];
            if sampler.uniform() * q.probability(token) < p.probability(token) {
                target.push(token);
                kept += 1;
            } else {
                own = Some(sampler.draw(&p.excess_over(q)));
                break;
            }
        }
        if kept < ahead {
            draft.back_to(&start);
            proposals[..kept].iter().for_each(|&t| draft.push(t));
        }
        let own = own.unwrap_or_else(|| {
            target.logits(&mut logits);
            sampler.distribution(&logits, &proposals, &mut p);
            sampler.draw(&p)
        });
        target.push(own);
        draft.push(own);
        for &token in proposals[..kept].iter().chain([&own]) {
            sampler.note(token);
            out.push(token);
        }
        self.count(ahead, kept);
    }

    fn count(&mut self, proposed: usize, accepted: usize) {
        self.stats.proposed += proposed as u64;
        self.stats.accepted += accepted as u64;
        self.stats.tokens += accepted as u64 + 1;
        self.stats.rounds += 1;
        if self.adaptive {
            if proposed > 0 {
                self.recent += 0.1 * (accepted as f32 / proposed as f32 - self.recent);
            }
            // Expected run of kept tokens; a short probe now and then notices when the draft gets better.
            let run = self.recent / (1.0 - self.recent).max(0.05);
            let probe = usize::from(self.stats.rounds.is_multiple_of(16));
            self.ahead = (run.round() as usize).max(probe).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Params;

    /// A model whose logits depend on the last two tokens only; `blur` makes it a worse or better copy of itself.
    #[derive(Clone)]
    struct Toy {
        sequence: Vec<u16>,
        blur: f32,
    }

    impl TokenSource for Toy {
        type Mark = usize;

        fn logits(&mut self, out: &mut Vec<f32>) {
            let n = self.sequence.len();
            let last = |back: usize| n.checked_sub(back).map_or(0, |i| u32::from(self.sequence[i]));
            let (a, b) = (last(1), last(2));
            out.clear();
            out.extend(
                (0..6u32).map(|i| ((a * 7 + b * 3 + i * 5) % 11) as f32 * 0.3 + self.blur * ((i * 3) % 4) as f32),
            );
        }

        fn push(&mut self, token: u16) {
            self.sequence.push(token);
        }

        fn mark(&self) -> usize {
            self.sequence.len()
        }

        fn back_to(&mut self, mark: &usize) {
            self.sequence.truncate(*mark);
        }
    }

    fn toy(blur: f32) -> Toy {
        Toy { sequence: Vec::new(), blur }
    }

    /// Counts of triples of tokens over many short sequences.
    fn triples(ahead: usize, blur: f32, adaptive: bool, params: Params, seed: u64) -> (Vec<f64>, Stats) {
        let mut counts = vec![0.0; 216];
        let mut sampler = Sampler::new(params, seed);
        let mut machine = Speculative::new(ahead, adaptive);
        for _ in 0..40_000 {
            let (mut draft, mut target, mut out) = (toy(blur), toy(0.0), Vec::new());
            while out.len() < 3 {
                machine.round(&mut draft, &mut target, &mut sampler, 3 - out.len(), &mut out);
                assert_eq!(draft.sequence, target.sequence);
                assert_eq!(out, target.sequence);
            }
            counts[usize::from(out[0]) * 36 + usize::from(out[1]) * 6 + usize::from(out[2])] += 1.0;
        }
        (counts, machine.stats())
    }

    /// Exact probabilities of the triples under plain sampling of the target.
    fn exact(params: Params) -> Vec<f64> {
        let mut sampler = Sampler::new(params, 0);
        let mut d = Distribution::default();
        let mut next = |sequence: &[u16]| {
            let (mut logits, mut t) = (Vec::new(), toy(0.0));
            t.sequence = sequence.to_vec();
            t.logits(&mut logits);
            sampler.distribution(&logits, &[], &mut d);
            d.probabilities().iter().map(|&p| f64::from(p)).collect::<Vec<_>>()
        };
        let mut all = Vec::new();
        for a in 0..6u16 {
            for b in 0..6u16 {
                let (pa, pb, pc) = (next(&[])[usize::from(a)], next(&[a])[usize::from(b)], next(&[a, b]));
                all.extend(pc.iter().map(|c| pa * pb * c));
            }
        }
        all
    }

    #[test]
    fn tokens_have_the_targets_distribution() {
        let hot = Params::default();
        let narrow = Params::default().temperature(0.8).unwrap().top_k(4).unwrap();
        for (ahead, blur, adaptive, params) in [
            (0, 1.0, false, hot),
            (2, 0.0, false, hot),
            (2, 0.4, false, hot),
            (4, 2.0, true, hot),
            (2, 1.0, false, narrow),
        ] {
            let (counts, stats) = triples(ahead, blur, adaptive, params, 5);
            let expected = exact(params);
            let total: f64 = counts.iter().sum();
            let mut chi = 0.0;
            let mut degrees = 0u32;
            for (c, p) in counts.iter().zip(&expected) {
                if *p == 0.0 {
                    assert_eq!(*c, 0.0);
                } else {
                    chi += (c - p * total).powi(2) / (p * total);
                    degrees += 1;
                }
            }
            // 99.99 % point of chi-square by Wilson and Hilferty.
            let n = f64::from(degrees - 1);
            let limit = n * (1.0 - 2.0 / (9.0 * n) + 3.72 * (2.0 / (9.0 * n)).sqrt()).powi(3);
            assert!(chi < limit, "ahead {ahead} blur {blur}: chi-square {chi} over {limit}");
            match (ahead, blur == 0.0) {
                (0, _) => assert_eq!((stats.proposed, stats.accepted), (0, 0)),
                (_, true) => assert_eq!(stats.proposed, stats.accepted),
                _ => assert!(stats.accepted < stats.proposed, "{stats:?}"),
            }
        }
    }

    #[test]
    fn greedy_is_the_same_with_and_without_a_draft() {
        let run = |ahead, blur| {
            let (mut draft, mut target, mut out) = (toy(blur), toy(0.0), Vec::new());
            let mut sampler = Sampler::new(Params::greedy(), 1);
            let mut machine = Speculative::new(ahead, false);
            while out.len() < 200 {
                machine.round(&mut draft, &mut target, &mut sampler, 200 - out.len(), &mut out);
            }
            out
        };
        let plain = run(0, 0.0);
        for (ahead, blur) in [(1, 0.3), (4, 0.3), (4, -5.0), (16, 5.0)] {
            assert_eq!(run(ahead, blur), plain);
        }
    }

    #[test]
    fn a_wrong_certain_draft_is_refused_at_the_first_token() {
        struct Certain(u16);
        impl TokenSource for Certain {
            type Mark = ();
            fn logits(&mut self, out: &mut Vec<f32>) {
                out.clear();
                out.extend((0..4).map(|i| if i == self.0 { 0.0 } else { f32::NEG_INFINITY }));
            }
            fn push(&mut self, _: u16) {}
            fn mark(&self) {}
            fn back_to(&mut self, (): &()) {}
        }
        let mut out = Vec::new();
        let mut machine = Speculative::new(3, false);
        machine.round(&mut Certain(1), &mut Certain(2), &mut Sampler::new(Params::default(), 1), 10, &mut out);
        assert_eq!(out, [2]);
        assert_eq!(machine.stats(), Stats { proposed: 3, accepted: 0, tokens: 1, rounds: 1 });
    }
}
