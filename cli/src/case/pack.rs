//! From a case to the library's tensors: the reference packs the leading dimensions of q, k and v
//! (and pads their lengths) each on its own, the library takes k and v together.

use std::borrow::Cow;

use local_attention::{
    AttentionShape, Gradient, Gradients, HostInputs, HostTensor, LocalAttention, Problem,
    ShapeError,
};

use super::array::{Array, Data, Want};
use super::read::Case;
use crate::error::BadInput;

impl Case {
    /// The problem of this case, without touching its numbers more than needed.
    ///
    /// # Errors
    /// Shapes that do not fit each other or the configuration.
    pub fn problem(&self, attention: &LocalAttention) -> Result<Problem, ShapeError> {
        Ok(self.prepare::<f32>(attention)?.0)
    }

    /// The problem and the tensors of this case, elements converted to `T` where they are stored
    /// as something else.
    pub(crate) fn prepare<T: Want>(
        &self,
        attention: &LocalAttention,
    ) -> Result<(Problem, HostInputs<'_, T>), ShapeError> {
        let q = tensor(&self.q)?;
        let mut inputs = match self.join_kv(attention)? {
            None => HostInputs::new(q, tensor(&self.k)?, tensor(&self.v)?),
            Some((k, v)) => HostInputs::new(q, k, v),
        };
        if let Some(mask) = &self.mask {
            inputs = inputs.with_mask(HostTensor::new(&mask.data[..], mask.shape.clone())?);
        }
        if let Some(bias) = &self.attn_bias {
            inputs = inputs.with_attn_bias(tensor(bias)?);
        }
        let mut shape = AttentionShape::from_inputs(&inputs)?;
        shape.window = self.forward.window_size;
        Ok((attention.problem(&shape)?, inputs))
    }

    /// The gradient by `out` that the case holds, if it holds one.
    ///
    /// # Errors
    /// Another shape than `out`'s.
    pub(crate) fn dout<T: Want>(
        &self,
        problem: &Problem,
    ) -> Result<Option<HostTensor<'_, T>>, BadInput> {
        let Some(dout) = self.expected.get("dout") else { return Ok(None) };
        let [leading @ .., queries, _] = &self.q.shape[..] else { return Ok(None) };
        let expected = [leading, &[*queries, problem.shape().value_dim]].concat();
        if dout.shape != expected {
            let got = &dout.shape;
            return Err(BadInput::Usage(format!(
                "dout has shape {got:?}: it must be that of out, {expected:?}"
            )));
        }
        Ok(Some(HostTensor::new(T::of(&dout.data), problem.out_shape())?))
    }

    /// Gradients in the shapes of the case's own tensors: without what was appended to k or v.
    pub(crate) fn unpacked<T: Want>(
        &self,
        gradients: Gradients<T>,
        wrap: fn(Vec<T>) -> Data,
    ) -> Vec<(&'static str, Array)> {
        let own = |array: &Array, gradient: Gradient<T>| {
            let (shape, data) = (array.shape.clone(), gradient.data);
            let [.., own_len, features] = shape[..] else {
                return Array { shape, data: wrap(data) };
            };
            let len = gradient.shape[gradient.shape.len() - 2];
            let data = if len == own_len {
                data
            } else {
                let rows = data.chunks((len * features).max(1));
                rows.flat_map(|row| row[..own_len * features].to_vec()).collect()
            };
            // Without a batch nothing was computed.
            let mut data = data;
            data.resize(shape.iter().product(), T::default());
            Array { shape, data: wrap(data) }
        };
        let Gradients { dq, dk, dv, dattn_bias, .. } = gradients;
        let mut all =
            vec![("dq", own(&self.q, dq)), ("dk", own(&self.k, dk)), ("dv", own(&self.v, dv))];
        all.extend(
            dattn_bias.map(|g| ("dattn_bias", Array { shape: g.shape, data: wrap(g.data) })),
        );
        all
    }

    /// k and v as one batch and one length, where they are stored with different ones.
    #[allow(clippy::type_complexity, reason = "two tensors, or none")]
    fn join_kv<T: Want>(
        &self,
        attention: &LocalAttention,
    ) -> Result<Option<(HostTensor<'_, T>, HostTensor<'_, T>)>, ShapeError> {
        let (
            [k_leading @ .., k_len, _],
            [v_leading @ .., v_len, value_dim],
            [leading @ .., seq_len, head_dim],
        ) = (&self.k.shape[..], &self.v.shape[..], &self.q.shape[..])
        else {
            return Ok(None); // Too few dimensions: the library says so.
        };
        if k_leading == v_leading && k_len == v_len {
            return Ok(None);
        }
        // Each on its own must be what the problem allows.
        for (name, kv_leading, len) in [("k", k_leading, k_len), ("v", v_leading, v_len)] {
            let mut shape = AttentionShape::new(leading, *seq_len, *head_dim)
                .with_kv_leading(kv_leading)
                .with_key_len(*len)
                .with_value_dim(*value_dim);
            shape.window = self.forward.window_size;
            attention.problem(&shape).map_err(|e| match e {
                ShapeError::KeyLength { got, multiple, padded, .. } => {
                    ShapeError::KeyLength { tensor: name, got, multiple, padded }
                }
                e => e,
            })?;
        }
        let len = *k_len.max(v_len);
        let batch = rows(k_leading).max(rows(v_leading));
        // A batch of 0 beside a batch of 1: nothing is computed.
        let batch = if leading.contains(&0) { 0 } else { batch };
        Ok(Some((widen(&self.k, batch, len)?, widen(&self.v, batch, len)?)))
    }
}

fn tensor<T: Want>(array: &Array) -> Result<HostTensor<'_, T>, ShapeError> {
    HostTensor::new(T::of(&array.data), array.shape.clone())
}

/// The packed batch: 0 where one dimension is, however large the others.
fn rows(leading: &[usize]) -> usize {
    if leading.contains(&0) { 0 } else { leading.iter().product() }
}

/// `[batch, len, features]`: zeros appended to every row, a single row repeated.
fn widen<T: Want>(
    array: &Array,
    batch: usize,
    len: usize,
) -> Result<HostTensor<'_, T>, ShapeError> {
    let [leading @ .., own_len, features] = &array.shape[..] else {
        return tensor(array);
    };
    let rows = rows(leading);
    let stored = T::of(&array.data);
    let data: Cow<'_, [T]> = if *own_len == len {
        stored
    } else {
        let mut padded = Vec::new();
        let elements = [rows, len, *features].iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        match elements {
            Some(elements) if padded.try_reserve_exact(elements).is_ok() => {
                padded.resize(elements, T::default());
            }
            // As vast as the lengths ask for: no tensor of this shape can be had.
            _ => {
                return Err(ShapeError::DataLength {
                    shape: vec![rows, len, *features],
                    got: stored.len(),
                    expected: elements,
                });
            }
        }
        for row in 0..rows {
            padded[row * len * features..][..own_len * features]
                .copy_from_slice(&stored[row * own_len * features..][..own_len * features]);
        }
        padded.into()
    };
    // Wraps only where there is no element to reach.
    let row_stride = if rows == 1 { 0 } else { len.wrapping_mul(*features) as isize };
    HostTensor::strided(data, 0, [batch, len, *features], [row_stride, *features as isize, 1])
}
