//! Parameters that are valid once they exist.

use crate::units::OutOfRange;

/// A parameter out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct SamplingError(#[from] OutOfRange);

fn error(what: &'static str, got: impl ToString, allowed: &'static str) -> SamplingError {
    SamplingError(OutOfRange { what, got: got.to_string(), allowed })
}

/// How a token is chosen. The default draws from the model's own distribution.
///
/// # Examples
/// ```
/// use undertone::sampling::Params;
///
/// let params = Params::default().temperature(0.8)?.top_k(50)?.repetition(1.2, 64)?;
/// assert_eq!(params.window(), 64);
/// let refused = params.top_p(1.5).unwrap_err().to_string();
/// assert!(refused.contains("1.5") && refused.contains("at most 1"));
/// # Ok::<(), undertone::sampling::SamplingError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    typical: f32,
    repetition: f32,
    repetition_window: usize,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: usize::MAX, top_p: 1.0, typical: 1.0, repetition: 1.0, repetition_window: 0 }
    }
}

impl Params {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Divides logits by the temperature; 0 is greedy.
    ///
    /// # Errors
    /// [`SamplingError`] unless 0 to 10.
    pub fn temperature(self, temperature: f32) -> Result<Self, SamplingError> {
        if !(0.0..=10.0).contains(&temperature) {
            return Err(error("temperature", temperature, "0 to 10"));
        }
        Ok(Self { temperature, ..self })
    }

    /// Keeps the k likeliest tokens (Fan, Lewis, Dauphin 2018).
    ///
    /// # Errors
    /// [`SamplingError`] for 0.
    pub fn top_k(self, top_k: usize) -> Result<Self, SamplingError> {
        if top_k == 0 {
            return Err(error("top-k", top_k, "1 or more"));
        }
        Ok(Self { top_k, ..self })
    }

    /// Keeps the fewest likeliest tokens that hold this probability together (nucleus: Holtzman et al. 2020).
    ///
    /// # Errors
    /// [`SamplingError`] unless above 0, at most 1.
    pub fn top_p(self, top_p: f32) -> Result<Self, SamplingError> {
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(error("top-p", top_p, "above 0, at most 1"));
        }
        Ok(Self { top_p, ..self })
    }

    /// Keeps the fewest tokens whose surprise is nearest to the entropy and that hold this probability together
    /// (Meister, Pimentel, Wiher, Cotterell 2023).
    ///
    /// # Errors
    /// [`SamplingError`] unless above 0, at most 1.
    pub fn typical(self, typical: f32) -> Result<Self, SamplingError> {
        if !(typical > 0.0 && typical <= 1.0) {
            return Err(error("typical", typical, "above 0, at most 1"));
        }
        Ok(Self { typical, ..self })
    }

    /// Makes tokens of the last `window` choices less likely by this factor (after Keskar et al. 2019, but in odds).
    ///
    /// # Errors
    /// [`SamplingError`] unless the factor is 1 to 100 and the window at most 4096.
    pub fn repetition(self, factor: f32, window: usize) -> Result<Self, SamplingError> {
        if !(1.0..=100.0).contains(&factor) {
            return Err(error("repetition factor", factor, "1 to 100"));
        }
        if window > 4096 {
            return Err(error("repetition window", window, "0 to 4096"));
        }
        Ok(Self { repetition: factor, repetition_window: window, ..self })
    }

    pub(super) fn parts(&self) -> (f32, usize, f32, f32, f32) {
        (self.temperature, self.top_k, self.top_p, self.typical, self.repetition)
    }

    /// Choices that repetition control looks back on.
    pub fn window(&self) -> usize {
        self.repetition_window
    }
}

/// When to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Most tokens.
    pub max_tokens: usize,
    /// Tokens after which nothing follows.
    pub tokens: Vec<u16>,
    /// The same token so many times in a row; 0 switches it off.
    pub repeats: usize,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// It is as long as it may be.
    Length,
    /// A token that ends sequences came.
    Token,
    /// One token came too often in a row.
    Repeats,
}

impl Stop {
    /// Stops after so many tokens.
    pub fn after(max_tokens: usize) -> Self {
        Self { max_tokens, tokens: Vec::new(), repeats: 0 }
    }

    /// Whether a sequence ends here.
    pub fn check(&self, sequence: &[u16]) -> Option<StopReason> {
        let last = sequence.last()?;
        if self.tokens.contains(last) {
            return Some(StopReason::Token);
        }
        if self.repeats > 0 && sequence.iter().rev().take_while(|t| *t == last).count() >= self.repeats {
            return Some(StopReason::Repeats);
        }
        (sequence.len() >= self.max_tokens).then_some(StopReason::Length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_value_and_range() {
        for (e, want) in [
            (Params::default().temperature(-0.1), "temperature -0.1 out of range, allowed 0 to 10"),
            (Params::default().temperature(f32::NAN), "temperature NaN"),
            (Params::default().top_k(0), "top-k 0"),
            (Params::default().top_p(0.0), "top-p 0 out of range, allowed above 0, at most 1"),
            (Params::default().typical(1.5), "typical 1.5"),
            (Params::default().repetition(0.5, 3), "repetition factor 0.5"),
            (Params::default().repetition(2.0, 5000), "repetition window 5000"),
        ] {
            let text = e.unwrap_err().to_string();
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn stop_rules_hold() {
        let stop = Stop { max_tokens: 5, tokens: vec![9], repeats: 3 };
        assert_eq!(stop.check(&[]), None);
        assert_eq!(stop.check(&[1, 2]), None);
        assert_eq!(stop.check(&[1, 9]), Some(StopReason::Token));
        assert_eq!(stop.check(&[4, 7, 7, 7]), Some(StopReason::Repeats));
        assert_eq!(stop.check(&[1, 2, 1, 2, 1]), Some(StopReason::Length));
    }
}
