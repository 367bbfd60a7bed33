//! The list of survivors of a beam search: over codebook entries, or over tokens.

/// A survivor of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What is to be small: a squared error, or a negative log-likelihood.
    pub cost: f32,
    /// Which survivor of the step before it continues.
    pub parent: u16,
    /// The entry or token that it adds.
    pub entry: u16,
}

/// The best candidates so far, best first; of equals the first found stays ahead.
#[derive(Debug)]
pub struct Candidates {
    best: Vec<Candidate>,
    width: usize,
}

impl Candidates {
    /// Keeps up to `width`, at least one.
    pub fn new(width: usize) -> Self {
        let width = width.max(1);
        Self { best: Vec::with_capacity(width + 1), width }
    }

    /// Starts a new step.
    pub fn clear(&mut self) {
        self.best.clear();
    }

    /// The survivors, best first.
    pub fn found(&self) -> &[Candidate] {
        &self.best
    }

    /// True before the first offer.
    pub fn is_empty(&self) -> bool {
        self.best.is_empty()
    }

    /// Costs from here on are of no interest.
    #[inline(always)]
    pub fn limit(&self) -> f32 {
        if self.best.len() < self.width { f32::INFINITY } else { self.best[self.width - 1].cost }
    }

    /// Takes a candidate into the list if it is good enough.
    pub fn offer(&mut self, c: Candidate) {
        let at = self.best.partition_point(|b| b.cost <= c.cost);
        self.best.insert(at, c);
        self.best.truncate(self.width);
    }
}
