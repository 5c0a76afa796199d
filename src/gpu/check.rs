//! What tensors of a call have to be.

use super::backward::BackwardTensors;
use super::error::BindError;
use super::plan::Plan;
use super::shader::Storage;
use super::tensor::{Dtype, ForwardTensors, TensorView};

/// The tensors that a problem may have.
pub(super) struct Given<'t, 'a> {
    pub(super) mask: Option<&'t TensorView<'a>>,
    pub(super) bias: Option<&'t TensorView<'a>>,
    pub(super) lse: Option<&'t TensorView<'a>>,
}

/// Checks tensors against a plan, each for itself and all against each other.
pub(super) fn check_tensors<'t, 'a>(
    plan: &Plan,
    tensors: &'t ForwardTensors<'a>,
) -> Result<Given<'t, 'a>, BindError> {
    let given = check_inputs(plan, tensors, plan.problem.shape.lse)?;
    check_distinct("out", &tensors.out)?;
    if let Some(lse) = given.lse {
        check_distinct("lse", lse)?;
    }
    check_aliasing(tensors, &given)?;
    Ok(given)
}

/// Checks the tensors of a forward pass each for itself; `lse`: whether there has to be one.
pub(super) fn check_inputs<'t, 'a>(
    plan: &Plan,
    tensors: &'t ForwardTensors<'a>,
    lse: bool,
) -> Result<Given<'t, 'a>, BindError> {
    let (problem, shape) = (&plan.problem, &plan.problem.shape);
    let storage = Dtype::from(plan.key().storage);
    let of = |leading: &[usize], last: &[usize]| [leading, last].concat();
    let (queries, keys) = (shape.query.len(), shape.key_len);
    for (name, tensor, expected) in [
        ("q", &tensors.q, of(&shape.leading, &[queries, shape.head_dim])),
        ("k", &tensors.k, of(&shape.kv_leading, &[keys, shape.head_dim])),
        ("v", &tensors.v, of(&shape.kv_leading, &[keys, shape.value_dim])),
        ("out", &tensors.out, problem.out_shape()),
    ] {
        check(name, tensor, &expected, &[storage])?;
        if plan.key().vec4 {
            check_vec4(name, tensor, &expected)?;
        }
    }
    let given = Given {
        mask: present("mask", &tensors.mask, shape.mask.is_some())?,
        bias: present("attn_bias", &tensors.attn_bias, shape.bias.is_some())?,
        lse: present("lse", &tensors.lse, lse)?,
    };
    if let (Some(mask), Some(m)) = (given.mask, shape.mask) {
        check("mask", mask, &[m.rows, m.len], &[Dtype::U8, Dtype::U32])?;
    }
    if let (Some(bias), Some(b)) = (given.bias, shape.bias) {
        check("attn_bias", bias, &[b.rows, b.queries, b.slots], &[storage])?;
    }
    if let Some(lse) = given.lse {
        check("lse", lse, &of(&shape.leading, &[queries]), &[Dtype::F32])?;
    }
    Ok(given)
}

/// Checks what a backward pass has beside the tensors of the forward pass.
pub(super) fn check_gradients(plan: &Plan, tensors: &BackwardTensors<'_>) -> Result<(), BindError> {
    let (problem, shape) = (&plan.problem, &plan.problem.shape);
    let key = plan.key();
    let storage = Dtype::from(key.storage);
    // Of k or v: 1 where all rows read the same.
    let leading = |t: &TensorView<'_>| -> Vec<usize> {
        let empty = t.shape.contains(&0);
        let sizes = shape.kv_leading.iter().zip(&t.strides_elems);
        sizes.map(|(&n, &stride)| if stride == 0 && !empty { 1 } else { n }).collect()
    };
    let of = |leading: &[usize], last: [usize; 2]| [leading, &last].concat();
    let (d, dv) = (shape.head_dim, shape.value_dim);
    let forward = &tensors.forward;
    for (name, tensor, expected) in [
        ("dout", &tensors.dout, problem.out_shape()),
        ("dq", &tensors.dq, of(&shape.leading, [shape.query.len(), d])),
        ("dk", &tensors.dk, of(&leading(&forward.k), [shape.key_len, d])),
        ("dv", &tensors.dv, of(&leading(&forward.v), [shape.key_len, dv])),
    ] {
        check(name, tensor, &expected, &[storage])?;
        if key.vec4 {
            check_vec4(name, tensor, &expected)?;
        }
    }
    if let (Some(bias), b) = (&tensors.dattn_bias, shape.bias) {
        let Some(b) = b else {
            return Err(BindError::Presence { tensor: "dattn_bias", given: true });
        };
        check("dattn_bias", bias, &[b.rows, b.queries, b.slots], &[storage])?;
    }
    let results: Vec<_> = tensors.results().collect();
    for (i, &(output, written)) in results.iter().enumerate() {
        check_distinct(output, written)?;
        let vec4 = key.vec4 && output != "dattn_bias";
        if key.storage == Storage::F16 && !vec4 && !plan.writes_f16() {
            check_even(output, written)?;
        }
        let read = tensors.inputs().chain(results[..i].iter().copied());
        for (input, other) in read {
            if overlap(written, other) && !interleaved(written, other) {
                return Err(BindError::Overlap { output, input });
            }
        }
    }
    Ok(())
}

/// A result whose elements lie apart: sorted, each stride reaches over what the smaller ones span.
fn check_distinct(tensor: &'static str, t: &TensorView<'_>) -> Result<(), BindError> {
    let axes = t.shape.iter().copied().zip(t.strides_elems.iter().copied());
    match too_near(axes.collect()) {
        None => Ok(()),
        Some(stride) => {
            let (what, allowed) = ("a stride of", "elements of a result must not overlap");
            Err(BindError::Layout { tensor, what, got: stride.into(), allowed })
        }
    }
}

/// A stride, of axes with their sizes, that does not reach over what the smaller ones span. Without elements none.
fn too_near(mut axes: Vec<(usize, i64)>) -> Option<i64> {
    if axes.iter().any(|(size, _)| *size == 0) {
        return None;
    }
    axes.retain(|(size, _)| *size != 1);
    axes.sort_by_key(|(_, stride)| stride.unsigned_abs());
    let mut span = 1_u128;
    for (size, stride) in axes {
        let step = u128::from(stride.unsigned_abs());
        if step < span {
            return Some(stride);
        }
        span += (size as u128 - 1) * step;
    }
    None
}

/// Whether tensors of one buffer are interleaved, as q, k and v of one projection are: the same strides, and no element in
/// common. The step from one to the other is one more axis.
fn interleaved(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    let first = |t: &TensorView<'_>| (t.offset_bytes / t.dtype.bytes()) as i64;
    let sizes = a.shape.iter().zip(&b.shape).map(|(&a, &b)| a.max(b));
    let mut axes: Vec<_> = sizes.zip(a.strides_elems.iter().copied()).collect();
    axes.push((2, first(a).wrapping_sub(first(b))));
    a.dtype == b.dtype && a.strides_elems == b.strides_elems && too_near(axes).is_none()
}

/// Results that share no byte with anything, and an `lse` that shares no buffer with an input but
/// for that of `out`.
fn check_aliasing(tensors: &ForwardTensors<'_>, given: &Given<'_, '_>) -> Result<(), BindError> {
    let out = &tensors.out;
    let inputs = [
        ("q", Some(&tensors.q)),
        ("k", Some(&tensors.k)),
        ("v", Some(&tensors.v)),
        ("mask", given.mask),
        ("attn_bias", given.bias),
    ];
    let others = inputs.into_iter().filter_map(|(name, t)| Some((name, t?)));
    for (input, read) in others.clone().chain(given.lse.map(|t| ("lse", t))) {
        if overlap(out, read) {
            return Err(BindError::Overlap { output: "out", input });
        }
    }
    let Some(lse) = given.lse else { return Ok(()) };
    for (input, read) in others {
        if overlap(lse, read) {
            return Err(BindError::Overlap { output: "lse", input });
        }
        if lse.buffer == read.buffer && lse.buffer != out.buffer {
            return Err(BindError::Aliasing { output: "lse", input });
        }
    }
    Ok(())
}

/// Whether two tensors lie in each other's way: from the first byte of each to its last.
fn overlap(a: &TensorView<'_>, b: &TensorView<'_>) -> bool {
    let bytes = |t: &TensorView<'_>| {
        let (low, high) = elements(t);
        let size = i128::from(t.dtype.bytes());
        (low.saturating_mul(size), high.saturating_add(1).saturating_mul(size))
    };
    let some = |t: &TensorView<'_>| !t.shape.contains(&0);
    let ((a_low, a_high), (b_low, b_high)) = (bytes(a), bytes(b));
    a.buffer == b.buffer && some(a) && some(b) && a_low < b_high && b_low < a_high
}

/// The first and the last element of a tensor, counted from the start of its buffer.
fn elements(t: &TensorView<'_>) -> (i128, i128) {
    let first = (t.offset_bytes / t.dtype.bytes()) as i128;
    let (mut low, mut high) = (first, first);
    for (&size, &stride) in t.shape.iter().zip(&t.strides_elems) {
        // Of dimensions beyond any memory, which tensors without elements may have.
        let reach = (size as i128 - 1).saturating_mul(i128::from(stride));
        low = low.saturating_add(reach.min(0));
        high = high.saturating_add(reach.max(0));
    }
    (low, high)
}

fn present<'t, 'a>(
    tensor: &'static str,
    given: &'t Option<TensorView<'a>>,
    wanted: bool,
) -> Result<Option<&'t TensorView<'a>>, BindError> {
    match (given, wanted) {
        (Some(_), false) => Err(BindError::Presence { tensor, given: true }),
        (None, true) => Err(BindError::Presence { tensor, given: false }),
        (given, _) => Ok(given.as_ref()),
    }
}

/// Shape, type, place and usage of one tensor.
fn check(
    tensor: &'static str,
    t: &TensorView<'_>,
    expected: &[usize],
    types: &[Dtype],
) -> Result<(), BindError> {
    if t.shape != expected {
        let (got, expected) = (t.shape.clone(), expected.to_vec());
        return Err(BindError::Shape { tensor, got, expected });
    }
    if t.strides_elems.len() != expected.len() {
        let (got, dims) = (t.strides_elems.clone(), expected.len());
        return Err(BindError::Strides { tensor, got, dims });
    }
    if !types.contains(&t.dtype) {
        let needed = match types {
            [one] => one.name(),
            _ => "u8 or u32",
        };
        return Err(BindError::Dtype { tensor, got: t.dtype.name(), needed });
    }
    if !t.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(BindError::Usage { tensor, got: format!("{:?}", t.buffer.usage()) });
    }
    let bytes = t.dtype.bytes();
    if !t.offset_bytes.is_multiple_of(bytes) {
        let (what, got) = ("offset_bytes", t.offset_bytes.into());
        let allowed = "it must be a multiple of the element's size";
        return Err(BindError::Layout { tensor, what, got, allowed });
    }
    if expected.contains(&0) {
        return Ok(());
    }
    let (low, high) = elements(t);
    if low < 0 {
        let allowed = "no element may lie before the buffer";
        let what = "a first element at";
        return Err(BindError::Layout { tensor, what, got: low, allowed });
    }
    // Shaders read whole words.
    let needed = high.saturating_add(1).saturating_mul(i128::from(bytes));
    let needed = u64::try_from(needed).unwrap_or(u64::MAX);
    let needed = needed.saturating_add(3) / 4 * 4;
    if needed > t.buffer.size() / 4 * 4 {
        return Err(BindError::BufferSize { tensor, got: t.buffer.size(), needed });
    }
    Ok(())
}

/// Four features at a time: side by side, and everything else in fours.
fn check_vec4(tensor: &'static str, t: &TensorView<'_>, shape: &[usize]) -> Result<(), BindError> {
    if let Some(&features) = shape.last().filter(|n| *n % 4 != 0) {
        let (what, got) = ("a last dimension of", features as i128);
        let allowed = "the plan was made for multiples of 4 elements";
        return Err(BindError::Layout { tensor, what, got, allowed });
    }
    check_rows(
        tensor,
        t,
        4,
        "the plan was made for features side by side",
        "the plan was made for multiples of 4 elements",
    )
}

/// Rows of f16 that begin at whole words, so that none shares a word with another.
pub(super) fn check_even(tensor: &'static str, t: &TensorView<'_>) -> Result<(), BindError> {
    check_rows(
        tensor,
        t,
        2,
        "results in f16 lie side by side",
        "rows of results in f16 begin at even elements",
    )
}

/// Features side by side, in rows that begin at multiples of some elements.
fn check_rows(
    tensor: &'static str,
    t: &TensorView<'_>,
    multiple: i64,
    side_by_side: &'static str,
    multiples: &'static str,
) -> Result<(), BindError> {
    let fail =
        |what, got: i64, allowed| Err(BindError::Layout { tensor, what, got: got.into(), allowed });
    let Some((&feature, others)) = t.strides_elems.split_last() else { return Ok(()) };
    if feature != 1 {
        return fail("a last stride of", feature, side_by_side);
    }
    if let Some(&stride) = others.iter().find(|s| *s % multiple != 0) {
        return fail("a stride of", stride, multiples);
    }
    let first = (t.offset_bytes / t.dtype.bytes()) as i64;
    if first % multiple != 0 {
        return fail("a first element at", first, multiples);
    }
    Ok(())
}
