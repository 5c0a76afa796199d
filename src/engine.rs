//! What every engine does.

use std::ops::Range;

use crate::{
    BackwardInputs, Call, Element, Forward, Gradients, HostInputs, Problem, RunError, Weights,
};

/// An engine that carries out problems on tensors of element type `T` in host memory.
///
/// ```
/// use local_attention::{
///     AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
///     Reference, cpu::Cpu,
/// };
///
/// let attention = LocalAttention::new(LocalAttentionConfig::new(2).causal(true))?;
/// let data = [1.0_f32, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.5];
/// let x = HostTensor::new(&data, [1, 4, 2])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x);
/// let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
///
/// let fast = Cpu::new().forward(&problem, &inputs, &Call::default())?;
/// let oracle = Reference::<f32>::new().forward(&problem, &inputs, &Call::default())?;
/// assert_eq!(fast.shape, [1, 4, 2]);
/// assert!(fast.out.iter().zip(&oracle.out).all(|(a, b)| (a - b).abs() < 1e-6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Engine<T: Element> {
    /// `out = drop(softmax(rot(q) rot(k)^T * scale + bias)) v`, the softmax over what each query
    /// sees, `rot` the identity without rotary embeddings and `drop` without a dropout seed.
    ///
    /// `q: [.., query, d]`, `k: [.., key_len, d]`, `v: [.., key_len, dv]`, and as
    /// [`HostInputs`](crate::HostInputs) says mask and bias; `out` has [`Problem::out_shape`],
    /// `[.., query, dv]`. The formula is that of the PyTorch module `LocalAttention` in its order.
    ///
    /// # Errors
    /// Tensors that are not what the problem describes, or memory that cannot be had.
    fn forward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, RunError>;

    /// The gradients of a loss by q, k, v and the bias, from the gradient `dout` of it by `out`, for the same
    /// inputs and the same call: with dropout, the same weights are dropped.
    ///
    /// With weights `P` and what dropout makes of them, `P * D`: `dP = D * (dout v^T)`,
    /// `dS = P * (dP - rowsum(dout * out))`, `dv = (P * D)^T dout`, `dq` and `dk` from `dS k` and `dS^T q` back through
    /// scale, rotary embedding and normalisation, `dattn_bias = dS`, summed. The weights are computed again from `lse`
    /// (Dao, "FlashAttention-2", 2023), so memory is O(n). With a range of queries, what those contribute.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and `out`, `lse` or `dout` of another shape.
    fn backward(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
    ) -> Result<Gradients<T>, RunError>;

    /// The attention weights of a range of queries, before dropout, and the key of each slot.
    /// Takes `batch * queries * slots` numbers of memory, and a key for each of `queries * slots`: ask
    /// for few queries at a time.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and a range outside the problem's queries.
    fn weights(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        queries: Range<usize>,
    ) -> Result<Weights<T>, RunError>;
}

/// A vector of zeros, or a typed error where memory for it cannot be had.
pub(crate) fn zeros<T: Clone + Default>(
    what: &'static str,
    dims: &[usize],
) -> Result<Vec<T>, RunError> {
    let (mut data, len) = reserve(what, dims)?;
    data.resize(len, T::default());
    Ok(data)
}

/// An empty vector with room for this many elements, and how many they are.
pub(crate) fn reserve<T>(what: &'static str, dims: &[usize]) -> Result<(Vec<T>, usize), RunError> {
    let elements = crate::shape::saturating_product(dims);
    let fail = || RunError::OutOfMemory { what, elements };
    let len = usize::try_from(elements).map_err(|_| fail())?;
    let mut data = Vec::new();
    data.try_reserve_exact(len).map_err(|_| fail())?;
    Ok((data, len))
}
