//! Arithmetic of two tensors, one of which may be repeated along some axes.
//!
//! Shapes are aligned at their last axis; an axis of one value, or one that is missing, is repeated (ONNX, "multidirectional
//! broadcasting").

use std::borrow::Cow;

use super::error::{GraphError, invalid};
use super::tensor::{Data, Tensor, count};

/// The shape that both are repeated to.
fn common(a: &[usize], b: &[usize]) -> Result<Vec<usize>, GraphError> {
    let rank = a.len().max(b.len());
    let side = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let sides = (0..rank).map(|axis| match (side(a, axis), side(b, axis)) {
        (1, n) | (n, 1) => Ok(n),
        (n, m) if n == m => Ok(n),
        _ => Err(invalid(format!("{a:?} with {b:?}"))),
    });
    sides.collect()
}

/// Values from one element to the next of each axis of `to`; 0 where `shape` is repeated.
fn strides(shape: &[usize], to: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; to.len()];
    let mut step = 1;
    for (stride, &side) in strides.iter_mut().rev().zip(shape.iter().rev()) {
        *stride = if side == 1 { 0 } else { step };
        step *= side;
    }
    strides
}

/// Calls `row` with where each row of the last axis begins, in a tensor of each of the two strides.
fn rows(shape: &[usize], strides: [&[usize]; 2], mut row: impl FnMut(usize, usize)) {
    let outer = shape.len().saturating_sub(1);
    let (mut index, mut at) = (vec![0; outer], [0usize; 2]);
    if shape.contains(&0) {
        return;
    }
    loop {
        row(at[0], at[1]);
        let Some(axis) = (0..outer).rev().find(|&axis| {
            index[axis] += 1;
            for (at, strides) in at.iter_mut().zip(strides) {
                *at += strides[axis];
            }
            if index[axis] < shape[axis] {
                return true;
            }
            for (at, strides) in at.iter_mut().zip(strides) {
                *at -= strides[axis] * shape[axis];
            }
            index[axis] = 0;
            false
        }) else {
            return;
        };
        debug_assert!(index[axis] > 0);
    }
}

/// `f` of every pair.
fn pairs<A: Copy, B: Copy, C>(
    (a_shape, a): (&[usize], &[A]),
    (b_shape, b): (&[usize], &[B]),
    f: impl Fn(A, B) -> C,
) -> Result<(Vec<usize>, Vec<C>), GraphError> {
    if a_shape == b_shape {
        return Ok((a_shape.to_vec(), a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()));
    }
    let shape = common(a_shape, b_shape)?;
    let mut out = Vec::with_capacity(count(&shape)?);
    let width = shape.last().copied().unwrap_or(1);
    let (a_strides, b_strides) = (strides(a_shape, &shape), strides(b_shape, &shape));
    let last = |strides: &[usize]| strides.last().copied().unwrap_or(0);
    let (a_step, b_step) = (last(&a_strides), last(&b_strides));
    rows(&shape, [&a_strides, &b_strides], |i, j| match (a_step, b_step) {
        (0, 0) => out.extend(std::iter::repeat_with(|| f(a[i], b[j])).take(width)),
        (0, _) => out.extend(b[j..j + width].iter().map(|&b| f(a[i], b))),
        (_, 0) => out.extend(a[i..i + width].iter().map(|&a| f(a, b[j]))),
        _ => out.extend(a[i..i + width].iter().zip(&b[j..j + width]).map(|(&a, &b)| f(a, b))),
    });
    Ok((shape, out))
}

/// Values repeated to a shape.
fn stretched<'a, T: Copy>(shape: &[usize], values: &'a [T], to: &[usize]) -> Result<Cow<'a, [T]>, GraphError> {
    if shape == to {
        return Ok(Cow::Borrowed(values));
    }
    if common(shape, to)? != to {
        return Err(invalid(format!("{shape:?} repeated to {to:?}")));
    }
    let mut out = Vec::with_capacity(count(to)?);
    let (width, steps) = (to.last().copied().unwrap_or(1), strides(shape, to));
    let step = steps.last().copied().unwrap_or(0);
    rows(to, [&steps, &steps], |i, _| match step {
        0 => out.extend(std::iter::repeat_n(values[i], width)),
        _ => out.extend_from_slice(&values[i..i + width]),
    });
    Ok(Cow::Owned(out))
}

/// Whether `b`, repeated, has the shape of `a`, and its values lie behind each other as often as they go into it.
fn repeats_whole(a: &[usize], b: &[usize]) -> bool {
    let b = &b[b.iter().take_while(|&&side| side == 1).count()..];
    a.ends_with(b)
}

/// Two values to one of the same kind.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
}

/// Two values to a truth.
#[derive(Debug, Clone, Copy)]
pub(super) enum Comparison {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// `f` of every pair of floats, in the memory of `a` if it is large enough.
fn floats(a: Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Result<Tensor, GraphError> {
    let values = b.floats()?;
    if b.shape().len() <= a.shape().len() && repeats_whole(a.shape(), b.shape()) && !values.is_empty() {
        let shape = a.shape().to_vec();
        let mut out = a.into_floats()?;
        if let &[value] = values {
            out.iter_mut().for_each(|x| *x = f(*x, value));
        } else {
            for part in out.chunks_exact_mut(values.len()) {
                part.iter_mut().zip(values).for_each(|(x, &y)| *x = f(*x, y));
            }
        }
        return Tensor::floats_of(shape, out);
    }
    let (shape, out) = pairs((a.shape(), a.floats()?), (b.shape(), values), f)?;
    Tensor::floats_of(shape, out)
}

fn integers(a: &Tensor, b: &Tensor, f: impl Fn(i64, i64) -> i64) -> Result<Tensor, GraphError> {
    let (shape, out) = pairs((a.shape(), a.integers()?), (b.shape(), b.integers()?), f)?;
    Tensor::new(shape, Data::Integers(out))
}

/// `a` and `b`, value by value.
pub(super) fn arithmetic(operator: Arithmetic, a: Tensor, b: &Tensor) -> Result<Tensor, GraphError> {
    if matches!(a.data(), Data::Floats(_)) {
        match operator {
            Arithmetic::Add => floats(a, b, |a, b| a + b),
            Arithmetic::Sub => floats(a, b, |a, b| a - b),
            Arithmetic::Mul => floats(a, b, |a, b| a * b),
            Arithmetic::Div => floats(a, b, |a, b| a / b),
            Arithmetic::Max => floats(a, b, |a, b| if a > b { a } else { b }),
            Arithmetic::Min => floats(a, b, |a, b| if a < b { a } else { b }),
        }
    } else {
        match operator {
            Arithmetic::Add => integers(&a, b, i64::wrapping_add),
            Arithmetic::Sub => integers(&a, b, i64::wrapping_sub),
            Arithmetic::Mul => integers(&a, b, i64::wrapping_mul),
            Arithmetic::Div => Err(invalid("a quotient of integers")),
            Arithmetic::Max => integers(&a, b, i64::max),
            Arithmetic::Min => integers(&a, b, i64::min),
        }
    }
}

/// Where the comparison holds.
pub(super) fn comparison(operator: Comparison, a: &Tensor, b: &Tensor) -> Result<Tensor, GraphError> {
    fn of<T: Copy + PartialOrd>(
        operator: Comparison,
        a: (&[usize], &[T]),
        b: (&[usize], &[T]),
    ) -> Result<(Vec<usize>, Vec<bool>), GraphError> {
        match operator {
            Comparison::Greater => pairs(a, b, |a, b| a > b),
            Comparison::GreaterOrEqual => pairs(a, b, |a, b| a >= b),
            Comparison::Less => pairs(a, b, |a, b| a < b),
            Comparison::LessOrEqual => pairs(a, b, |a, b| a <= b),
        }
    }
    let (shape, out) = match a.data() {
        Data::Floats(values) => of(operator, (a.shape(), values), (b.shape(), b.floats()?))?,
        _ => of(operator, (a.shape(), a.integers()?), (b.shape(), b.integers()?))?,
    };
    Tensor::new(shape, Data::Truths(out))
}

/// `f` of every pair of truths.
pub(super) fn logic(a: &Tensor, b: &Tensor, f: impl Fn(bool, bool) -> bool) -> Result<Tensor, GraphError> {
    let (shape, out) = pairs((a.shape(), a.truths()?), (b.shape(), b.truths()?), f)?;
    Tensor::new(shape, Data::Truths(out))
}

/// The values of `yes` where `condition` holds, else of `no`.
pub(super) fn choose(condition: &Tensor, yes: &Tensor, no: &Tensor) -> Result<Tensor, GraphError> {
    fn of<T: Copy>(
        condition: &[bool],
        to: &[usize],
        yes: (&[usize], &[T]),
        no: (&[usize], &[T]),
    ) -> Result<Vec<T>, GraphError> {
        let (yes, no) = (stretched(yes.0, yes.1, to)?, stretched(no.0, no.1, to)?);
        Ok(condition.iter().zip(yes.iter().zip(no.iter())).map(|(&c, (&y, &n))| if c { y } else { n }).collect())
    }
    let to = common(condition.shape(), &common(yes.shape(), no.shape())?)?;
    let where_it_holds = stretched(condition.shape(), condition.truths()?, &to)?;
    let data = match yes.data() {
        Data::Floats(y) => Data::Floats(of(&where_it_holds, &to, (yes.shape(), y), (no.shape(), no.floats()?))?),
        _ => Data::Integers(of(&where_it_holds, &to, (yes.shape(), yes.integers()?), (no.shape(), no.integers()?))?),
    };
    Tensor::new(to, data)
}

/// Repeated to what its shape and `to` have in common.
pub(super) fn expand(tensor: &Tensor, to: &[usize]) -> Result<Tensor, GraphError> {
    let to = common(tensor.shape(), to)?;
    let values = stretched(tensor.shape(), tensor.floats()?, &to)?.into_owned();
    Tensor::floats_of(to, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize]) -> Tensor {
        let values = count(shape).unwrap();
        Tensor::floats_of(shape.to_vec(), (0..values).map(|x| x as f32).collect()).unwrap()
    }

    #[test]
    fn axes_of_one_value_are_repeated() {
        let sum = |a: &[usize], b: &[usize]| {
            let out = arithmetic(Arithmetic::Add, tensor(a), &tensor(b)).unwrap();
            (out.shape().to_vec(), out.floats().unwrap().to_vec())
        };
        assert_eq!(sum(&[2, 2], &[2]), (vec![2, 2], vec![0.0, 2.0, 2.0, 4.0]));
        assert_eq!(sum(&[2, 1], &[1, 2]), (vec![2, 2], vec![0.0, 1.0, 1.0, 2.0]));
        assert_eq!(sum(&[2], &[2, 1, 2]).1, vec![0.0, 2.0, 2.0, 4.0]);
        assert_eq!(sum(&[2, 2], &[2, 1]).1, vec![0.0, 1.0, 3.0, 4.0]);
        assert_eq!(sum(&[1], &[]).0, vec![1]);
        assert!(arithmetic(Arithmetic::Add, tensor(&[2]), &tensor(&[3])).is_err());
        let wide = expand(&tensor(&[2, 1]), &[1, 2, 3]).unwrap();
        assert_eq!((wide.shape(), wide.floats().unwrap()), (&[1, 2, 3][..], &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0][..]));
    }

    #[test]
    fn values_are_chosen_by_rows() {
        let rows = Tensor::new(vec![2, 1], Data::Truths(vec![true, false])).unwrap();
        let out = choose(&rows, &tensor(&[2, 2]), &Tensor::floats_of(vec![1], vec![9.0]).unwrap()).unwrap();
        assert_eq!(out.floats().unwrap(), [0.0, 1.0, 9.0, 9.0]);
    }
}
