//! A plan bound to tensors: ready to be recorded, any number of times.

use super::bindings::{self, Slot};
use super::device::checked;
use super::error::{BindError, PlanError};
use super::params::{self, Params, View};
use super::plan::{Chunk, Plan};
use super::tensor::{Dtype, ForwardTensors, Laid, TensorView, merge_leading};
use super::workspace::Workspace;
use crate::{Call, Dropout};

/// A plan bound to a caller's tensors.
#[derive(Debug)]
pub struct Bound {
    plan: Plan,
    workspace: u64,
    parts: Vec<Part>,
}

/// One dispatch.
#[derive(Debug)]
struct Part {
    group: wgpu::BindGroup,
    params: Params,
    workgroups: [u32; 3],
}

impl Plan {
    /// Binds tensors: shapes, types, usages, sizes and limits are checked here, once.
    ///
    /// # Errors
    /// Tensors that do not fit the plan, and parts that do not fit the device; see [`BindError`].
    pub async fn bind_forward(
        &self,
        tensors: &ForwardTensors<'_>,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        let laid = self.lay(tensors)?;
        let limit = self.gpu.max_binding_bytes();
        let fits = |chunk: &Chunk| {
            for (slot, range, _) in self.ranges(&laid, chunk)? {
                let needed = range.end - range.start;
                if needed > limit {
                    let tensor = slot.tensor();
                    return Err(PlanError::LayoutExceedsBinding { tensor, needed, max: limit });
                }
            }
            Ok(())
        };
        let mut parts = Vec::new();
        for chunk in self.chunks(&fits)? {
            parts.push(self.part(&laid, &chunk, workspace).await?);
        }
        Ok(Bound { plan: self.clone(), workspace: workspace.id(), parts })
    }

    /// [`Plan::bind_forward`], waiting for it.
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn bind_forward_blocking(
        &self,
        tensors: &ForwardTensors<'_>,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        pollster::block_on(self.bind_forward(tensors, workspace))
    }

    /// Binds tensors that hold a part alone: `[rows, positions, features]` from its first row, query
    /// and key on; mask and bias the rows that it reads.
    pub(super) async fn bind_piece(
        &self,
        tensors: &ForwardTensors<'_>,
        chunk: &Chunk,
        workspace: &Workspace,
    ) -> Result<Bound, BindError> {
        let rows = chunk.rows.start as i64;
        // Addresses are computed modulo 2^32: element [0, 0, 0] of the whole may lie before all.
        fn from(mut laid: Laid<'_>, rows: i64, first: usize) -> Laid<'_> {
            laid.first = -rows * laid.leading[3] - first as i64 * laid.position;
            laid
        }
        let one = self.problem.kv_batch == 1;
        let (kv_rows, keys) = (if one { 0 } else { rows }, chunk.keys.start);
        let queries = chunk.queries.start;
        let mut laid = LaidTensors {
            dims: [1, 1, 1, self.problem.batch as u32],
            q: from(plain(&tensors.q), rows, queries),
            k: from(plain(&tensors.k), kv_rows, keys),
            v: from(plain(&tensors.v), kv_rows, keys),
            out: from(plain(&tensors.out), rows, queries),
            mask_words: false,
            mask: tensors.mask.as_ref().map(plain),
            bias: tensors.attn_bias.as_ref().map(plain),
            lse: tensors.lse.as_ref().map(|t| from(plain(t), rows, queries)),
        };
        // They begin with the first row that the part reads.
        let shape = &self.problem.shape;
        if let (Some(mask), Some(m)) = (&mut laid.mask, shape.mask) {
            mask.first -= chunk.mask_rows(&self.problem, m.rows).start as i64 * mask.leading[3];
        }
        if let (Some(bias), Some(b)) = (&mut laid.bias, shape.bias) {
            bias.first -= chunk.bias_rows(b.rows).start as i64 * bias.leading[3];
        }
        if one {
            (laid.k.leading, laid.v.leading) = ([0; 4], [0; 4]);
        }
        let parts = vec![self.part(&laid, chunk, workspace).await?];
        Ok(Bound { plan: self.clone(), workspace: workspace.id(), parts })
    }

    async fn part(
        &self,
        laid: &LaidTensors<'_>,
        chunk: &Chunk,
        workspace: &Workspace,
    ) -> Result<Part, BindError> {
        let mut params = self.params(chunk);
        params.leading = laid.dims;
        if laid.mask_words {
            params.flags |= params::MASK_WORDS;
        }
        let whole = |buffer| wgpu::BufferBinding { buffer, offset: 0, size: None };
        let [read, written] = &self.nothing;
        let mut all = [
            workspace.binding(),
            whole(read),
            whole(read),
            whole(read),
            whole(written),
            whole(read),
            whole(read),
            whole(&self.tables),
            whole(written),
        ];
        // The tensor that is not there must not be the one that is written elsewhere.
        let lonely = &self.nothing[1];
        for (slot, range, view) in self.ranges(laid, chunk)? {
            let tensor = laid.get(slot);
            all[slot as usize] = wgpu::BufferBinding {
                buffer: tensor.map_or(lonely, |t| t.buffer),
                offset: range.start,
                size: std::num::NonZeroU64::new(range.end - range.start),
            };
            if let Some(field) = slot.view(&mut params) {
                *field = view;
            }
        }
        if laid.bias.as_ref().is_some_and(|b| b.feature == 0) {
            params.flags &= !params::BIAS_VARIES;
        }
        let device = self.gpu.device();
        let group = checked(self.gpu.both(), "a bind group", || {
            bindings::group(device, self.gpu.group_layout(), all)
        })
        .await?;
        Ok(Part { group, params, workgroups: self.workgroups(chunk) })
    }

    /// What a part reads and writes, and where elements lie in it.
    fn ranges(
        &self,
        laid: &LaidTensors<'_>,
        chunk: &Chunk,
    ) -> Result<Vec<(Slot, std::ops::Range<u64>, View)>, PlanError> {
        let shape = &self.problem.shape;
        let alignment = u64::from(self.gpu.device().limits().min_storage_buffer_offset_alignment);
        let Chunk { rows, queries, keys } = chunk;
        let (d, dv) = (shape.head_dim, shape.value_dim);
        let mut all = Vec::new();
        for (slot, positions, features) in [
            (Slot::Q, queries.clone(), d),
            (Slot::K, keys.clone(), d),
            (Slot::V, keys.clone(), dv),
            (Slot::Out, queries.clone(), dv),
        ] {
            // A tensor without features is never read or written.
            if let Some(tensor) = laid.get(slot).filter(|_| features > 0) {
                let (range, view) =
                    tensor.bind(laid.dims, rows.clone(), positions, features, alignment)?;
                all.push((slot, range, view));
            }
        }
        let rows_only = |n: usize| [1, 1, 1, n.max(1) as u32];
        if let (Some(mask), Some(m)) = (&laid.mask, shape.mask) {
            let rows = chunk.mask_rows(&self.problem, m.rows);
            let (range, view) = mask.bind(rows_only(m.rows), rows, 0..m.len, 1, alignment)?;
            all.push((Slot::Mask, range, view));
        }
        if let (Some(bias), Some(b)) = (&laid.bias, shape.bias) {
            let rows = chunk.bias_rows(b.rows);
            let (range, view) =
                bias.bind(rows_only(b.rows), rows, 0..b.queries, b.slots, alignment)?;
            all.push((Slot::Bias, range, view));
        }
        if let Some(lse) = &laid.lse {
            let all_rows = rows_only(self.problem.batch);
            let (range, view) = lse.bind(all_rows, rows.clone(), queries.clone(), 1, alignment)?;
            all.push((Slot::Lse, range, view));
        }
        Ok(all)
    }

    /// Checks tensors against the plan and brings them into the kernels' form.
    fn lay<'a>(&self, tensors: &ForwardTensors<'a>) -> Result<LaidTensors<'a>, BindError> {
        let tensors = &normalised(tensors);
        let (problem, shape) = (&self.problem, &self.problem.shape);
        let first_query = shape.query.start as i64;
        let storage = Dtype::from(self.key().storage);
        let of = |leading: &[usize], n: usize, d: usize| [leading, &[n, d]].concat();
        let (queries, keys) = (shape.query.len(), shape.key_len);
        let q = of(&shape.leading, queries, shape.head_dim);
        let k = of(&shape.kv_leading, keys, shape.head_dim);
        let v = of(&shape.kv_leading, keys, shape.value_dim);
        for (name, tensor, expected) in [
            ("q", &tensors.q, &q),
            ("k", &tensors.k, &k),
            ("v", &tensors.v, &v),
            ("out", &tensors.out, &problem.out_shape()),
        ] {
            check(name, tensor, expected, &[storage])?;
            if self.key().vec4 {
                check_vec4(name, tensor, expected)?;
            }
        }
        if storage == Dtype::F16 && !self.key().vec4 {
            check_even("out", &tensors.out)?;
        }
        let shared_kv = problem.kv_batch == 1;
        let leading = |t: &TensorView<'a>, shared: bool| -> Vec<i64> {
            let all = &t.strides_elems[..t.strides_elems.len() - 2];
            // One row for all: whatever its dimensions of size 1 say.
            if shared { vec![0; shape.leading.len()] } else { all.to_vec() }
        };
        let strides = [
            leading(&tensors.q, false),
            leading(&tensors.k, shared_kv),
            leading(&tensors.v, shared_kv),
            leading(&tensors.out, false),
        ];
        // A packed batch of k and v with other leading dimensions than q's packs row by row.
        let same = shared_kv || shape.kv_leading == shape.leading;
        let (dims, merged) = if same {
            let strides: Vec<&[i64]> = strides.iter().map(|s| &s[..]).collect();
            merge_leading(&shape.leading, &strides)?
        } else {
            let own = |sizes: &[usize], s: &[i64]| merge_leading(sizes, &[s]);
            let each = [
                own(&shape.leading, &strides[0])?,
                own(&shape.kv_leading, &strides[1])?,
                own(&shape.kv_leading, &strides[2])?,
                own(&shape.leading, &strides[3])?,
            ];
            let one = [1, 1, 1, problem.batch as u32];
            if let Some((dims, _)) = each.iter().find(|(dims, _)| *dims != one) {
                return Err(BindError::Rank { got: dims.iter().filter(|d| **d != 1).count() });
            }
            (one, each.iter().map(|(_, s)| s[0]).collect())
        };
        let laid = |t: &TensorView<'a>, leading, first_position: i64| {
            let n = t.strides_elems.len();
            let (position, feature) = (t.strides_elems[n - 2], t.strides_elems[n - 1]);
            Laid {
                buffer: t.buffer,
                first: (t.offset_bytes / t.dtype.bytes()) as i64 - first_position * position,
                leading,
                position,
                feature,
                element_bytes: t.dtype.bytes(),
            }
        };
        let mask = present("mask", &tensors.mask, shape.mask.is_some())?;
        let bias = present("attn_bias", &tensors.attn_bias, shape.bias.is_some())?;
        let lse = present("lse", &tensors.lse, shape.lse)?;
        if let (Some(mask), Some(m)) = (mask, shape.mask) {
            check("mask", mask, &[m.rows, m.len], &[Dtype::U8, Dtype::U32])?;
        }
        if let (Some(bias), Some(b)) = (bias, shape.bias) {
            check("attn_bias", bias, &[b.rows, b.queries, b.slots], &[storage])?;
        }
        if let Some(lse) = lse {
            let expected = of(&shape.leading, queries, 1);
            check("lse", lse, &expected[..expected.len() - 1], &[Dtype::F32])?;
        }
        // Rows of mask, bias and lse are plain: [row, position(, feature)].
        let mask_laid = mask.map(|t| plain(t));
        let bias_laid = bias.map(|t| plain(t));
        let lse_laid = match lse {
            None => None,
            Some(t) => {
                let n = t.strides_elems.len();
                let position = t.strides_elems[n - 1];
                let (dims, merged) = merge_leading(&shape.leading, &[&t.strides_elems[..n - 1]])?;
                if dims[..3] != [1; 3] {
                    return Err(BindError::Rank { got: 2 });
                }
                let first = (t.offset_bytes / 4) as i64 - first_query * position;
                let (leading, feature) = (merged[0], 0);
                let (buffer, element_bytes) = (t.buffer, 4);
                Some(Laid { buffer, first, leading, position, feature, element_bytes })
            }
        };
        for (output, written) in [("out", Some(&tensors.out)), ("lse", lse)] {
            for (input, read) in [
                ("q", Some(&tensors.q)),
                ("k", Some(&tensors.k)),
                ("v", Some(&tensors.v)),
                ("mask", mask),
                ("attn_bias", bias),
                ("lse", lse.filter(|_| output == "out")),
            ] {
                if let (Some(written), Some(read)) = (written, read)
                    && written.buffer == read.buffer
                {
                    return Err(BindError::Aliasing { output, input });
                }
            }
        }
        Ok(LaidTensors {
            dims,
            q: laid(&tensors.q, merged[0], first_query),
            k: laid(&tensors.k, merged[1], 0),
            v: laid(&tensors.v, merged[2], 0),
            out: laid(&tensors.out, merged[3], first_query),
            mask_words: mask.is_some_and(|m| m.dtype == Dtype::U32),
            mask: mask_laid,
            bias: bias_laid,
            lse: lse_laid,
        })
    }
}

impl Bound {
    /// Dispatches of a call.
    pub fn chunks(&self) -> usize {
        self.parts.len()
    }

    /// Records a call into the caller's pass: nothing is allocated, nothing submitted.
    ///
    /// # Errors
    /// A workspace without room, or not the one bound with.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        call: &Call,
    ) -> Result<(), BindError> {
        workspace.check_room(self.parts.len())?;
        (0..self.parts.len()).try_for_each(|i| self.encode_chunk(i, pass, workspace, call))
    }

    /// Records one dispatch of a call; one past the last does nothing.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_chunk(
        &self,
        chunk: usize,
        pass: &mut wgpu::ComputePass<'_>,
        workspace: &mut Workspace,
        call: &Call,
    ) -> Result<(), BindError> {
        let Some(part) = self.parts.get(chunk) else { return Ok(()) };
        if workspace.id() != self.workspace {
            return Err(BindError::Workspace);
        }
        workspace.check_room(1)?;
        let mut params = part.params;
        set_dropout(&mut params, self.plan.problem.dropout, call);
        let gpu = &self.plan.gpu;
        let offset = workspace.write(gpu.queue(), &params);
        pass.set_pipeline(self.plan.pipeline(call));
        pass.set_bind_group(0, &part.group, &[offset]);
        let [x, y, z] = part.workgroups;
        pass.dispatch_workgroups(x, y, z);
        gpu.count_dispatch();
        Ok(())
    }
}

fn set_dropout(params: &mut Params, p: f64, call: &Call) {
    if let Some(Dropout { seed, offset }) = call.dropout {
        let (threshold, factor) = crate::dropout::threshold_and_factor(p);
        params.dropout_threshold = threshold;
        params.dropout_factor = factor as f32;
        params.dropout_key = [seed as u32, (seed >> 32) as u32];
        params.dropout_offset = offset;
    }
}

/// The tensors of a call as kernels address them.
struct LaidTensors<'a> {
    dims: [u32; 4],
    q: Laid<'a>,
    k: Laid<'a>,
    v: Laid<'a>,
    out: Laid<'a>,
    mask_words: bool,
    mask: Option<Laid<'a>>,
    bias: Option<Laid<'a>>,
    lse: Option<Laid<'a>>,
}

impl<'a> LaidTensors<'a> {
    fn get(&self, slot: Slot) -> Option<&Laid<'a>> {
        match slot {
            Slot::Q => Some(&self.q),
            Slot::K => Some(&self.k),
            Slot::V => Some(&self.v),
            Slot::Out => Some(&self.out),
            Slot::Bias => self.bias.as_ref(),
            Slot::Mask => self.mask.as_ref(),
            Slot::Lse => self.lse.as_ref(),
            Slot::Params | Slot::Tables => None,
        }
    }
}

impl Slot {
    fn tensor(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Out => "out",
            Self::Bias => "attn_bias",
            Self::Mask => "mask",
            Self::Lse => "lse",
            Self::Params => "uniforms",
            Self::Tables => "rotary tables",
        }
    }

    fn view(self, params: &mut Params) -> Option<&mut View> {
        Some(match self {
            Self::Q => &mut params.q,
            Self::K => &mut params.k,
            Self::V => &mut params.v,
            Self::Out => &mut params.out,
            Self::Bias => &mut params.bias,
            Self::Mask => &mut params.mask,
            Self::Lse => &mut params.lse,
            Self::Params | Self::Tables => return None,
        })
    }
}

/// The same tensors without strides that lead nowhere: of dimensions of one element, features aside.
fn normalised<'a>(tensors: &ForwardTensors<'a>) -> ForwardTensors<'a> {
    let mut all = tensors.clone();
    let optional = [&mut all.mask, &mut all.attn_bias, &mut all.lse].into_iter().flatten();
    for t in [&mut all.q, &mut all.k, &mut all.v, &mut all.out].into_iter().chain(optional) {
        let empty = t.shape.contains(&0);
        let last = t.shape.len().saturating_sub(1);
        for (stride, &size) in t.strides_elems.iter_mut().zip(&t.shape).take(last) {
            if size <= 1 || empty {
                *stride = 0;
            }
        }
    }
    all
}

/// A tensor of one leading dimension: `[row, position(, feature)]`.
fn plain<'a>(t: &TensorView<'a>) -> Laid<'a> {
    let stride = |i: usize| t.strides_elems.get(i).copied().unwrap_or(0);
    Laid {
        buffer: t.buffer,
        first: (t.offset_bytes / t.dtype.bytes()) as i64,
        leading: [0, 0, 0, stride(0)],
        position: stride(1),
        feature: stride(2),
        element_bytes: t.dtype.bytes(),
    }
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
    if t.shape != expected || t.strides_elems.len() != expected.len() {
        let (got, expected) = (t.shape.clone(), expected.to_vec());
        return Err(BindError::Shape { tensor, got, expected });
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
        let (what, got) = ("offset_bytes", t.offset_bytes as i64);
        let allowed = "it must be a multiple of the element's size";
        return Err(BindError::Layout { tensor, what, got, allowed });
    }
    if expected.contains(&0) {
        return Ok(());
    }
    let first = (t.offset_bytes / bytes) as i128;
    let (mut low, mut high) = (first, first);
    for (&size, &stride) in expected.iter().zip(&t.strides_elems) {
        let reach = (size as i128 - 1) * i128::from(stride);
        low += reach.min(0);
        high += reach.max(0);
    }
    if low < 0 {
        let allowed = "no element may lie before the buffer";
        let got = i64::try_from(low).unwrap_or(i64::MIN);
        return Err(BindError::Layout { tensor, what: "a first element at", got, allowed });
    }
    // Shaders read whole words.
    let needed = u64::try_from((high + 1) * i128::from(bytes)).unwrap_or(u64::MAX);
    let needed = needed.saturating_add(3) / 4 * 4;
    if needed > t.buffer.size() / 4 * 4 {
        return Err(BindError::BufferSize { tensor, got: t.buffer.size(), needed });
    }
    Ok(())
}

/// Four features at a time: side by side, and everything else in fours.
fn check_vec4(tensor: &'static str, t: &TensorView<'_>, shape: &[usize]) -> Result<(), BindError> {
    let fail = |what, got, allowed| Err(BindError::Layout { tensor, what, got, allowed });
    let (feature, others) = match t.strides_elems.split_last() {
        Some((feature, others)) => (*feature, others),
        None => return Ok(()),
    };
    if let Some(&features) = shape.last().filter(|n| *n % 4 != 0) {
        let got = features as i64;
        return fail("a last dimension of", got, "the plan was made for multiples of 4 elements");
    }
    if feature != 1 {
        return fail("a last stride of", feature, "the plan was made for features side by side");
    }
    if let Some(&stride) = others.iter().find(|s| *s % 4 != 0) {
        return fail("a stride of", stride, "the plan was made for multiples of 4 elements");
    }
    let first = (t.offset_bytes / t.dtype.bytes()) as i64;
    if first % 4 != 0 {
        return fail("a first element at", first, "the plan was made for multiples of 4 elements");
    }
    Ok(())
}

/// Rows of f16 that begin at whole words, so that none shares a word with another.
fn check_even(tensor: &'static str, t: &TensorView<'_>) -> Result<(), BindError> {
    let fail = |what, got, allowed| Err(BindError::Layout { tensor, what, got, allowed });
    let (feature, others) = match t.strides_elems.split_last() {
        Some((feature, others)) => (*feature, others),
        None => return Ok(()),
    };
    if feature != 1 {
        return fail("a last stride of", feature, "results in f16 lie side by side");
    }
    if let Some(&stride) = others.iter().find(|s| *s % 2 != 0) {
        return fail(
            "a stride of",
            stride,
            "rows of results in f16 are an even number of elements apart",
        );
    }
    let first = (t.offset_bytes / 2) as i64;
    if first % 2 != 0 {
        return fail("a first element at", first, "results in f16 begin at a whole word");
    }
    Ok(())
}
