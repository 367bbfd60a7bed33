//! A linear layer of the token model, laid out for products.

/// Outputs of a block: one 512-bit register of sums.
pub(super) const LANES: usize = 16;

/// int8 weights in blocks of [`LANES`] outputs, a block pair of inputs by pair of inputs:
/// `[outputs / LANES][inputs / 2][LANES][2]`, with zeros where there are no more. A block's sums then never leave their
/// registers, and no sum over a register is needed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    inputs: usize,
    weight: Vec<i8>,
    /// Of each output, 24 fractional bits.
    pub(super) factor: Vec<i32>,
    /// Of each output.
    pub(super) bias: Vec<i32>,
}

impl Linear {
    /// A layer of `rows`, weights `[outputs][inputs]`; there is a factor and a bias for each output.
    pub(super) fn new(inputs: usize, rows: &[i8], factor: Vec<i32>, bias: Vec<i32>) -> Self {
        let (outputs, pairs) = (bias.len(), inputs.div_ceil(2));
        let mut weight = vec![0; outputs.div_ceil(LANES) * pairs * LANES * 2];
        for (output, row) in rows.chunks_exact(inputs).enumerate() {
            for (input, &w) in row.iter().enumerate() {
                weight[Self::place(inputs, output, input)] = w;
            }
        }
        Self { inputs, weight, factor, bias }
    }

    fn place(inputs: usize, output: usize, input: usize) -> usize {
        ((output / LANES * inputs.div_ceil(2) + input / 2) * LANES + output % LANES) * 2 + input % 2
    }

    /// Inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Weights and biases.
    pub(super) fn parameters(&self) -> usize {
        (self.inputs + 1) * self.bias.len()
    }

    /// The weights of an output; None beyond the last.
    pub(super) fn row(&self, output: usize) -> Option<impl Iterator<Item = i8> + '_> {
        (output < self.bias.len())
            .then(|| (0..self.inputs).map(move |i| self.weight[Self::place(self.inputs, output, i)]))
    }

    /// Blocks of weights `[inputs / 2][LANES][2]`, one for each [`LANES`] outputs.
    pub(super) fn blocks(&self) -> std::slice::ChunksExact<'_, i8> {
        self.weight.chunks_exact(self.inputs.div_ceil(2).max(1) * LANES * 2)
    }
}
