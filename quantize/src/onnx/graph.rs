//! An ONNX graph under construction, layer by layer. Weights are looked up by their layer's name; what is wrong with
//! them is collected and reported when the graph is finished.

use super::{Storage, Tensors, refused};
use pleinair::{Error, Result};
use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::*;

const OPSET: i64 = 17;
/// The version of the file format that came with opset 17.
const IR_VERSION: i64 = 8;
/// Tensors of at most this many values stay f32 in [`Storage::F16`]: all biases and norms, a thousandth of the bytes.
const SMALL: usize = 1024;

/// Protobuf keys: `ModelProto.graph` and `GraphProto.initializer`, both of a given length (wire type 2).
const GRAPH_FIELD: u8 = (7 << 3) | 2;
const INITIALIZER_FIELD: u8 = (5 << 3) | 2;
const GROWS: &str = "a vector grows as it is written to";

/// A value of the graph, by its name.
#[derive(Debug, Clone)]
pub(super) struct Value(String);

/// A convolution's geometry, without its weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conv {
    /// Channels it reads.
    pub input: usize,
    /// Channels it gives.
    pub output: usize,
    /// Side of its square kernel.
    pub kernel: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zeros around: top, left, bottom, right.
    pub pads: [i64; 4],
}

impl Conv {
    /// 3x3 that keeps the size.
    pub fn same(input: usize, output: usize) -> Conv {
        Conv { input, output, kernel: 3, stride: 1, pads: [1; 4] }
    }

    /// 1x1.
    pub fn pointwise(input: usize, output: usize) -> Conv {
        Conv { input, output, kernel: 1, stride: 1, pads: [0; 4] }
    }

    fn shape(&self) -> [usize; 4] {
        [self.output, self.input, self.kernel, self.kernel]
    }
}

/// A graph under construction.
pub(super) struct Graph<'t> {
    tensors: &'t mut dyn Tensors,
    storage: Storage,
    /// Everything but the initialisers.
    graph: GraphProto,
    /// The initialisers, encoded as fields of the graph at once: a VAE's weights are in memory only once.
    weights: Vec<u8>,
    problems: Vec<String>,
    /// A failure that is no property of the model, such as of the disk; nothing is read after it.
    failure: Option<Error>,
}

impl<'t> Graph<'t> {
    pub fn new(name: &str, tensors: &'t mut dyn Tensors, storage: Storage) -> Self {
        let graph = GraphProto { name: name.into(), ..GraphProto::default() };
        Graph { tensors, storage, graph, weights: vec![], problems: vec![], failure: None }
    }

    /// Declares the input `[batch, channels, side, side]`; the sides are names of free dimensions.
    pub fn input(&mut self, name: &str, channels: usize, sides: [&str; 2]) -> Value {
        self.graph.input.push(picture(name, channels, sides));
        Value(name.into())
    }

    /// The file, with `value` as the output `[batch, channels, side, side]` under a name of its own.
    pub fn finish(mut self, value: Value, name: &str, channels: usize, sides: [&str; 2]) -> Result<Vec<u8>> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if !self.problems.is_empty() {
            return Err(refused(self.problems));
        }
        self.graph.output.push(picture(name, channels, sides));
        self.graph.node.push(node("Identity", &[&value.0], name, vec![]));
        // a protobuf message may have its fields in any order: the weights, which are encoded already, come first
        self.graph.encode(&mut self.weights).expect(GROWS);
        let model = ModelProto {
            ir_version: IR_VERSION,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            producer_name: env!("CARGO_PKG_NAME").into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            ..ModelProto::default()
        };
        let mut head = model.encode_to_vec();
        head.push(GRAPH_FIELD);
        prost::encode_length_delimiter(self.weights.len(), &mut head).expect(GROWS);
        self.weights.splice(0..0, head);
        Ok(self.weights)
    }

    fn push(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Value {
        self.graph.node.push(node(op, inputs, name, attributes));
        Value(name.into())
    }

    fn initializer(&mut self, name: &str, dims: &[usize], data_type: DataType, raw_data: Vec<u8>) {
        let dims = dims.iter().map(|&d| d as i64).collect();
        let tensor =
            TensorProto { name: name.into(), dims, data_type: data_type as i32, raw_data, ..TensorProto::default() };
        self.weights.push(INITIALIZER_FIELD);
        tensor.encode_length_delimited(&mut self.weights).expect(GROWS);
    }

    fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        self.initializer(name, dims, DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }

    fn int64s(&mut self, name: &str, values: &[i64]) {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(name, &[values.len()], DataType::Int64, raw);
    }

    /// Reads a tensor that may be stored in any of these shapes. What is wrong is noted, and the answer is
    /// empty then: the graph goes on, to find what else is wrong.
    fn read(&mut self, name: &str, shapes: &[&[usize]]) -> Vec<f32> {
        if self.failure.is_some() {
            return vec![];
        }
        let Some(stored) = self.tensors.shape(name) else {
            self.problems.push(format!("vae: the tensor {name} is missing"));
            return vec![];
        };
        if !shapes.contains(&stored.as_slice()) {
            let wanted = shapes[0];
            self.problems.push(format!("vae: the tensor {name} is {stored:?}, wanted {wanted:?}"));
            return vec![];
        }
        match self.tensors.read(name, &stored) {
            Ok(values) if values.len() == stored.iter().product::<usize>() => return values,
            Ok(values) => self.problems.push(format!("vae: the tensor {name} has {} values only", values.len())),
            Err(Error::Model { problems, .. }) => self.problems.extend(problems),
            Err(error) => self.failure = Some(error),
        }
        vec![]
    }

    /// A weight under its own name, in the shape the operator wants.
    fn weight(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            self.problems.push(format!("vae: the tensor {name} contains {bad}"));
            return;
        }
        if self.storage == Storage::F32 || values.len() <= SMALL {
            return self.floats(name, shape, values);
        }
        if let Some(large) = values.iter().find(|v| !half::f16::from_f32(**v).is_finite()) {
            self.problems
                .push(format!("vae: the tensor {name} contains {large}, too large for f16; convert with --dtype f32"));
            return;
        }
        let raw = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
        let stored = format!("{name}.f16");
        self.initializer(&stored, shape, DataType::Float16, raw);
        self.push(name, "Cast", &[&stored], vec![int("to", DataType::Float as i64)]);
    }

    /// A convolution with the bias of its layer. A linear layer's weight `[output, input]` serves as a 1x1 kernel.
    pub fn conv(&mut self, at: &str, x: &Value, conv: Conv) -> Value {
        self.conv_stored_as(at, at, x, conv)
    }

    /// As [`Graph::conv`], where the checkpoint has another name for the layer.
    pub fn conv_stored_as(&mut self, at: &str, stored: &str, x: &Value, conv: Conv) -> Value {
        let weight = self.kernel(stored, conv);
        let bias = self.bias(stored, conv);
        self.convolve(at, x, conv, &weight, Some(&bias))
    }

    /// A convolution without bias.
    pub fn conv_without_bias(&mut self, at: &str, x: &Value, conv: Conv) -> Value {
        let weight = self.kernel(at, conv);
        self.convolve(at, x, conv, &weight, None)
    }

    /// A convolution whose answer gets as many channels again, all of one constant.
    pub fn conv_and_constant(&mut self, at: &str, x: &Value, conv: Conv, constant: f32) -> Value {
        // zero kernels with the constant as bias: exact, and of any size without an operator that knows it
        let (mut weight, mut bias) = (self.kernel(at, conv), self.bias(at, conv));
        weight.resize(2 * weight.len(), 0.0);
        bias.resize(2 * bias.len(), constant);
        self.convolve(at, x, Conv { output: 2 * conv.output, ..conv }, &weight, Some(&bias))
    }

    fn kernel(&mut self, at: &str, conv: Conv) -> Vec<f32> {
        let (shape, linear) = (conv.shape(), [conv.output, conv.input]);
        let shapes: &[&[usize]] = if conv.kernel == 1 { &[&shape, &linear] } else { &[&shape] };
        self.read(&format!("{at}.weight"), shapes)
    }

    fn bias(&mut self, at: &str, conv: Conv) -> Vec<f32> {
        self.read(&format!("{at}.bias"), &[&[conv.output]])
    }

    fn convolve(&mut self, at: &str, x: &Value, conv: Conv, weight: &[f32], bias: Option<&[f32]>) -> Value {
        let names = [format!("{at}.weight"), format!("{at}.bias")];
        self.weight(&names[0], &conv.shape(), weight);
        let mut inputs = vec![x.0.as_str(), &names[0]];
        if let Some(bias) = bias {
            self.weight(&names[1], &[conv.output], bias);
            inputs.push(&names[1]);
        }
        let attributes = vec![
            ints("kernel_shape", &[conv.kernel as i64; 2]),
            ints("strides", &[conv.stride as i64; 2]),
            ints("pads", &conv.pads),
        ];
        self.push(at, "Conv", &inputs, attributes)
    }

    /// GroupNorm (arXiv 1803.08494) of a `[B, C, H, W]`. ONNX has it from opset 18 on; in opset 17 it is the
    /// normalisation of each group as one long channel.
    pub fn group_norm(&mut self, at: &str, x: &Value, channels: usize, groups: usize, eps: f32) -> Value {
        let [flat, ones, zeros, scale, shift] =
            ["groups", "ones", "zeros", "weight", "bias"].map(|part| format!("{at}.{part}"));
        self.floats(&ones, &[groups], &vec![1.0; groups]);
        self.floats(&zeros, &[groups], &vec![0.0; groups]);
        for name in [&scale, &shift] {
            let values = self.read(name, &[&[channels]]);
            self.weight(name, &[channels, 1, 1], &values);
        }
        let grouped = self.reshape(&flat, x, &[0, groups as i64, -1]);
        let inputs = [grouped.0.as_str(), &ones, &zeros];
        let normal =
            self.push(&format!("{at}.normalised"), "InstanceNormalization", &inputs, vec![float("epsilon", eps)]);
        let normal = self.reshape_like(&format!("{at}.ungrouped"), &normal, x);
        let scaled = self.push(&format!("{at}.scaled"), "Mul", &[&normal.0, &scale], vec![]);
        self.push(at, "Add", &[&scaled.0, &shift], vec![])
    }

    /// In `shape`, 0 keeps the dimension of the same place and -1 takes what is left.
    pub fn reshape(&mut self, name: &str, x: &Value, shape: &[i64]) -> Value {
        let wanted = format!("{name}.shape");
        self.int64s(&wanted, shape);
        self.push(name, "Reshape", &[&x.0, &wanted], vec![])
    }

    /// `x` in the shape of `like`.
    pub fn reshape_like(&mut self, name: &str, x: &Value, like: &Value) -> Value {
        let shape = self.push(&format!("{name}.shape"), "Shape", &[&like.0], vec![]);
        self.push(name, "Reshape", &[&x.0, &shape.0], vec![])
    }

    /// Swaps the last two axes of three.
    pub fn transpose(&mut self, name: &str, x: &Value) -> Value {
        self.push(name, "Transpose", &[&x.0], vec![ints("perm", &[0, 2, 1])])
    }

    /// Matrix product.
    pub fn matmul(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.push(name, "MatMul", &[&a.0, &b.0], vec![])
    }

    /// Softmax over the last axis.
    pub fn softmax(&mut self, name: &str, x: &Value) -> Value {
        self.push(name, "Softmax", &[&x.0], vec![int("axis", -1)])
    }

    /// `x sigmoid(x)`.
    pub fn silu(&mut self, x: &Value) -> Value {
        let sigmoid = self.push(&format!("{}.sigmoid", x.0), "Sigmoid", &[&x.0], vec![]);
        self.push(&format!("{}.silu", x.0), "Mul", &[&x.0, &sigmoid.0], vec![])
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: &Value) -> Value {
        self.push(&format!("{}.relu", x.0), "Relu", &[&x.0], vec![])
    }

    /// Hyperbolic tangent.
    pub fn tanh(&mut self, x: &Value) -> Value {
        self.push(&format!("{}.tanh", x.0), "Tanh", &[&x.0], vec![])
    }

    /// Sum of two values of one shape.
    pub fn add(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.push(name, "Add", &[&a.0, &b.0], vec![])
    }

    /// An operator of one value and one number: `Add`, `Mul`, `Div`.
    pub fn with_number(&mut self, name: &str, op: &str, x: &Value, number: f32) -> Value {
        let constant = format!("{name}.number");
        self.floats(&constant, &[], &[number]);
        self.push(name, op, &[&x.0, &constant], vec![])
    }

    /// Each pixel four times, twice the sides.
    pub fn double_size(&mut self, name: &str, x: &Value) -> Value {
        let scales = format!("{name}.scales");
        self.floats(&scales, &[4], &[1.0, 1.0, 2.0, 2.0]);
        let attributes = vec![
            text("mode", "nearest"),
            text("nearest_mode", "floor"),
            text("coordinate_transformation_mode", "asymmetric"),
        ];
        self.push(name, "Resize", &[&x.0, "", &scales], attributes) // the empty one is a region of interest
    }

    /// Whether the checkpoint has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.shape(name).is_some()
    }
}

fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        name: output.into(),
        op_type: op.into(),
        input: inputs.iter().map(|&input| input.into()).collect(),
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

fn picture(name: &str, channels: usize, sides: [&str; 2]) -> ValueInfoProto {
    let free = |name: &str| dimension::Value::DimParam(name.into());
    let dims = [free("batch"), dimension::Value::DimValue(channels as i64), free(sides[0]), free(sides[1])];
    let dim = dims.map(|value| Dimension { value: Some(value), ..Dimension::default() }).into();
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(TensorShapeProto { dim }) };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value, ..TypeProto::default() }),
        ..Default::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind as i32, ..AttributeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, AttributeType::Int) }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attribute(name, AttributeType::Float) }
}

fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: s.as_bytes().to_vec(), ..attribute(name, AttributeType::String) }
}
