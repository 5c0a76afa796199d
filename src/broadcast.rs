//! How one mask and one bias serve many rows and queries.

use crate::shape::BiasShape;
use crate::tensor::RowView;
use crate::{HostInputs, Problem};

/// The mask of one packed batch row.
pub(crate) struct MaskRow<'a> {
    keys: RowView<'a, bool>,
    /// Keys covered: the others are hidden.
    pub(crate) len: usize,
}

impl MaskRow<'_> {
    /// Whether a key may be attended.
    pub(crate) fn lets(&self, key: usize) -> bool {
        key < self.len && self.keys.at1(key)
    }
}

/// The bias of one packed batch row.
pub(crate) struct BiasRow<'a, T> {
    rows: RowView<'a, T>,
    shape: BiasShape,
}

impl<'a, T: Clone> BiasRow<'a, T> {
    /// The bias of a query on a slot of its window.
    pub(crate) fn at(&self, query: usize, slot: usize) -> T {
        self.rows.at(query % self.shape.queries, if self.varies() { slot } else { 0 })
    }

    /// The bias of a query on all slots, where they differ and lie side by side.
    pub(crate) fn slots(&self, query: usize) -> Option<&'a [T]> {
        let row = || self.rows.slice(query % self.shape.queries, self.shape.slots);
        if self.varies() { row() } else { None }
    }

    /// Whether slots may differ.
    pub(crate) fn varies(&self) -> bool {
        self.shape.slots > 1 && self.rows.column_stride() != 0
    }
}

impl Problem {
    /// The row of k and v that a packed batch row reads.
    pub(crate) fn kv_row(&self, row: usize) -> usize {
        if self.kv_batch == 1 { 0 } else { row }
    }

    /// The mask that a packed batch row reads: neighbours share one.
    pub(crate) fn mask_row<'a, T: Clone>(
        &self,
        inputs: &'a HostInputs<'_, T>,
        row: usize,
    ) -> Option<MaskRow<'a>> {
        let (mask, shape) = inputs.effective_mask().zip(self.shape.mask)?;
        let keys = mask.packed_row(row / (self.batch / shape.rows), 1);
        Some(MaskRow { keys, len: shape.len })
    }

    /// The bias that a packed batch row reads: heads, which vary fastest, have one each.
    pub(crate) fn bias_row<'a, T: Clone>(
        &self,
        inputs: &'a HostInputs<'_, T>,
        row: usize,
    ) -> Option<BiasRow<'a, T>> {
        let (bias, shape) = inputs.attn_bias.as_ref().zip(self.shape.bias)?;
        Some(BiasRow { rows: bias.packed_row(row % shape.rows, 2), shape })
    }
}
