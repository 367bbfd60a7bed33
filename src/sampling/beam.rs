//! Beam search over token sequences.

use super::TokenSource;
use crate::beam::{Candidate, Candidates};

/// The sequence of `steps` tokens that a beam of `width` finds most likely, and its negative log-likelihood in nats.
/// Width 1 is greedy. Each survivor is a copy of the source.
pub fn search<S: TokenSource + Clone>(start: &S, width: usize, steps: usize) -> (Vec<u16>, f32) {
    let mut beam = vec![(start.clone(), Vec::<u16>::new(), 0.0f32)];
    let (mut list, mut logits) = (Candidates::new(width), Vec::new());
    for _ in 0..steps {
        list.clear();
        for (parent, (source, _, cost)) in (0u16..).zip(&mut beam) {
            source.logits(&mut logits);
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = logits.iter().map(|&l| libm::expf(l - max)).sum();
            let whole = max + libm::logf(sum);
            for (entry, &l) in (0u16..).zip(&logits) {
                let cost = *cost + (whole - l);
                if cost < list.limit() || list.is_empty() {
                    list.offer(Candidate { cost, parent, entry });
                }
            }
        }
        beam = list
            .found()
            .iter()
            .map(|c| {
                let (source, sequence, _) = &beam[usize::from(c.parent)];
                let (mut source, mut sequence) = (source.clone(), sequence.clone());
                source.push(c.entry);
                sequence.push(c.entry);
                (source, sequence, c.cost)
            })
            .collect();
    }
    beam.into_iter().next().map_or((Vec::new(), 0.0), |(_, sequence, cost)| (sequence, cost))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Greedy falls for token 1; the best pair starts with 0.
    #[derive(Clone)]
    struct Trap(Vec<u16>);

    impl TokenSource for Trap {
        type Mark = ();
        fn logits(&mut self, out: &mut Vec<f32>) {
            let p: [f32; 2] = match self.0.as_slice() {
                [] => [0.45, 0.55],
                [0] => [0.95, 0.05],
                _ => [0.5, 0.5],
            };
            out.clear();
            out.extend(p.map(f32::ln));
        }
        fn push(&mut self, token: u16) {
            self.0.push(token);
        }
        fn mark(&self) {}
        fn back_to(&mut self, (): &()) {}
    }

    #[test]
    fn a_beam_finds_what_greedy_misses() {
        let (greedy, worse) = search(&Trap(Vec::new()), 1, 2);
        let (best, cost) = search(&Trap(Vec::new()), 2, 2);
        assert_eq!((greedy[0], best), (1, vec![0, 0]));
        assert!((cost + (0.45f32 * 0.95).ln()).abs() < 1e-5 && worse > cost, "{cost} {worse}");
        assert_eq!(search(&Trap(Vec::new()), 3, 0), (Vec::new(), 0.0));
    }
}
