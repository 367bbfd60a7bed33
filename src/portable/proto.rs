//! The few fields of an ONNX file that the networks use, read from its protobuf bytes.
//!
//! Field numbers: onnx.proto3 of ONNX 1.16. Unknown fields are skipped, as protobuf asks.

use super::error::{GraphError, invalid};
use super::tensor::{Data, Tensor};

/// A graph as it is in the file.
#[derive(Debug, Default)]
pub(super) struct GraphProto {
    pub(super) nodes: Vec<NodeProto>,
    pub(super) initializers: Vec<(String, Tensor)>,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

/// An operator with the names of what it takes and gives.
#[derive(Debug, Default)]
pub(super) struct NodeProto {
    pub(super) operator: String,
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
    pub(super) attributes: Vec<(String, Attribute)>,
}

/// A setting of an operator.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attribute {
    Float(f32),
    Int(i64),
    Ints(Vec<i64>),
    /// Of a kind that no operator here takes.
    Other,
}

/// A value of a field.
enum Field<'a> {
    Varint(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    Skipped,
}

/// The fields of a message, one after the other.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, GraphError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or_else(|| invalid("the file ends too early"))?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid("a number of more than ten bytes"))
    }

    fn take(&mut self, bytes: u64) -> Result<&'a [u8], GraphError> {
        let taken = usize::try_from(bytes).ok().and_then(|n| self.rest.split_at_checked(n));
        let (taken, rest) = taken.ok_or_else(|| invalid("the file ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next field with its number; None at the end of the message.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, GraphError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => self.take(8).map(|_| Field::Skipped)?,
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            kind => return Err(invalid(format!("wire type {kind}"))),
        };
        Ok(Some((key >> 3, field)))
    }
}

/// Calls `each` for every field of a message.
fn read<'a>(bytes: &'a [u8], mut each: impl FnMut(u64, Field<'a>) -> Result<(), GraphError>) -> Result<(), GraphError> {
    let mut fields = Fields { rest: bytes };
    while let Some((number, field)) = fields.next()? {
        each(number, field)?;
    }
    Ok(())
}

fn text(bytes: &[u8]) -> Result<String, GraphError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| invalid("a name that is not UTF-8"))
}

/// Integers of a repeated field: one of them, or all in one piece.
fn integers(field: &Field<'_>, out: &mut Vec<i64>) -> Result<(), GraphError> {
    match field {
        Field::Varint(value) => out.push(value.cast_signed()),
        Field::Bytes(bytes) => {
            let mut packed = Fields { rest: bytes };
            while !packed.rest.is_empty() {
                out.push(packed.varint()?.cast_signed());
            }
        }
        Field::Fixed32(_) | Field::Skipped => {}
    }
    Ok(())
}

/// Operator sets whose operators are those of this module.
const OPERATOR_SETS: std::ops::RangeInclusive<u64> = 20..=22;

/// Reads a ModelProto.
pub(super) fn parse(bytes: &[u8]) -> Result<GraphProto, GraphError> {
    let mut graph = None;
    read(bytes, |number, field| {
        match (number, field) {
            (7, Field::Bytes(bytes)) => graph = Some(parse_graph(bytes)?),
            (8, Field::Bytes(bytes)) => parse_operator_set(bytes)?,
            _ => {}
        }
        Ok(())
    })?;
    graph.ok_or_else(|| invalid("no graph"))
}

fn parse_operator_set(bytes: &[u8]) -> Result<(), GraphError> {
    let (mut domain, mut version) = (String::new(), 0);
    read(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => domain = text(bytes)?,
            (2, Field::Varint(value)) => version = value,
            _ => {}
        }
        Ok(())
    })?;
    if domain.is_empty() && OPERATOR_SETS.contains(&version) {
        Ok(())
    } else {
        Err(invalid(format!("operator set \"{domain}\" {version}, known: {OPERATOR_SETS:?}")))
    }
}

fn parse_graph(bytes: &[u8]) -> Result<GraphProto, GraphError> {
    let mut graph = GraphProto::default();
    read(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => graph.nodes.push(parse_node(bytes)?),
            (5, Field::Bytes(bytes)) => graph.initializers.push(parse_tensor(bytes)?),
            (11, Field::Bytes(bytes)) => graph.inputs.push(parse_value_name(bytes)?),
            (12, Field::Bytes(bytes)) => graph.outputs.push(parse_value_name(bytes)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(graph)
}

fn parse_value_name(bytes: &[u8]) -> Result<String, GraphError> {
    let mut name = String::new();
    read(bytes, |number, field| {
        if let (1, Field::Bytes(bytes)) = (number, field) {
            name = text(bytes)?;
        }
        Ok(())
    })?;
    Ok(name)
}

fn parse_node(bytes: &[u8]) -> Result<NodeProto, GraphError> {
    let mut node = NodeProto::default();
    read(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => node.inputs.push(text(bytes)?),
            (2, Field::Bytes(bytes)) => node.outputs.push(text(bytes)?),
            (4, Field::Bytes(bytes)) => node.operator = text(bytes)?,
            (5, Field::Bytes(bytes)) => node.attributes.push(parse_attribute(bytes)?),
            (7, Field::Bytes(bytes)) if !bytes.is_empty() => return Err(invalid("an operator of another domain")),
            _ => {}
        }
        Ok(())
    })?;
    Ok(node)
}

fn parse_attribute(bytes: &[u8]) -> Result<(String, Attribute), GraphError> {
    let (mut name, mut float, mut int, mut ints, mut kind) = (String::new(), 0.0, 0, Vec::new(), 0);
    read(bytes, |number, field| {
        match (number, field) {
            (1, Field::Bytes(bytes)) => name = text(bytes)?,
            (2, Field::Fixed32(bits)) => float = f32::from_bits(bits),
            (3, Field::Varint(value)) => int = value.cast_signed(),
            (8, field) => integers(&field, &mut ints)?,
            (20, Field::Varint(value)) => kind = value,
            _ => {}
        }
        Ok(())
    })?;
    let attribute = match kind {
        1 => Attribute::Float(float),
        2 => Attribute::Int(int),
        7 => Attribute::Ints(ints),
        _ => Attribute::Other,
    };
    Ok((name, attribute))
}

/// A tensor of the file; floats of 16 bits become floats of 32.
fn parse_tensor(bytes: &[u8]) -> Result<(String, Tensor), GraphError> {
    let (mut name, mut shape, mut kind, mut raw) = (String::new(), Vec::new(), 0, None);
    read(bytes, |number, field| {
        match (number, field) {
            (1, field) => integers(&field, &mut shape)?,
            (2, Field::Varint(value)) => kind = value,
            (8, Field::Bytes(bytes)) => name = text(bytes)?,
            (9, Field::Bytes(bytes)) => raw = Some(bytes),
            _ => {}
        }
        Ok(())
    })?;
    let raw = raw.ok_or_else(|| invalid(format!("tensor \"{name}\" has its values elsewhere")))?;
    let words = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(0.0, f32::from_le_bytes);
    let data = match kind {
        1 => Data::Floats(raw.chunks_exact(4).map(words).collect()),
        7 => {
            Data::Integers(raw.chunks_exact(8).map(|b| <[u8; 8]>::try_from(b).map_or(0, i64::from_le_bytes)).collect())
        }
        9 => Data::Truths(raw.iter().map(|&b| b != 0).collect()),
        10 => Data::Floats(
            raw.chunks_exact(2).map(|b| half::f16::from_bits(u16::from_le_bytes([b[0], b[1]])).to_f32()).collect(),
        ),
        kind => return Err(invalid(format!("tensor \"{name}\" has values of type {kind}"))),
    };
    let shape = shape.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| invalid(format!("tensor \"{name}\" has a negative side")))?;
    Ok((name, Tensor::new(shape, data)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_graph_is_an_error() {
        for bytes in
            [&b""[..], b"\x3a\x05", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x3f", b"\x42\x02\x10\x07"]
        {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
        // An empty graph is one.
        assert!(parse(b"\x3a\x00").unwrap().nodes.is_empty());
    }
}
