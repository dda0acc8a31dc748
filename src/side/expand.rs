//! ONNX's `Expand` behind a wall that tract's optimiser does not see through. tract 0.23.9 splits a product of a
//! concatenation (DPT's readout projection: every patch beside the class token, which `Expand` repeats) and then drops the
//! repetition from the half that has it although that half alone decides the size; the plan is refused then.

use tract_core::internal::*;
use tract_onnx::model::{Onnx, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::infer::{InferenceModel, InferenceNode};
use tract_onnx::tract_hir::internal::{Expansion, InferenceOp, InferenceResult, Solver, TensorProxy, expand};
use tract_onnx::tract_hir::ops::array::MultiBroadcastTo;

/// tract's reader of ONNX files, with this `Expand` in the place of its own.
pub(super) fn onnx() -> Onnx {
    let mut onnx = tract_onnx::onnx();
    onnx.op_register.insert("Expand", behind_a_wall);
    onnx
}

fn behind_a_wall(_: &ParsingContext<'_>, _: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(Expand), vec![]))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Expand;

impl Expansion for Expand {
    fn name(&self) -> StaticName {
        "Expand".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        MultiBroadcastTo.rules(solver, inputs, outputs)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let repeated = MultiBroadcastTo.wire(&format!("{prefix}.repeated"), model, inputs)?;
        model.wire_node(prefix, Wall, &repeated)
    }

    fn wire_with_inference_model_and_node(
        &self,
        prefix: &str,
        source: &InferenceModel,
        node: &InferenceNode,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let name = format!("{prefix}.repeated");
        let repeated = MultiBroadcastTo.wire_with_inference_model_and_node(&name, source, node, model, inputs)?;
        model.wire_node(prefix, Wall, &repeated)
    }
}

/// Hands on what it is given, and says nothing about it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Wall;

impl Op for Wall {
    fn name(&self) -> StaticName {
        "Wall".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Wall {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Wall {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }

    as_op!();
}
