//! A graph as steps that run one after the other.

use std::collections::HashMap;

use super::arguments::{Arguments, Operand};
use super::error::{GraphError, invalid};
use super::matmul::Packed;
use super::operators::Operator;
use super::proto::{self, NodeProto};
use super::tensor::Tensor;
use crate::rvq::SimdLevel;

/// A node that depends on what goes in.
#[derive(Debug)]
struct DynamicNode {
    /// Operator and first output, for errors.
    name: String,
    operator: Operator,
    arguments: Vec<Operand>,
    outputs: Vec<usize>,
    /// Values that no later step asks for.
    last: Vec<usize>,
}

/// A graph that is ready to run.
#[derive(Debug)]
pub(super) struct Graph {
    constants: Vec<Tensor>,
    steps: Vec<DynamicNode>,
    inputs: Vec<usize>,
    outputs: Vec<Operand>,
    values: usize,
}

/// A graph that is being built.
#[derive(Default)]
struct Builder {
    names: HashMap<String, Operand>,
    constants: Vec<Tensor>,
    steps: Vec<DynamicNode>,
    values: usize,
}

impl Builder {
    fn constant(&mut self, name: String, tensor: Tensor) -> Result<(), GraphError> {
        self.constants.push(tensor);
        self.name(name, Operand::Constant(self.constants.len() - 1))
    }

    fn value(&mut self, name: String) -> Result<usize, GraphError> {
        self.values += 1;
        self.name(name, Operand::Value(self.values - 1))?;
        Ok(self.values - 1)
    }

    fn name(&mut self, name: String, source: Operand) -> Result<(), GraphError> {
        match self.names.insert(name, source) {
            None => Ok(()),
            Some(_) => Err(invalid("two tensors of one name")),
        }
    }

    fn source(&self, name: &str) -> Result<Operand, GraphError> {
        if name.is_empty() {
            return Ok(Operand::None);
        }
        self.names.get(name).copied().ok_or_else(|| invalid(format!("tensor \"{name}\" comes from nowhere")))
    }

    fn node(&mut self, node: NodeProto) -> Result<(), GraphError> {
        let name = format!("{} \"{}\"", node.operator, node.outputs.first().map_or("", String::as_str));
        let mut operator = Operator::parse(&node)?;
        let arguments = node.inputs.iter().map(|name| self.source(name)).collect::<Result<Vec<_>, _>>()?;
        if arguments.iter().all(|source| !matches!(source, Operand::Value(_))) {
            let (sources, constants) = (&arguments[..], &self.constants[..]);
            let mut args = Arguments { sources, constants, values: &mut [], last: &[] };
            let made = operator.run(SimdLevel::Scalar, &mut args)?;
            return node.outputs.into_iter().zip(made).try_for_each(|(name, made)| self.constant(name, made));
        }
        if let (Operator::MatMul, [_, Operand::Constant(matrix)]) = (&operator, &arguments[..])
            && let Some(packed) = Packed::new(&self.constants[*matrix])
        {
            operator = Operator::Product(packed);
        }
        let outputs = node.outputs.into_iter().map(|name| self.value(name)).collect::<Result<Vec<_>, _>>()?;
        self.steps.push(DynamicNode { name, operator, arguments, outputs, last: Vec::new() });
        Ok(())
    }

    /// Notes after which step each value is done with, and lets go of weights that only lie packed.
    fn trim(&mut self, outputs: &[Operand]) {
        let mut needed: Vec<bool> = vec![false; self.values];
        let mut kept = vec![false; self.constants.len()];
        for &output in outputs {
            match output {
                Operand::Value(i) => needed[i] = true,
                Operand::Constant(i) => kept[i] = true,
                Operand::None => {}
            }
        }
        for step in self.steps.iter_mut().rev() {
            let packed = matches!(step.operator, Operator::Product(_));
            for (place, &argument) in step.arguments.iter().enumerate() {
                match argument {
                    Operand::Value(i) if !needed[i] => {
                        needed[i] = true;
                        step.last.push(i);
                    }
                    Operand::Constant(i) if !(packed && place == 1) => kept[i] = true,
                    _ => {}
                }
            }
        }
        for (constant, kept) in self.constants.iter_mut().zip(kept) {
            if !kept && let Ok(empty) = Tensor::floats_of(vec![0], Vec::new()) {
                *constant = empty;
            }
        }
    }
}

impl Graph {
    /// The graph in the bytes of an ONNX file, with its inputs and outputs in the order of these names.
    pub(super) fn new(bytes: &[u8], inputs: &[&str], outputs: &[&str]) -> Result<Self, GraphError> {
        let file = proto::parse(bytes)?;
        for (wanted, found) in [(inputs, &file.inputs), (outputs, &file.outputs)] {
            if wanted.len() != found.len() || !wanted.iter().all(|name| found.iter().any(|n| n == name)) {
                return Err(invalid(format!("tensors {found:?} on one side of the graph, expected {wanted:?}")));
            }
        }
        let mut builder = Builder::default();
        for (name, tensor) in file.initializers {
            builder.constant(name, tensor)?;
        }
        let inputs = inputs.iter().map(|&name| builder.value(name.to_owned())).collect::<Result<Vec<_>, _>>()?;
        for node in file.nodes {
            builder.node(node)?;
        }
        let outputs = outputs.iter().map(|name| builder.source(name)).collect::<Result<Vec<_>, _>>()?;
        builder.trim(&outputs);
        let Builder { constants, steps, values, .. } = builder;
        Ok(Self { constants, steps, inputs, outputs, values })
    }

    /// What the graph makes of its inputs.
    pub(super) fn run(&self, level: SimdLevel, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, GraphError> {
        let mut values: Vec<Option<Tensor>> = std::iter::repeat_with(|| None).take(self.values).collect();
        for (&place, tensor) in self.inputs.iter().zip(inputs) {
            values[place] = Some(tensor);
        }
        for step in &self.steps {
            let mut args = Arguments {
                sources: &step.arguments,
                constants: &self.constants,
                values: &mut values,
                last: &step.last,
            };
            let made = step.operator.run(level, &mut args);
            let made = made.map_err(|e| invalid(format!("{}: {e}", step.name)))?;
            if made.len() != step.outputs.len() {
                return Err(invalid(format!("{}: {} outputs", step.name, made.len())));
            }
            for &done in &step.last {
                values[done] = None;
            }
            for (&place, tensor) in step.outputs.iter().zip(made) {
                values[place] = Some(tensor);
            }
        }
        let outputs = self.outputs.iter().map(|&output| match output {
            Operand::Value(i) => values[i].take(),
            Operand::Constant(i) => self.constants.get(i).cloned(),
            Operand::None => None,
        });
        outputs.collect::<Option<Vec<_>>>().ok_or_else(|| invalid("an output that nothing makes"))
    }
}
