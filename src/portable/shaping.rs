//! Operators that move values, and those that look at a whole axis.

use super::error::{GraphError, invalid};
use super::tensor::{Data, Tensor, count, place};

/// The same for each kind of values.
macro_rules! of_any_kind {
    ($data:expr, $values:ident => $body:expr) => {
        match $data {
            Data::Floats($values) => Data::Floats($body),
            Data::Integers($values) => Data::Integers($body),
            Data::Truths($values) => Data::Truths($body),
        }
    };
}

/// A tensor with one side of its shape changed.
fn with_side(tensor: &Tensor, axis: usize, side: usize, data: Data) -> Result<Tensor, GraphError> {
    let mut shape = tensor.shape().to_vec();
    shape[axis] = side;
    Tensor::new(shape, data)
}

/// Another shape for the same values: 0 keeps a side, one -1 is whatever is left.
pub(super) fn reshape(tensor: Tensor, wanted: &[i64]) -> Result<Tensor, GraphError> {
    let error = || invalid(format!("{:?} to {wanted:?}", tensor.shape()));
    let mut shape = Vec::with_capacity(wanted.len());
    for (i, &side) in wanted.iter().enumerate() {
        shape.push(match side {
            0 => *tensor.shape().get(i).ok_or_else(error)?,
            -1 => 1,
            side => usize::try_from(side).map_err(|_| error())?,
        });
    }
    if let Some(open) = wanted.iter().position(|&side| side == -1) {
        shape[open] = tensor.data().len().checked_div(count(&shape)?).ok_or_else(error)?;
    }
    tensor.reshaped(shape)
}

/// What a slice takes of an axis: from where, in which steps, how many.
fn span(start: i64, end: i64, step: i64, length: usize) -> Result<(usize, i64, usize), GraphError> {
    let n = i64::try_from(length).unwrap_or(i64::MAX);
    let from_front = |i: i64| if i < 0 { i.saturating_add(n) } else { i };
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let start = from_front(start).clamp(low.max(0), high.max(0));
    let end = from_front(end).clamp(low, high.max(low));
    let distance = if step > 0 { end - start } else { start - end };
    if step == 0 || step == i64::MIN {
        return Err(invalid(format!("a slice in steps of {step}")));
    }
    let taken = if n == 0 { 0 } else { (distance + step.abs() - 1).div_euclid(step.abs()).max(0) };
    Ok((usize::try_from(start).unwrap_or(0), step, usize::try_from(taken).unwrap_or(0)))
}

/// A part of one axis.
pub(super) fn slice(tensor: &Tensor, start: i64, end: i64, axis: i64, step: i64) -> Result<Tensor, GraphError> {
    fn of<T: Copy>(values: &[T], (length, after): (usize, usize), (start, step, taken): (usize, i64, usize)) -> Vec<T> {
        let mut out = Vec::with_capacity(values.len() / length.max(1) * taken);
        for part in values.chunks_exact((length * after).max(1)) {
            if step == 1 {
                out.extend_from_slice(&part[start * after..(start + taken) * after]);
                continue;
            }
            let mut at = start;
            for i in 0..taken {
                out.extend_from_slice(&part[at * after..(at + 1) * after]);
                if i + 1 < taken {
                    at = at.saturating_add_signed(step as isize);
                }
            }
        }
        out
    }
    let axis = tensor.axis(axis)?;
    let (_, length, after) = tensor.around(axis);
    let span = span(start, end, step, length)?;
    let data = of_any_kind!(tensor.data(), values => of(values, (length, after), span));
    with_side(tensor, axis, span.2, data)
}

/// An axis cut into parts of these sizes.
pub(super) fn split(tensor: &Tensor, axis: i64, sizes: &[i64]) -> Result<Vec<Tensor>, GraphError> {
    let mut at = 0i64;
    let parts = sizes.iter().map(|&size| {
        let (start, end) = (at, at.saturating_add(size.max(0)));
        at = end;
        slice(tensor, start, end, axis, 1)
    });
    parts.collect()
}

/// Sizes of an axis cut into so many equal parts.
pub(super) fn equal_parts(tensor: &Tensor, axis: i64, parts: usize) -> Result<Vec<i64>, GraphError> {
    let length = tensor.shape()[tensor.axis(axis)?];
    if parts == 0 || !length.is_multiple_of(parts) {
        return Err(invalid(format!("{length} values in {parts} parts")));
    }
    Ok(vec![i64::try_from(length / parts).unwrap_or(0); parts])
}

/// Tensors one behind the other along an axis.
pub(super) fn concat(tensors: &[&Tensor], axis: i64) -> Result<Tensor, GraphError> {
    fn of<'a, T: Copy + 'a>(parts: &[(&'a [T], usize)], before: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(parts.iter().map(|(values, _)| values.len()).sum());
        for i in 0..before {
            for (values, width) in parts {
                out.extend_from_slice(&values[i * width..(i + 1) * width]);
            }
        }
        out
    }
    let first = tensors.first().ok_or_else(|| invalid("nothing to put together"))?;
    let axis = first.axis(axis)?;
    let before = first.around(axis).0;
    for tensor in tensors {
        let alike = tensor.shape().len() == first.shape().len()
            && tensor.shape().iter().zip(first.shape()).enumerate().all(|(i, (a, b))| i == axis || a == b);
        if !alike {
            return Err(invalid(format!("{:?} behind {:?}", tensor.shape(), first.shape())));
        }
    }
    let side = tensors.iter().map(|t| t.shape()[axis]).sum();
    let width = |t: &Tensor| t.shape()[axis..].iter().product::<usize>();
    let data = match first.data() {
        Data::Floats(_) => {
            let parts = tensors.iter().map(|t| Ok((t.floats()?, width(t)))).collect::<Result<Vec<_>, GraphError>>()?;
            Data::Floats(of(&parts, before))
        }
        Data::Integers(_) => {
            let parts =
                tensors.iter().map(|t| Ok((t.integers()?, width(t)))).collect::<Result<Vec<_>, GraphError>>()?;
            Data::Integers(of(&parts, before))
        }
        Data::Truths(_) => {
            let parts = tensors.iter().map(|t| Ok((t.truths()?, width(t)))).collect::<Result<Vec<_>, GraphError>>()?;
            Data::Truths(of(&parts, before))
        }
    };
    with_side(first, axis, side, data)
}

/// Elements of an axis by their numbers.
pub(super) fn gather(tensor: &Tensor, indices: &Tensor, axis: i64) -> Result<Tensor, GraphError> {
    let axis = tensor.axis(axis)?;
    let (before, length, after) = tensor.around(axis);
    let places = indices.integers()?.iter().map(|&i| place(i, length)).collect::<Option<Vec<_>>>();
    let places = places.ok_or_else(|| invalid(format!("an element beyond the {length} of an axis")))?;
    let shape = [&tensor.shape()[..axis], indices.shape(), &tensor.shape()[axis + 1..]].concat();
    let values = tensor.floats()?;
    let mut out = Vec::with_capacity(count(&shape)?);
    for part in values.chunks_exact((length * after).max(1)).take(before) {
        if after == 1 {
            out.extend(places.iter().map(|&i| part[i]));
        } else {
            for &i in &places {
                out.extend_from_slice(&part[i * after..(i + 1) * after]);
            }
        }
    }
    Tensor::floats_of(shape, out)
}

/// Of every row of the last axis, the elements whose numbers are in the same row of `indices`.
pub(super) fn gather_elements(tensor: &Tensor, indices: &Tensor, axis: i64) -> Result<Tensor, GraphError> {
    let (Some((&length, outer)), Some((&taken, same))) = (tensor.shape().split_last(), indices.shape().split_last())
    else {
        return Err(invalid("elements of a single value"));
    };
    if tensor.axis(axis)? + 1 != tensor.shape().len() || outer != same {
        return Err(invalid(format!("elements {:?} of {:?}", indices.shape(), tensor.shape())));
    }
    let rows = tensor.floats()?.chunks_exact(length.max(1)).zip(indices.integers()?.chunks_exact(taken.max(1)));
    let values = rows.flat_map(|(row, places)| places.iter().map(|&i| place(i, length).map(|i| row[i])));
    let values = values.collect::<Option<Vec<_>>>();
    Tensor::floats_of(indices.shape().to_vec(), values.ok_or_else(|| invalid("an element beyond its row"))?)
}

/// How an axis becomes one value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reduction {
    Sum,
    Max,
    Min,
}

/// One value for an axis.
pub(super) fn reduce(tensor: &Tensor, reduction: Reduction, axis: i64, keep: bool) -> Result<Tensor, GraphError> {
    fn of<T: Copy>((length, after): (usize, usize), values: &[T], f: impl Fn(T, T) -> T) -> Vec<T> {
        let mut out = Vec::with_capacity(values.len() / length);
        for part in values.chunks_exact(length * after) {
            let at = out.len();
            let (first, rest) = part.split_at(after);
            out.extend_from_slice(first);
            for row in rest.chunks_exact(after) {
                out[at..].iter_mut().zip(row).for_each(|(sum, &x)| *sum = f(*sum, x));
            }
        }
        out
    }
    let axis = tensor.axis(axis)?;
    let (_, length, after) = tensor.around(axis);
    if length * after == 0 {
        return Err(invalid("an axis without values"));
    }
    let size = (length, after);
    let data = match (tensor.data(), reduction) {
        (Data::Floats(values), Reduction::Sum) => Data::Floats(of(size, values, |a, b| a + b)),
        (Data::Floats(values), Reduction::Max) => Data::Floats(of(size, values, f32::max)),
        (Data::Floats(values), Reduction::Min) => Data::Floats(of(size, values, f32::min)),
        (Data::Integers(values), Reduction::Sum) => Data::Integers(of(size, values, i64::wrapping_add)),
        _ => return Err(invalid("no such reduction of these values")),
    };
    drop_axis(tensor, axis, keep, data)
}

fn drop_axis(tensor: &Tensor, axis: usize, keep: bool, data: Data) -> Result<Tensor, GraphError> {
    let mut shape = tensor.shape().to_vec();
    if keep {
        shape[axis] = 1;
    } else {
        shape.remove(axis);
    }
    Tensor::new(shape, data)
}

/// The number of the first of the best elements of each row; `better` than the best so far.
pub(super) fn best(
    tensor: &Tensor,
    axis: i64,
    keep: bool,
    better: impl Fn(f32, f32) -> bool,
) -> Result<Tensor, GraphError> {
    let axis = tensor.axis(axis)?;
    let (_, length, after) = tensor.around(axis);
    if after != 1 || length == 0 {
        return Err(invalid("the best of an axis that is not the last"));
    }
    let rows = tensor.floats()?.chunks_exact(length);
    let places = rows.map(|row| {
        let (mut place, mut best) = (0i64, row[0]);
        for (i, &x) in (0i64..).zip(row) {
            if better(x, best) {
                (place, best) = (i, x);
            }
        }
        place
    });
    drop_axis(tensor, axis, keep, Data::Integers(places.collect()))
}

/// Sums of all elements up to each one.
pub(super) fn running_sum(tensor: Tensor, axis: i64) -> Result<Tensor, GraphError> {
    let axis = tensor.axis(axis)?;
    let (_, length, after) = tensor.around(axis);
    let shape = tensor.shape().to_vec();
    let mut values = tensor.into_floats()?;
    for part in values.chunks_exact_mut((length * after).max(1)) {
        for i in after..part.len() {
            part[i] += part[i - after];
        }
    }
    Tensor::floats_of(shape, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(shape: &[usize]) -> Tensor {
        Tensor::floats_of(shape.to_vec(), (0..count(shape).unwrap()).map(|x| x as f32).collect()).unwrap()
    }

    #[test]
    fn slices_are_those_of_onnx() {
        let of = |start, end, step| slice(&numbers(&[5]), start, end, 0, step).map(|t| t.floats().unwrap().to_vec());
        assert_eq!(of(1, 3, 1).unwrap(), [1.0, 2.0]);
        assert_eq!(of(-2, i64::MAX, 1).unwrap(), [3.0, 4.0]);
        assert_eq!(of(-1, i64::MIN, -1).unwrap(), [4.0, 3.0, 2.0, 1.0, 0.0]);
        assert_eq!(of(0, 5, 2).unwrap(), [0.0, 2.0, 4.0]);
        assert!(of(3, 1, 1).unwrap().is_empty());
        assert_eq!(of(9, 0, -3).unwrap(), [4.0, 1.0]);
        assert!(of(0, 1, 0).is_err());
        let middle = slice(&numbers(&[2, 3, 2]), 1, 2, 1, 1).unwrap();
        assert_eq!((middle.shape(), middle.floats().unwrap()), (&[2, 1, 2][..], &[2.0, 3.0, 8.0, 9.0][..]));
    }

    #[test]
    fn axes_are_counted_and_summed() {
        let t = numbers(&[2, 3]);
        assert_eq!(reduce(&t, Reduction::Sum, 0, true).unwrap(), {
            Tensor::floats_of(vec![1, 3], vec![3.0, 5.0, 7.0]).unwrap()
        });
        assert_eq!(reduce(&t, Reduction::Max, -1, false).unwrap().floats().unwrap(), [2.0, 5.0]);
        assert_eq!(best(&t, -1, false, |a, b| a > b).unwrap().integers().unwrap(), [2, 2]);
        assert_eq!(running_sum(t.clone(), 0).unwrap().floats().unwrap(), [0.0, 1.0, 2.0, 3.0, 5.0, 7.0]);
        let pick = Tensor::new(vec![2, 1], Data::Integers(vec![-1, 0])).unwrap();
        assert_eq!(gather_elements(&t, &pick, -1).unwrap().floats().unwrap(), [2.0, 3.0]);
        assert_eq!(gather(&t, &pick, 1).unwrap().shape(), [2, 2, 1]);
        assert!(gather(&t, &Tensor::new(vec![1], Data::Integers(vec![3])).unwrap(), 1).is_err());
        assert_eq!(concat(&[&t, &t], 1).unwrap().floats().unwrap()[..6], [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]);
        assert!(reshape(t.clone(), &[0, -1, 2]).is_err());
        assert_eq!(reshape(t, &[-1, 1, 2]).unwrap().shape(), [3, 1, 2]);
    }
}
