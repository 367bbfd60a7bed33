//! Filters and the draw.

use std::collections::VecDeque;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Params;

/// Probabilities of the tokens after all filters; zero for those that were filtered out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    probabilities: Vec<f32>,
}

impl Distribution {
    /// Probability of a token; 0 beyond the last.
    pub fn probability(&self, token: u16) -> f32 {
        self.probabilities.get(usize::from(token)).copied().unwrap_or(0.0)
    }

    /// Probabilities of all tokens.
    pub fn probabilities(&self) -> &[f32] {
        &self.probabilities
    }

    /// What is left of this distribution where it exceeds `other`, scaled to 1; itself if nothing is.
    pub(super) fn excess_over(&self, other: &Self) -> Self {
        let over = self.probabilities.iter().zip(&other.probabilities).map(|(p, q)| (p - q).max(0.0));
        let mut rest = Self { probabilities: over.collect() };
        let sum: f32 = rest.probabilities.iter().sum();
        if sum <= 0.0 {
            return self.clone();
        }
        rest.probabilities.iter_mut().for_each(|p| *p /= sum);
        rest
    }
}

/// Chooses tokens: parameters, a generator of random numbers, and the choices so far.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: Params,
    random: ChaCha8Rng,
    history: VecDeque<u16>,
    order: Vec<(f32, u16)>,
}

impl Sampler {
    /// A sampler whose choices follow from the seed.
    pub fn new(params: Params, seed: u64) -> Self {
        Self { params, random: ChaCha8Rng::seed_from_u64(seed), history: VecDeque::new(), order: Vec::new() }
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Changes the parameters from here on.
    pub fn set_params(&mut self, params: Params) {
        self.params = params;
    }

    /// A number in 0..1, 24 bits.
    pub fn uniform(&mut self) -> f32 {
        (self.random.next_u32() >> 8) as f32 / 16_777_216.0
    }

    /// The distribution that a draw after `ahead` (choices not yet taken) would use. NaN counts as minus infinity; if no
    /// token is finite, the first is certain.
    pub fn distribution(&mut self, logits: &[f32], ahead: &[u16], out: &mut Distribution) {
        let (temperature, top_k, top_p, typical, repetition) = self.params.parts();
        let finite = |l: f32| if l.is_nan() { f32::NEG_INFINITY } else { l.min(f32::MAX) };
        self.order.clear();
        self.order.extend((0u16..).zip(logits).map(|(i, &l)| (finite(l), i)));
        self.penalise(repetition, ahead);
        out.probabilities.clear();
        out.probabilities.resize(logits.len(), 0.0);
        // Likeliest first; of equals the lower token.
        self.order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let Some(&(max, first)) = self.order.first() else { return };
        if temperature <= 0.0 || !max.is_finite() {
            out.probabilities[usize::from(first)] = 1.0;
            return;
        }
        self.order.truncate(top_k);
        for (l, _) in &mut self.order {
            *l = libm::expf((*l - max) / temperature);
        }
        normalise(&mut self.order);
        let kept = cut(&self.order, top_p);
        self.order.truncate(kept);
        if typical < 1.0 {
            normalise(&mut self.order);
            keep_typical(&mut self.order, typical);
        }
        normalise(&mut self.order);
        for &(p, token) in &self.order {
            out.probabilities[usize::from(token)] = p;
        }
    }

    fn penalise(&mut self, factor: f32, ahead: &[u16]) {
        if factor <= 1.0 {
            return;
        }
        let window = self.params.window();
        let recent = ahead.iter().rev().chain(self.history.iter().rev()).take(window);
        let mut seen: Vec<u16> = recent.copied().collect();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(entry) = self.order.get_mut(usize::from(token)) {
                entry.0 -= libm::logf(factor);
            }
        }
    }

    /// Draws from a distribution; does not count as a choice yet.
    pub fn draw(&mut self, from: &Distribution) -> u16 {
        let mut point = self.uniform();
        let mut last = 0;
        for (token, &p) in (0u16..).zip(&from.probabilities) {
            if p > 0.0 {
                if point < p {
                    return token;
                }
                point -= p;
                last = token;
            }
        }
        last
    }

    /// Notes a choice for repetition control.
    pub fn note(&mut self, token: u16) {
        if self.params.window() > 0 {
            self.history.push_back(token);
            while self.history.len() > self.params.window() {
                self.history.pop_front();
            }
        }
    }

    /// Filters, draws and notes the choice.
    pub fn sample(&mut self, logits: &[f32]) -> u16 {
        let mut distribution = Distribution::default();
        self.distribution(logits, &[], &mut distribution);
        let token = self.draw(&distribution);
        self.note(token);
        token
    }
}

fn normalise(order: &mut [(f32, u16)]) {
    let sum: f32 = order.iter().map(|o| o.0).sum();
    order.iter_mut().for_each(|o| o.0 /= sum);
}

/// How many from the front hold the probability `share` together; at least one.
fn cut(order: &[(f32, u16)], share: f32) -> usize {
    if share >= 1.0 {
        return order.len();
    }
    let mut sum = 0.0;
    let before = order.iter().take_while(|o| {
        let more = sum < share;
        sum += o.0;
        more
    });
    before.count().max(1)
}

fn keep_typical(order: &mut Vec<(f32, u16)>, share: f32) {
    let surprise = |p: f32| if p > 0.0 { -libm::logf(p) } else { f32::MAX };
    let entropy: f32 = order.iter().filter(|o| o.0 > 0.0).map(|o| o.0 * surprise(o.0)).sum();
    let distance = |o: &(f32, u16)| (surprise(o.0) - entropy).abs();
    order.sort_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.1.cmp(&b.1)));
    let kept = cut(order, share);
    order.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probabilities(params: Params, logits: &[f32]) -> Vec<f32> {
        let mut d = Distribution::default();
        Sampler::new(params, 1).distribution(logits, &[], &mut d);
        d.probabilities
    }

    fn logs(p: &[f32]) -> Vec<f32> {
        p.iter().map(|v| v.ln()).collect()
    }

    fn near(a: &[f32], b: &[f32]) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5), "{a:?} {b:?}");
    }

    #[test]
    fn filters_keep_what_their_papers_say() {
        let logits = logs(&[0.1, 0.5, 0.3, 0.06, 0.04]);
        let base = Params::default();
        near(&probabilities(base, &logits), &[0.1, 0.5, 0.3, 0.06, 0.04]);
        near(&probabilities(Params::greedy(), &logits), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        near(&probabilities(base.top_k(2).unwrap(), &logits), &[0.0, 0.625, 0.375, 0.0, 0.0]);
        // 0.5 alone is less than 0.6, so the next one is needed.
        near(&probabilities(base.top_p(0.6).unwrap(), &logits), &[0.0, 0.625, 0.375, 0.0, 0.0]);
        near(&probabilities(base.top_p(0.4).unwrap(), &logits), &[0.0, 1.0, 0.0, 0.0, 0.0]);
        let t = probabilities(base.temperature(0.5).unwrap(), &logits);
        near(&[t[1] / t[2]], &[25.0 / 9.0]);
        // Entropy 1.24 nats: 0.3 (1.20) is the most typical, then 0.5 (0.69).
        near(&probabilities(base.typical(0.2).unwrap(), &logits), &[0.0, 0.0, 1.0, 0.0, 0.0]);
        near(&probabilities(base.typical(0.6).unwrap(), &logits), &[0.0, 0.625, 0.375, 0.0, 0.0]);
        let order = base.top_k(3).unwrap().top_p(0.5).unwrap();
        near(&probabilities(order, &logits), &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn repetition_looks_back_over_its_window() {
        let params = Params::default().repetition(4.0, 2).unwrap();
        let mut s = Sampler::new(params, 1);
        [0, 1, 2].iter().for_each(|&t| s.note(t));
        let mut d = Distribution::default();
        s.distribution(&[0.0; 4], &[], &mut d);
        near(d.probabilities(), &[0.4, 0.1, 0.1, 0.4]);
        s.distribution(&[0.0; 4], &[3], &mut d);
        near(d.probabilities(), &[0.4, 0.4, 0.1, 0.1]);
    }

    #[test]
    fn odd_logits_still_give_a_choice() {
        for logits in
            [&[f32::NAN; 3][..], &[f32::NEG_INFINITY; 3], &[f32::INFINITY, 1.0, f32::NAN], &[1e30, -1e30, 0.0]]
        {
            let p = probabilities(Params::default(), logits);
            assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5 && p.iter().all(|v| v.is_finite()), "{logits:?} {p:?}");
        }
        assert_eq!(Sampler::new(Params::default(), 1).sample(&[]), 0);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let logits = logs(&[0.1, 0.2, 0.3, 0.4]);
        let mut sampler = Sampler::new(Params::default(), 7);
        let mut counts = [0.0f64; 4];
        for _ in 0..100_000 {
            counts[usize::from(sampler.sample(&logits))] += 1.0;
        }
        let chi: f64 = counts.iter().zip([1e4, 2e4, 3e4, 4e4]).map(|(c, e)| (c - e) * (c - e) / e).sum();
        // 99.9 % point of chi-square with 3 degrees of freedom.
        assert!(chi < 16.27, "{chi}");
        let run = |seed| {
            let mut s = Sampler::new(Params::default(), seed);
            (0..50).map(|_| s.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
