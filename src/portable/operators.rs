//! What the nodes of a graph compute. These operators, and with these settings only, are what the recipe exports.

use super::arguments::Arguments;
use super::broadcast::{Arithmetic, Comparison, arithmetic, choose, comparison, expand, logic};
use super::error::{GraphError, invalid};
use super::matmul::{self, Packed};
use super::proto::{Attribute, NodeProto};
use super::shaping::{
    Reduction, best, concat, equal_parts, gather, gather_elements, reduce, reshape, running_sum, slice, split,
};
use super::simd;
use super::tensor::{Data, Tensor};
use crate::rvq::SimdLevel;

/// A function of one float.
#[derive(Debug, Clone, Copy)]
pub(super) enum Curve {
    Abs,
    Cos,
    Exp,
    Floor,
    Gelu,
    Log,
    Neg,
    Round,
    Sigmoid,
    Sign,
    Sin,
    Sqrt,
}

/// A node's operator with its settings.
#[derive(Debug)]
pub(super) enum Operator {
    And,
    Or,
    Not,
    Arithmetic(Arithmetic),
    ArgMax {
        axis: i64,
        keep: bool,
    },
    ArgMin {
        axis: i64,
        keep: bool,
    },
    ToFloats,
    ToIntegers,
    Clip,
    Comparison(Comparison),
    Concat {
        axis: i64,
    },
    CumSum,
    Curve(Curve),
    Expand,
    Gather {
        axis: i64,
    },
    GatherElements {
        axis: i64,
    },
    Identity,
    LayerNormalization {
        epsilon: f32,
    },
    MatMul,
    /// By a matrix that does not change.
    Product(Packed),
    Range,
    Reduce {
        reduction: Reduction,
        keep: bool,
    },
    Reshape,
    Shape {
        start: i64,
        end: i64,
    },
    Slice,
    Split {
        axis: i64,
        parts: usize,
    },
    Squeeze,
    Unsqueeze,
    Where,
}

/// The settings of a node; those that are read are struck off.
struct Settings<'a> {
    node: &'a NodeProto,
    left: Vec<&'a str>,
}

impl<'a> Settings<'a> {
    fn of(node: &'a NodeProto) -> Self {
        Self { node, left: node.attributes.iter().map(|(name, _)| name.as_str()).collect() }
    }

    fn get(&mut self, name: &str) -> Option<&'a Attribute> {
        self.left.retain(|&other| other != name);
        self.node.attributes.iter().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    fn int(&mut self, name: &str, default: i64) -> i64 {
        match self.get(name) {
            Some(&Attribute::Int(value)) => value,
            _ => default,
        }
    }

    fn float(&mut self, name: &str, default: f32) -> f32 {
        match self.get(name) {
            Some(&Attribute::Float(value)) => value,
            _ => default,
        }
    }

    fn keep(&mut self) -> bool {
        self.int("keepdims", 1) != 0
    }
}

impl Operator {
    /// The operator of a node; an unknown one, or an unknown setting of one, is an error.
    pub(super) fn parse(node: &NodeProto) -> Result<Self, GraphError> {
        let mut settings = Settings::of(node);
        let operator = Self::moves(node, &mut settings).or_else(|| Self::computes(node, &mut settings));
        let operator = operator.ok_or_else(|| invalid(format!("operator {} is not known here", node.operator)))?;
        match settings.left.first() {
            None => Ok(operator),
            Some(name) => Err(invalid(format!("setting {name} of operator {} is not known here", node.operator))),
        }
    }

    fn moves(node: &NodeProto, settings: &mut Settings<'_>) -> Option<Self> {
        Some(match node.operator.as_str() {
            "Cast" if settings.get("to") == Some(&Attribute::Int(1)) => Self::ToFloats,
            "Cast" if settings.get("to") == Some(&Attribute::Int(7)) => Self::ToIntegers,
            "Concat" => Self::Concat { axis: settings.int("axis", 0) },
            "Expand" => Self::Expand,
            "Gather" => Self::Gather { axis: settings.int("axis", 0) },
            "GatherElements" => Self::GatherElements { axis: settings.int("axis", 0) },
            "Identity" => Self::Identity,
            "Range" => Self::Range,
            "Reshape" => Self::Reshape,
            "Shape" => Self::Shape { start: settings.int("start", 0), end: settings.int("end", i64::MAX) },
            "Slice" => Self::Slice,
            "Split" => {
                settings.get("num_outputs");
                Self::Split { axis: settings.int("axis", 0), parts: node.outputs.len() }
            }
            "Squeeze" => Self::Squeeze,
            "Unsqueeze" => Self::Unsqueeze,
            "Where" => Self::Where,
            _ => return None,
        })
    }

    fn computes(node: &NodeProto, settings: &mut Settings<'_>) -> Option<Self> {
        Some(match node.operator.as_str() {
            "And" => Self::And,
            "Or" => Self::Or,
            "Not" => Self::Not,
            "Add" => Self::Arithmetic(Arithmetic::Add),
            "Sub" => Self::Arithmetic(Arithmetic::Sub),
            "Mul" => Self::Arithmetic(Arithmetic::Mul),
            "Div" => Self::Arithmetic(Arithmetic::Div),
            "Max" if node.inputs.len() == 2 => Self::Arithmetic(Arithmetic::Max),
            "Min" if node.inputs.len() == 2 => Self::Arithmetic(Arithmetic::Min),
            "ArgMax" => Self::ArgMax { axis: settings.int("axis", 0), keep: settings.keep() },
            "ArgMin" => Self::ArgMin { axis: settings.int("axis", 0), keep: settings.keep() },
            "Clip" => Self::Clip,
            "Greater" => Self::Comparison(Comparison::Greater),
            "GreaterOrEqual" => Self::Comparison(Comparison::GreaterOrEqual),
            "Less" => Self::Comparison(Comparison::Less),
            "LessOrEqual" => Self::Comparison(Comparison::LessOrEqual),
            "CumSum" => Self::CumSum,
            "LayerNormalization" if matches!(settings.int("axis", -1), -1) => {
                Self::LayerNormalization { epsilon: settings.float("epsilon", 1e-5) }
            }
            "MatMul" => Self::MatMul,
            "ReduceSum" => Self::Reduce { reduction: Reduction::Sum, keep: settings.keep() },
            "ReduceMax" => Self::Reduce { reduction: Reduction::Max, keep: settings.keep() },
            "ReduceMin" => Self::Reduce { reduction: Reduction::Min, keep: settings.keep() },
            "Abs" => Self::Curve(Curve::Abs),
            "Cos" => Self::Curve(Curve::Cos),
            "Exp" => Self::Curve(Curve::Exp),
            "Floor" => Self::Curve(Curve::Floor),
            "Gelu" => Self::Curve(Curve::Gelu),
            "Log" => Self::Curve(Curve::Log),
            "Neg" => Self::Curve(Curve::Neg),
            "Round" => Self::Curve(Curve::Round),
            "Sigmoid" => Self::Curve(Curve::Sigmoid),
            "Sign" => Self::Curve(Curve::Sign),
            "Sin" => Self::Curve(Curve::Sin),
            "Sqrt" => Self::Curve(Curve::Sqrt),
            _ => return None,
        })
    }

    /// What the operator makes of its arguments.
    pub(super) fn run(&self, level: SimdLevel, args: &mut Arguments<'_>) -> Result<Vec<Tensor>, GraphError> {
        let one = |tensor: Tensor| Ok(vec![tensor]);
        match self {
            Self::And => one(logic(args.get(0)?, args.get(1)?, |a, b| a && b)?),
            Self::Or => one(logic(args.get(0)?, args.get(1)?, |a, b| a || b)?),
            Self::Not => {
                let a = args.get(0)?;
                one(logic(a, a, |a, _| !a)?)
            }
            &Self::Arithmetic(operator) => {
                let a = args.take(0)?;
                one(arithmetic(operator, a, args.get(1)?)?)
            }
            &Self::ArgMax { axis, keep } => one(best(args.get(0)?, axis, keep, |a, b| a > b)?),
            &Self::ArgMin { axis, keep } => one(best(args.get(0)?, axis, keep, |a, b| a < b)?),
            Self::ToFloats => one(to_floats(args.take(0)?)?),
            Self::ToIntegers => one(to_integers(args.take(0)?)?),
            Self::Clip => one(clip(args)?),
            &Self::Comparison(operator) => one(comparison(operator, args.get(0)?, args.get(1)?)?),
            &Self::Concat { axis } => {
                let parts = (0..args.count()).map(|i| args.get(i)).collect::<Result<Vec<_>, _>>()?;
                one(concat(&parts, axis)?)
            }
            Self::CumSum => {
                let axis = integer(args.get(1)?)?;
                one(running_sum(args.take(0)?, axis)?)
            }
            &Self::Curve(curve) => one(bend(curve, level, args.take(0)?)?),
            Self::Expand => one(expand(args.get(0)?, &sides(args.get(1)?)?)?),
            &Self::Gather { axis } => one(gather(args.get(0)?, args.get(1)?, axis)?),
            &Self::GatherElements { axis } => one(gather_elements(args.get(0)?, args.get(1)?, axis)?),
            Self::Identity => one(args.take(0)?),
            &Self::LayerNormalization { epsilon } => one(layer_norm(level, args, epsilon)?),
            Self::MatMul => one(matmul::product(args.get(0)?, args.get(1)?, level)?),
            Self::Product(matrix) => one(matrix.product(args.get(0)?, level)?),
            Self::Range => one(range(args)?),
            &Self::Reduce { reduction, keep } => one(reduce(args.get(0)?, reduction, integer(args.get(1)?)?, keep)?),
            Self::Reshape => {
                let tensor = args.take(0)?;
                one(reshape(tensor, args.get(1)?.integers()?)?)
            }
            &Self::Shape { start, end } => one(shape(args.get(0)?, start, end)?),
            Self::Slice => one(slices(args)?),
            &Self::Split { axis, parts } => {
                let tensor = args.get(0)?;
                let sizes = match args.optional(1)? {
                    Some(sizes) => sizes.integers()?.to_vec(),
                    None => equal_parts(tensor, axis, parts)?,
                };
                split(tensor, axis, &sizes)
            }
            Self::Squeeze => one(squeeze(args)?),
            Self::Unsqueeze => one(unsqueeze(args)?),
            Self::Where => one(choose(args.get(0)?, args.get(1)?, args.get(2)?)?),
        }
    }
}

/// The only value of a tensor of integers.
fn integer(tensor: &Tensor) -> Result<i64, GraphError> {
    match tensor.integers()? {
        &[value] => Ok(value),
        values => Err(invalid(format!("{} integers where one was expected", values.len()))),
    }
}

/// A tensor of integers as a shape.
fn sides(tensor: &Tensor) -> Result<Vec<usize>, GraphError> {
    let sides = tensor.integers()?.iter().map(|&side| usize::try_from(side)).collect::<Result<Vec<_>, _>>();
    sides.map_err(|_| invalid("a negative side"))
}

fn to_floats(tensor: Tensor) -> Result<Tensor, GraphError> {
    let shape = tensor.shape().to_vec();
    let values = match tensor.into_data() {
        Data::Floats(values) => values,
        Data::Integers(values) => values.into_iter().map(|x| x as f32).collect(),
        Data::Truths(values) => values.into_iter().map(|x| f32::from(u8::from(x))).collect(),
    };
    Tensor::floats_of(shape, values)
}

fn to_integers(tensor: Tensor) -> Result<Tensor, GraphError> {
    let shape = tensor.shape().to_vec();
    let values = match tensor.into_data() {
        Data::Floats(values) => values.into_iter().map(|x| x as i64).collect(),
        Data::Integers(values) => values,
        Data::Truths(values) => values.into_iter().map(i64::from).collect(),
    };
    Tensor::new(shape, Data::Integers(values))
}

fn clip(args: &mut Arguments<'_>) -> Result<Tensor, GraphError> {
    let tensor = args.take(0)?;
    let shape = tensor.shape().to_vec();
    let bounds = [args.optional(1)?, args.optional(2)?];
    match tensor.into_data() {
        Data::Floats(mut values) => {
            let bound = |i: usize, none: f32| match bounds[i] {
                Some(tensor) => tensor.floats()?.first().copied().ok_or_else(|| invalid("a bound without a value")),
                None => Ok(none),
            };
            let (low, high) = (bound(0, f32::NEG_INFINITY)?, bound(1, f32::INFINITY)?);
            values.iter_mut().for_each(|x| *x = x.max(low).min(high));
            Tensor::floats_of(shape, values)
        }
        Data::Integers(mut values) => {
            let bound = |i: usize, none: i64| bounds[i].map_or(Ok(none), integer);
            let (low, high) = (bound(0, i64::MIN)?, bound(1, i64::MAX)?);
            values.iter_mut().for_each(|x| *x = (*x).max(low).min(high));
            Tensor::new(shape, Data::Integers(values))
        }
        Data::Truths(_) => Err(invalid("bounds of truth values")),
    }
}

fn bend(curve: Curve, level: SimdLevel, tensor: Tensor) -> Result<Tensor, GraphError> {
    fn each(mut values: Vec<f32>, f: impl Fn(f32) -> f32) -> Vec<f32> {
        values.iter_mut().for_each(|x| *x = f(*x));
        values
    }
    let shape = tensor.shape().to_vec();
    let mut values = tensor.into_floats()?;
    let values = match curve {
        Curve::Abs => each(values, f32::abs),
        Curve::Cos => each(values, libm::cosf),
        Curve::Exp => each(values, libm::expf),
        Curve::Floor => each(values, f32::floor),
        Curve::Gelu => {
            simd::gelu(level, &mut values);
            values
        }
        Curve::Log => each(values, libm::logf),
        Curve::Neg => each(values, |x| -x),
        Curve::Round => each(values, f32::round_ties_even),
        Curve::Sigmoid => each(values, |x| 1.0 / (1.0 + libm::expf(-x))),
        Curve::Sign => each(values, |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                0.0
            }
        }),
        Curve::Sin => each(values, libm::sinf),
        Curve::Sqrt => each(values, f32::sqrt),
    };
    Tensor::floats_of(shape, values)
}

fn layer_norm(level: SimdLevel, args: &mut Arguments<'_>, epsilon: f32) -> Result<Tensor, GraphError> {
    let tensor = args.take(0)?;
    let (scale, shift) = (args.get(1)?.floats()?, args.get(2)?.floats()?);
    let width = tensor.shape().last().copied().unwrap_or(0);
    if width == 0 || scale.len() != width || shift.len() != width {
        return Err(invalid(format!("{} scales for rows of {width}", scale.len())));
    }
    let shape = tensor.shape().to_vec();
    let mut rows = tensor.into_floats()?;
    simd::layer_norm(level, &mut rows, scale, shift, epsilon);
    Tensor::floats_of(shape, rows)
}

/// Most numbers of a range: it counts frames.
const MAX_RANGE: i64 = 1 << 20;

fn range(args: &Arguments<'_>) -> Result<Tensor, GraphError> {
    let (start, end, step) = (integer(args.get(0)?)?, integer(args.get(1)?)?, integer(args.get(2)?)?);
    if step != 1 || !(0..=MAX_RANGE).contains(&end.saturating_sub(start)) {
        return Err(invalid(format!("numbers from {start} to {end} in steps of {step}")));
    }
    let numbers: Vec<i64> = (start..end).collect();
    Tensor::new(vec![numbers.len()], Data::Integers(numbers))
}

fn shape(tensor: &Tensor, start: i64, end: i64) -> Result<Tensor, GraphError> {
    let sides: Vec<i64> = tensor.shape().iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect();
    let all = Tensor::new(vec![sides.len()], Data::Integers(sides))?;
    slice(&all, start, end, 0, 1)
}

fn slices(args: &mut Arguments<'_>) -> Result<Tensor, GraphError> {
    let (starts, ends) = (args.get(1)?.integers()?.to_vec(), args.get(2)?.integers()?.to_vec());
    let axes = args
        .optional(3)?
        .map(Tensor::integers)
        .transpose()?
        .map_or_else(|| (0..i64::try_from(starts.len()).unwrap_or(0)).collect(), <[i64]>::to_vec);
    let steps =
        args.optional(4)?.map(Tensor::integers).transpose()?.map_or_else(|| vec![1; starts.len()], <[i64]>::to_vec);
    let mut out: Option<Tensor> = None;
    for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
        let whole = match &out {
            Some(tensor) => tensor,
            None => args.get(0)?,
        };
        out = Some(slice(whole, start, end, axis, step)?);
    }
    out.ok_or_else(|| invalid("a slice of no axis"))
}

fn squeeze(args: &mut Arguments<'_>) -> Result<Tensor, GraphError> {
    let tensor = args.take(0)?;
    let axes = match args.optional(1)? {
        Some(axes) => axes.integers()?.iter().map(|&axis| tensor.axis(axis)).collect::<Result<Vec<_>, _>>()?,
        None => (0..tensor.shape().len()).filter(|&i| tensor.shape()[i] == 1).collect(),
    };
    let sides = tensor.shape().iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &side)| side).collect();
    tensor.reshaped(sides)
}

fn unsqueeze(args: &mut Arguments<'_>) -> Result<Tensor, GraphError> {
    let tensor = args.take(0)?;
    let axis = integer(args.get(1)?)?;
    let rank = tensor.shape().len() + 1;
    let axis = super::tensor::place(axis, rank).ok_or_else(|| invalid(format!("no axis {axis} of {rank}")))?;
    let mut sides = tensor.shape().to_vec();
    sides.insert(axis, 1);
    tensor.reshaped(sides)
}
