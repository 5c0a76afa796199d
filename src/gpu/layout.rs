//! Tensors as kernels address them: checked against a plan, at most four leading dimensions, and the
//! bytes of their buffers that a part takes.

use std::ops::Range;

use super::bindings::Slot;
use super::check::{Given, check_even, check_tensors};
use super::chunk::Chunk;
use super::error::{BindError, PlanError};
use super::params::View;
use super::plan::Plan;
use super::shader::{Arena, Storage};
use super::tensor::{Dtype, ForwardTensors, TensorView};

/// A tensor: where element `[packed row, position, feature]` lies in its buffer.
#[derive(Debug, Clone)]
pub(super) struct Laid<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    /// In elements from the start of the buffer: of packed row 0, position 0 of the *sequence*.
    first: i64,
    leading: [i64; 4],
    position: i64,
    pub(super) feature: i64,
    element_bytes: u64,
}

/// The tensors of a call.
pub(super) struct LaidTensors<'a> {
    /// Sizes of the leading dimensions of q, k, v, out and lse.
    pub(super) dims: [u32; 4],
    q: Laid<'a>,
    k: Laid<'a>,
    v: Laid<'a>,
    pub(super) out: Laid<'a>,
    /// Elements of a query in `out`.
    out_elements: usize,
    pub(super) mask_words: bool,
    mask: Option<Laid<'a>>,
    bias: Option<Laid<'a>>,
    lse: Option<Laid<'a>>,
}

impl<'a> LaidTensors<'a> {
    /// Checks tensors against a plan and lays them out.
    pub(super) fn new(plan: &Plan, tensors: &ForwardTensors<'a>) -> Result<Self, BindError> {
        let tensors = &normalised(tensors);
        let Given { mask, bias, lse } = check_tensors(plan, tensors)?;
        let shape = &plan.problem.shape;
        let first_query = shape.query.start as i64;
        let one_row = plan.problem.kv_batch == 1;
        let leading = |t: &TensorView<'a>, shared: bool| -> Vec<i64> {
            let all = &t.strides_elems[..t.strides_elems.len() - 2];
            // One row for all: whatever its dimensions of size 1 say.
            if shared { vec![0; shape.leading.len()] } else { all.to_vec() }
        };
        let strides = [
            leading(&tensors.q, false),
            leading(&tensors.k, one_row),
            leading(&tensors.v, one_row),
            leading(&tensors.out, false),
            lse.map_or_else(
                || vec![0; shape.leading.len()],
                |t| t.strides_elems[..shape.leading.len()].to_vec(),
            ),
        ];
        // A packed batch of k and v with other leading dimensions than q's packs row by row.
        let same = one_row || shape.kv_leading == shape.leading;
        let (dims, merged) = if same {
            let strides: Vec<&[i64]> = strides.iter().map(|s| &s[..]).collect();
            merge_leading(&shape.leading, &strides)?
        } else {
            let [q, kv] = [&shape.leading, &shape.kv_leading];
            let sizes = [("q", q), ("k", kv), ("v", kv), ("out", q), ("lse", q)];
            let each = sizes.iter().zip(&strides);
            let each = each.map(|((tensor, sizes), s)| merge_to_one(tensor, sizes, s));
            let merged = each.collect::<Result<Vec<_>, _>>()?;
            ([1, 1, 1, plan.problem.batch as u32], merged)
        };
        let lse = lse.map(|t| {
            let position = t.strides_elems.last().copied().unwrap_or(1);
            Laid::new(t, merged[4], [position, 0], first_query)
        });
        let last_two = |t: &TensorView<'_>| {
            let n = t.strides_elems.len();
            [t.strides_elems[n - 2], t.strides_elems[n - 1]]
        };
        let lay =
            |t: &TensorView<'a>, i: usize, first: i64| Laid::new(t, merged[i], last_two(t), first);
        let laid = Self {
            dims,
            q: lay(&tensors.q, 0, first_query),
            k: lay(&tensors.k, 1, 0),
            v: lay(&tensors.v, 2, 0),
            out: lay(&tensors.out, 3, first_query),
            out_elements: shape.value_dim,
            mask_words: mask.is_some_and(|m| m.dtype == Dtype::U32),
            mask: mask.map(Laid::plain),
            bias: bias.map(Laid::plain),
            lse,
        };
        let key = plan.key();
        let words = !key.f16_out || laid.arena() != Arena::NONE;
        if key.storage == Storage::F16 && !key.vec4 && words {
            check_even("out", &tensors.out)?;
        }
        Ok(laid)
    }

    /// Tensors that hold a part alone: `[rows, positions, features]` from its first row, query and
    /// key on; mask and bias the rows, the bias the queries, that it reads.
    pub(super) fn of_piece(plan: &Plan, tensors: &ForwardTensors<'a>, chunk: &Chunk) -> Self {
        let problem = &plan.problem;
        let one_row = problem.kv_batch == 1;
        let (rows, keys, queries) = (chunk.rows.start, chunk.keys.start, chunk.queries.start);
        let kv_rows = if one_row { 0 } else { rows };
        // They begin with the first row that the part reads.
        let mask_start = problem.shape.mask.map_or((0, 0), |m| {
            (chunk.mask_rows(problem, m.rows).start, chunk.mask_positions(plan, m.len).start)
        });
        let bias_start = problem.shape.bias.map_or((0, 0), |b| {
            (chunk.bias_rows(b.rows).start, chunk.bias_queries(b.queries).start)
        });
        let mut laid = Self {
            dims: [1, 1, 1, problem.batch as u32],
            q: Laid::plain(&tensors.q).without(rows, queries),
            k: Laid::plain(&tensors.k).without(kv_rows, keys),
            v: Laid::plain(&tensors.v).without(kv_rows, keys),
            out: Laid::plain(&tensors.out).without(rows, queries),
            out_elements: tensors.out.shape.last().copied().unwrap_or(0),
            mask_words: false,
            mask: tensors.mask.as_ref().map(|t| Laid::plain(t).without(mask_start.0, mask_start.1)),
            bias: tensors
                .attn_bias
                .as_ref()
                .map(|t| Laid::plain(t).without(bias_start.0, bias_start.1)),
            lse: tensors.lse.as_ref().map(|t| Laid::plain(t).without(rows, queries)),
        };
        if one_row {
            (laid.k.leading, laid.v.leading) = ([0; 4], [0; 4]);
        }
        laid
    }

    /// Whether the bias has one number for all slots, whatever its shape says.
    pub(super) fn repeats_bias(&self) -> bool {
        self.bias.as_ref().is_some_and(|b| b.feature == 0)
    }

    fn get(&self, slot: Slot) -> Option<&Laid<'a>> {
        match slot {
            Slot::Q => Some(&self.q),
            Slot::K => Some(&self.k),
            Slot::V => Some(&self.v),
            Slot::Out => Some(&self.out),
            Slot::Bias => self.bias.as_ref(),
            Slot::Mask => self.mask.as_ref(),
            Slot::Lse => self.lse.as_ref(),
            _ => None,
        }
    }

    /// What shares a buffer with the output: a dispatch reads and writes it through one binding.
    pub(super) fn arena(&self) -> Arena {
        let shares = |slot| self.get(slot).is_some_and(|t| t.buffer == self.out.buffer);
        Arena::of(shares)
    }

    /// What a part binds: each buffer range once, with the tensors that lie in it.
    pub(super) fn bindings(&self, plan: &Plan, chunk: &Chunk) -> Vec<Binding<'a>> {
        let (problem, shape) = (&plan.problem, &plan.problem.shape);
        let Chunk { rows, queries, keys } = chunk;
        let (d, dv) = (shape.head_dim, shape.value_dim);
        let rows_only = |n: usize| [1, 1, 1, n.max(1) as u32];
        let dims = self.dims;
        let mut all = vec![
            (Slot::Q, dims, rows.clone(), queries.clone(), d),
            (Slot::K, dims, rows.clone(), keys.clone(), d),
            (Slot::V, dims, rows.clone(), keys.clone(), dv),
            (Slot::Out, dims, rows.clone(), queries.clone(), self.out_elements),
            (Slot::Lse, dims, rows.clone(), queries.clone(), 1),
        ];
        all.extend(shape.mask.map(|m| {
            let positions = chunk.mask_positions(plan, m.len);
            (Slot::Mask, rows_only(m.rows), chunk.mask_rows(problem, m.rows), positions, 1)
        }));
        all.extend(shape.bias.map(|b| {
            let queries = chunk.bias_queries(b.queries);
            (Slot::Bias, rows_only(b.rows), chunk.bias_rows(b.rows), queries, b.slots)
        }));
        let limits = plan.gpu.device().limits();
        // A vec4 at least, whatever a driver says.
        let alignment = u64::from(limits.min_storage_buffer_offset_alignment).max(16);
        let arena = self.arena();
        let mut bindings: Vec<Binding<'a>> = Vec::new();
        for (slot, dims, rows, positions, features) in all {
            // A tensor without features is never read or written.
            let Some(laid) = self.get(slot).filter(|_| features > 0) else { continue };
            let bytes = laid.extent(dims, rows, positions, features, alignment);
            let home = if arena.holds(slot) { Slot::Out } else { slot };
            let mine = Binding { home, buffer: laid.buffer, bytes, tensors: vec![slot] };
            match bindings.iter_mut().find(|b| b.home == home) {
                None => bindings.push(mine),
                Some(other) => other.join(mine),
            }
        }
        bindings
    }

    /// Where a tensor lies in its binding.
    pub(super) fn view(&self, slot: Slot, binding: &Binding<'_>) -> View {
        self.get(slot).map_or(View::default(), |t| t.view(binding.bytes.start))
    }
}

/// A range of a buffer that kernels read or write.
pub(super) struct Binding<'a> {
    /// The slot that it is bound to.
    pub(super) home: Slot,
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) bytes: Range<u64>,
    /// The tensors in it.
    pub(super) tensors: Vec<Slot>,
}

impl Binding<'_> {
    /// What it is called in an error.
    pub(super) fn name(&self) -> &'static str {
        match self.tensors.len() {
            1 => self.home.tensor(),
            _ => "the range of out's buffer from its first tensor to its last",
        }
    }

    fn join(&mut self, other: Self) {
        self.bytes.start = self.bytes.start.min(other.bytes.start);
        self.bytes.end = self.bytes.end.max(other.bytes.end);
        self.tensors.extend(other.tensors);
    }
}

/// An error unless all of these, in bytes, fit a binding.
pub(super) fn check_fit(
    sizes: impl IntoIterator<Item = (&'static str, u64)>,
    max: u64,
) -> Result<(), PlanError> {
    match sizes.into_iter().find(|(_, needed)| *needed > max) {
        Some((tensor, needed)) => Err(PlanError::LayoutExceedsBinding { tensor, needed, max }),
        None => Ok(()),
    }
}

impl<'a> Laid<'a> {
    /// A tensor whose buffer begins with a position of the sequence.
    pub(super) fn new(
        t: &TensorView<'a>,
        leading: [i64; 4],
        [position, feature]: [i64; 2],
        first_position: i64,
    ) -> Self {
        let element_bytes = t.dtype.bytes();
        // Modulo 2^64: what is taken off here is added again.
        let first = (t.offset_bytes / element_bytes) as i64;
        let first = first.wrapping_sub(first_position.wrapping_mul(position));
        Self { buffer: t.buffer, first, leading, position, feature, element_bytes }
    }

    /// A tensor of one leading dimension: `[row, position(, feature)]`.
    pub(super) fn plain(t: &TensorView<'a>) -> Self {
        let stride = |i: usize| t.strides_elems.get(i).copied().unwrap_or(0);
        Self::new(t, [0, 0, 0, stride(0)], [stride(1), stride(2)], 0)
    }

    /// The same without these first rows and positions: addresses are computed modulo 2^32, and
    /// element `[0, 0, 0]` of the whole may lie before all.
    fn without(mut self, rows: usize, positions: usize) -> Self {
        self.first -= rows as i64 * self.leading[3] + positions as i64 * self.position;
        self
    }

    /// The bytes of the buffer that these rows, positions and features take, from a multiple of
    /// the device's alignment on.
    pub(super) fn extent(
        &self,
        dims: [u32; 4],
        rows: Range<usize>,
        positions: Range<usize>,
        features: usize,
        alignment: u64,
    ) -> Range<u64> {
        let (mut low, mut high) = (i64::MAX, i64::MIN);
        for row in rows {
            let at = self.first.wrapping_add(self.leading_offset(dims, row));
            let reach = |n: usize, stride: i64| (n.max(1) as i64 - 1) * stride;
            let start = at.wrapping_add((positions.start as i64).wrapping_mul(self.position));
            let ends = [reach(positions.len(), self.position), reach(features, self.feature)];
            low = low.min(start + ends.iter().filter(|e| **e < 0).sum::<i64>());
            high = high.max(start + ends.iter().filter(|e| **e > 0).sum::<i64>());
        }
        let start = low.max(0) as u64 * self.element_bytes / alignment * alignment;
        let end = ((high + 1).max(0) as u64 * self.element_bytes).next_multiple_of(16);
        // Bindings are whole words.
        start..end.min(self.buffer.size() / 4 * 4)
    }

    /// Where elements lie in a binding that begins with a byte of the buffer, modulo 2^32: what is
    /// folded in may lie before it.
    pub(super) fn view(&self, start: u64) -> View {
        let wrap = |x: i64| x as u32;
        View {
            offset: wrap(self.first.wrapping_sub((start / self.element_bytes) as i64)),
            position: wrap(self.position),
            feature: wrap(self.feature),
            unused: 0,
            leading: self.leading.map(wrap),
        }
    }

    fn leading_offset(&self, dims: [u32; 4], row: usize) -> i64 {
        let mut rest = row;
        let mut offset = 0;
        for (&size, &stride) in dims.iter().zip(&self.leading).rev() {
            let size = size.max(1) as usize;
            offset += (rest % size) as i64 * stride;
            rest /= size;
        }
        offset
    }
}

/// The same tensors without strides that lead nowhere: of dimensions of one element, features aside.
fn normalised<'a>(tensors: &ForwardTensors<'a>) -> ForwardTensors<'a> {
    let mut all = tensors.clone();
    let lse = all.lse.iter_mut().map(|t| (t, false));
    let optional = [&mut all.mask, &mut all.attn_bias].into_iter().flatten();
    let others = [&mut all.q, &mut all.k, &mut all.v, &mut all.out].into_iter().chain(optional);
    others.map(|t| (t, true)).chain(lse).for_each(|(t, features)| normalise(t, features));
    all
}

/// The same for one tensor; `features`: whether its last dimension holds those.
pub(super) fn normalise(t: &mut TensorView<'_>, features: bool) {
    let empty = t.shape.contains(&0);
    let last = t.shape.len().saturating_sub(usize::from(features));
    for (stride, &size) in t.strides_elems.iter_mut().zip(&t.shape).take(last) {
        if size <= 1 || empty {
            *stride = 0;
        }
    }
}

/// Leading dimensions of several tensors merged into at most four: `sizes` with the strides of each.
pub(super) fn merge_leading(
    sizes: &[usize],
    strides: &[&[i64]],
) -> Result<([u32; 4], Vec<[i64; 4]>), BindError> {
    if sizes.contains(&0) {
        return Ok(([1; 4], vec![[0; 4]; strides.len()]));
    }
    // From the last on: a dimension joins the next one where that continues it in every tensor.
    let mut merged: Vec<(usize, Vec<i64>)> = Vec::new();
    for (i, &size) in sizes.iter().enumerate().rev().filter(|(_, s)| **s != 1) {
        let own: Vec<i64> = strides.iter().map(|s| s[i]).collect();
        match merged.last_mut() {
            Some((inner, inner_strides))
                if own.iter().zip(&*inner_strides).all(|(a, b)| *a == b * *inner as i64) =>
            {
                *inner *= size;
            }
            _ => merged.push((size, own)),
        }
    }
    if merged.len() > 4 {
        return Err(BindError::Rank { tensor: "all", got: merged.len(), max: 4 });
    }
    let mut dims = [1; 4];
    let mut all = vec![[0; 4]; strides.len()];
    for (at, (size, own)) in (0..4).rev().zip(merged) {
        dims[at] = size as u32;
        all.iter_mut().zip(own).for_each(|(all, own)| all[at] = own);
    }
    Ok((dims, all))
}

/// The strides of leading dimensions that have to be one.
pub(super) fn merge_to_one(
    tensor: &'static str,
    sizes: &[usize],
    strides: &[i64],
) -> Result<[i64; 4], BindError> {
    let (dims, merged) = merge_leading(sizes, &[strides])?;
    match dims {
        [1, 1, 1, _] => Ok(merged[0]),
        _ => Err(BindError::Rank { tensor, got: dims.iter().filter(|d| **d != 1).count(), max: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_dimensions_merge_where_all_tensors_let_them() {
        // Row-major everywhere: one dimension.
        let (dims, strides) = merge_leading(&[2, 3, 4], &[&[60, 20, 5], &[0, 0, 0]]).unwrap();
        assert_eq!((dims, strides), ([1, 1, 1, 24], vec![[0, 0, 0, 5], [0; 4]]));
        // [b, n, h, d] read as [b, h, n, d] beside a row-major one.
        let (dims, strides) = merge_leading(&[2, 3], &[&[300, 10], &[30, 10]]).unwrap();
        assert_eq!((dims, strides), ([1, 1, 2, 3], vec![[0, 0, 300, 10], [0, 0, 30, 10]]));
        assert_eq!(merge_leading(&[], &[&[]]).unwrap().0, [1; 4]);
        assert_eq!(merge_leading(&[1, 5, 1], &[&[9, 7, 3]]).unwrap().1, [[0, 0, 0, 7]]);
        let error = merge_leading(&[2; 5], &[&[1, 10, 2, 30, 5]]).unwrap_err();
        assert_eq!(error, BindError::Rank { tensor: "all", got: 5, max: 4 });
        let error = merge_to_one("k", &[2, 3], &[9, 2]).unwrap_err();
        assert_eq!(error, BindError::Rank { tensor: "k", got: 2, max: 1 });
        assert_eq!(merge_to_one("k", &[2, 3], &[6, 2]).unwrap(), [0, 0, 0, 2]);
    }
}
