//! The tensors of a backward pass, and where they lie in their buffers.

use std::ops::Range;

use crate::gpu::bindings::{self, Place, Slot};
use crate::gpu::check::{check_gradients, check_inputs};
use crate::gpu::chunk::Chunk;
use crate::gpu::error::BindError;
use crate::gpu::layout::{Laid, merge_leading, merge_to_one, normalise};
use crate::gpu::params::Params;
use crate::gpu::plan::Plan;
use crate::gpu::shader::Kernel;
use crate::gpu::tensor::{ForwardTensors, TensorView};

/// The tensors of a backward pass.
///
/// ```
/// use local_attention::gpu::{BackwardTensors, ForwardTensors, TensorView};
///
/// /// What the forward pass was given, `out` and `lse` among it, and a gradient for each of q, k and v.
/// fn of<'a>(
///     forward: ForwardTensors<'a>,
///     dout: TensorView<'a>,
///     [dq, dk, dv]: [TensorView<'a>; 3],
/// ) -> BackwardTensors<'a> {
///     assert!(forward.lse.is_some());
///     BackwardTensors::new(forward, dout, dq, dk, dv)
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackwardTensors<'a> {
    /// Those of the forward pass, `lse` among them; all are read.
    pub forward: ForwardTensors<'a>,
    /// The gradient by `out`, `[.., query, dv]`.
    pub dout: TensorView<'a>,
    /// `[.., query, d]`; written.
    pub dq: TensorView<'a>,
    /// `[.., key_len, d]`, the leading dimensions those of `k`, but 1 for one along which `k` has the stride 0: the sum
    /// over all that read those keys; written.
    pub dk: TensorView<'a>,
    /// `[.., key_len, dv]`, as for `dk`; written.
    pub dv: TensorView<'a>,
    /// The bias's own shape; written. Without it that gradient is not computed.
    pub dattn_bias: Option<TensorView<'a>>,
}

impl<'a> BackwardTensors<'a> {
    /// Everything but the gradient by a bias.
    pub fn new(
        forward: ForwardTensors<'a>,
        dout: TensorView<'a>,
        dq: TensorView<'a>,
        dk: TensorView<'a>,
        dv: TensorView<'a>,
    ) -> Self {
        Self { forward, dout, dq, dk, dv, dattn_bias: None }
    }

    /// Asks for the gradient by the bias.
    #[must_use]
    pub fn with_dattn_bias(mut self, dattn_bias: TensorView<'a>) -> Self {
        self.dattn_bias = Some(dattn_bias);
        self
    }

    /// The results, by name.
    pub(in crate::gpu) fn results(&self) -> impl Iterator<Item = (&'static str, &TensorView<'a>)> {
        let all = [("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)];
        all.into_iter().chain(self.dattn_bias.iter().map(|t| ("dattn_bias", t)))
    }

    /// What is read, by name.
    pub(in crate::gpu) fn inputs(&self) -> impl Iterator<Item = (&'static str, &TensorView<'a>)> {
        let f = &self.forward;
        let all = [("q", &f.q), ("k", &f.k), ("v", &f.v), ("out", &f.out), ("dout", &self.dout)];
        let optional = [("lse", &f.lse), ("mask", &f.mask), ("attn_bias", &f.attn_bias)];
        all.into_iter()
            .chain(optional.into_iter().filter_map(|(name, t)| Some((name, t.as_ref()?))))
    }
}

/// Which positions of a tensor a part binds.
#[derive(Debug, Clone, Copy)]
enum Along {
    Queries,
    Keys,
    Mask,
    Bias,
}

/// A tensor of a call.
#[derive(Debug)]
struct Placed<'a> {
    slot: Slot,
    laid: Laid<'a>,
    along: Along,
    features: usize,
}

/// The tensors of a backward pass as kernels address them.
pub(super) struct LaidBackward<'a> {
    /// Sizes of the leading dimensions, and which of them share gradients of keys, and of values: a bit each.
    pub(super) dims: [u32; 4],
    pub(super) shared_k: u32,
    pub(super) shared_v: u32,
    placed: Vec<Placed<'a>>,
}

impl<'a> LaidBackward<'a> {
    /// Checks tensors against a plan.
    pub(super) fn check(plan: &Plan, tensors: &BackwardTensors<'a>) -> Result<(), BindError> {
        check_inputs(plan, &tensors.forward, true)?;
        check_gradients(plan, tensors)
    }

    /// Lays out tensors that were checked, whose results are in f32.
    pub(super) fn new(plan: &Plan, tensors: &BackwardTensors<'a>) -> Result<Self, BindError> {
        let (problem, shape) = (&plan.problem, &plan.problem.shape);
        let BackwardTensors { forward: f, dout, dq, dk, dv, .. } = tensors;
        let mut all = Vec::new();
        let mut add = |slot, tensor: &TensorView<'a>, along, features| {
            all.push((slot, tensor.clone(), along, features));
        };
        add(Slot::Q, &f.q, Along::Queries, shape.head_dim);
        add(Slot::K, &f.k, Along::Keys, shape.head_dim);
        add(Slot::V, &f.v, Along::Keys, shape.value_dim);
        add(Slot::Out, &f.out, Along::Queries, shape.value_dim);
        add(Slot::Dout, dout, Along::Queries, shape.value_dim);
        add(Slot::Dq, dq, Along::Queries, shape.head_dim);
        add(Slot::Dk, dk, Along::Keys, shape.head_dim);
        add(Slot::Dv, dv, Along::Keys, shape.value_dim);
        if let Some(lse) = &f.lse {
            // As a tensor of one feature.
            let mut lse = lse.clone();
            lse.shape.push(1);
            lse.strides_elems.push(0);
            add(Slot::Lse, &lse, Along::Queries, 1);
        }
        all.iter_mut().for_each(|(_, tensor, ..)| normalise(tensor, true));
        let one_row = problem.kv_batch == 1;
        let shared_of = |slot: Slot| match slot {
            Slot::Dk => all.iter().find(|(slot, ..)| *slot == Slot::K),
            Slot::Dv => all.iter().find(|(slot, ..)| *slot == Slot::V),
            _ => None,
        };
        let strides: Vec<Vec<i64>> = all
            .iter()
            .map(|(slot, tensor, along, _)| {
                let strides = &tensor.strides_elems[..tensor.strides_elems.len() - 2];
                match (along, shared_of(*slot)) {
                    // One row for all: whatever its dimensions of size 1 say.
                    (Along::Keys, _) if one_row => vec![0; shape.leading.len()],
                    (_, Some((_, of, ..))) => strides
                        .iter()
                        .zip(&of.strides_elems)
                        .map(|(&s, &of)| if of == 0 { 0 } else { s })
                        .collect(),
                    _ => strides.to_vec(),
                }
            })
            .collect();
        let same = one_row || shape.kv_leading == shape.leading;
        let (dims, merged) = if same {
            let strides: Vec<&[i64]> = strides.iter().map(|s| &s[..]).collect();
            merge_leading(&shape.leading, &strides)?
        } else {
            let each = all.iter().zip(&strides).map(|((slot, _, along, _), s)| {
                let sizes = match along {
                    Along::Keys => &shape.kv_leading,
                    _ => &shape.leading,
                };
                merge_to_one(slot.tensor(), sizes, s)
            });
            ([1, 1, 1, problem.batch as u32], each.collect::<Result<Vec<_>, _>>()?)
        };
        let shared = |of: Slot| -> u32 {
            let strides = all.iter().zip(&merged).find(|((slot, ..), _)| *slot == of);
            let strides = strides.map_or([0; 4], |(_, s)| *s);
            (0..4).filter(|&i| dims[i] > 1 && strides[i] == 0).map(|i| 1 << i).sum()
        };
        let (shared_k, shared_v) = (shared(Slot::K), shared(Slot::V));
        let mut placed: Vec<Placed<'a>> = all
            .into_iter()
            .zip(merged)
            .map(|((slot, tensor, along, features), leading)| {
                let n = tensor.strides_elems.len();
                let last_two = [tensor.strides_elems[n - 2], tensor.strides_elems[n - 1]];
                let first = match along {
                    Along::Queries => shape.query.start as i64,
                    _ => 0,
                };
                Placed { slot, laid: Laid::new(&tensor, leading, last_two, first), along, features }
            })
            .collect();
        let optional = [
            (Slot::Mask, &f.mask, Along::Mask, 1),
            (Slot::Bias, &f.attn_bias, Along::Bias, shape.bias.map_or(1, |b| b.slots)),
        ];
        for (slot, tensor, along, features) in optional {
            if let Some(tensor) = tensor {
                let mut tensor = tensor.clone();
                normalise(&mut tensor, true);
                placed.push(Placed { slot, laid: Laid::plain(&tensor), along, features });
            }
        }
        Ok(Self { dims, shared_k, shared_v, placed })
    }

    /// Whether the bias has one number for all slots, whatever its shape says.
    pub(super) fn repeats_bias(&self) -> bool {
        self.placed.iter().any(|p| p.slot == Slot::Bias && p.laid.feature == 0)
    }

    /// What a part of a kernel binds: where, and which bytes.
    pub(super) fn ranges(
        &self,
        plan: &Plan,
        kernel: Kernel,
        chunk: &Chunk,
    ) -> Vec<(Place, &'a wgpu::Buffer, Range<u64>)> {
        let (problem, shape) = (&plan.problem, &plan.problem.shape);
        let alignment = u64::from(plan.gpu.device().limits().min_storage_buffer_offset_alignment);
        let mut ranges = Vec::new();
        for place in bindings::places(kernel) {
            // A tensor without features is never read or written.
            let found = self.placed.iter().find(|p| p.slot == place.slot && p.features > 0);
            let Some(Placed { laid, along, features, .. }) = found else { continue };
            if matches!(along, Along::Queries) && shape.query.is_empty() {
                continue;
            }
            let rows_only = |n: usize| [1, 1, 1, n.max(1) as u32];
            let bytes = match (along, shape.mask, shape.bias) {
                (Along::Mask, Some(m), _) => {
                    let rows = chunk.mask_rows(problem, m.rows);
                    laid.extent(rows_only(m.rows), rows, 0..m.len, 1, alignment)
                }
                (Along::Bias, _, Some(b)) => {
                    let rows = chunk.bias_rows(b.rows);
                    let queries = chunk.bias_queries(b.queries);
                    laid.extent(rows_only(b.rows), rows, queries, *features, alignment)
                }
                (Along::Keys, ..) => laid.extent(
                    self.dims,
                    chunk.rows.clone(),
                    chunk.keys.clone(),
                    *features,
                    alignment,
                ),
                _ => laid.extent(
                    self.dims,
                    chunk.rows.clone(),
                    chunk.queries.clone(),
                    *features,
                    alignment,
                ),
            };
            ranges.push((place, laid.buffer, bytes));
        }
        ranges
    }

    /// The same, bound: views go into the uniforms.
    pub(super) fn bind(
        &self,
        plan: &Plan,
        kernel: Kernel,
        chunk: &Chunk,
        params: &mut Params,
    ) -> Vec<(u32, wgpu::BufferBinding<'a>)> {
        params.leading = self.dims;
        let ranges = self.ranges(plan, kernel, chunk);
        let bind = |(place, buffer, bytes): (Place, &'a wgpu::Buffer, Range<u64>)| {
            let laid = self.placed.iter().find(|p| p.slot == place.slot);
            if let Some((laid, view)) = laid.zip(place.slot.view(params)) {
                *view = laid.laid.view(bytes.start);
            }
            (place.number, bindings::range(buffer, bytes))
        };
        ranges.into_iter().map(bind).collect()
    }
}
