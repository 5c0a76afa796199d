//! The tensors of a call, and its results.

use crate::{Element, HostTensor};

/// The tensors of one call.
///
/// * `q: [.., query, d]`, the queries of the problem's query range
/// * `k: [.., key_len, d]`, `v: [.., key_len, dv]`, leading dimensions as q's, or all together 1
/// * `mask: [rows, len]` (or `[rows, 1, .., len]`), true where a key may be attended; packed batch
///   row `b` of `B` reads mask row `b / (B / rows)`
/// * `attn_bias: [rows, 1 or W, 1 or J]`, added to the logits; packed batch row `b` reads bias row
///   `b % rows`
///
/// ```
/// use local_attention::{AttentionShape, HostInputs, HostTensor};
///
/// let x = HostTensor::new(vec![0.5_f32; 2 * 6 * 4], [2, 6, 4])?;
/// let mask = HostTensor::new(vec![true; 2 * 6], [2, 6])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x).with_mask(mask);
/// assert_eq!(AttentionShape::from_inputs(&inputs)?.mask.map(|m| m.len), Some(6));
/// # Ok::<(), local_attention::ShapeError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HostInputs<'a, T: Clone> {
    /// Queries.
    pub q: HostTensor<'a, T>,
    /// Keys.
    pub k: HostTensor<'a, T>,
    /// Values.
    pub v: HostTensor<'a, T>,
    /// Key mask.
    pub mask: Option<HostTensor<'a, bool>>,
    /// The reference's alias of `mask`: read only where `mask` is `None`.
    pub input_mask: Option<HostTensor<'a, bool>>,
    /// Additive bias.
    pub attn_bias: Option<HostTensor<'a, T>>,
}

impl<'a, T: Clone> HostInputs<'a, T> {
    /// Queries, keys and values, without mask and bias.
    pub fn new(q: HostTensor<'a, T>, k: HostTensor<'a, T>, v: HostTensor<'a, T>) -> Self {
        Self { q, k, v, mask: None, input_mask: None, attn_bias: None }
    }

    /// Adds a key mask.
    #[must_use]
    pub fn with_mask(mut self, mask: HostTensor<'a, bool>) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Adds a key mask under the reference's alias; `mask` wins over it.
    #[must_use]
    pub fn with_input_mask(mut self, input_mask: HostTensor<'a, bool>) -> Self {
        self.input_mask = Some(input_mask);
        self
    }

    /// Adds a bias on the logits.
    #[must_use]
    pub fn with_attn_bias(mut self, attn_bias: HostTensor<'a, T>) -> Self {
        self.attn_bias = Some(attn_bias);
        self
    }

    /// The same inputs with every number converted.
    pub fn map<U: Clone + 'static>(&self, convert: impl Fn(T) -> U) -> HostInputs<'a, U> {
        HostInputs {
            q: self.q.map(&convert),
            k: self.k.map(&convert),
            v: self.v.map(&convert),
            mask: self.mask.clone(),
            input_mask: self.input_mask.clone(),
            attn_bias: self.attn_bias.as_ref().map(|b| b.map(&convert)),
        }
    }

    /// The mask in effect: `mask`, else `input_mask`.
    pub fn effective_mask(&self) -> Option<&HostTensor<'a, bool>> {
        self.mask.as_ref().or(self.input_mask.as_ref())
    }

    /// The name of the mask in effect.
    pub(crate) fn mask_name(&self) -> &'static str {
        if self.mask.is_none() && self.input_mask.is_some() { "input_mask" } else { "mask" }
    }
}

/// The result of a forward call.
///
/// ```
/// use local_attention::cpu::Cpu;
/// use local_attention::{
///     AttentionShape, Call, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
/// };
///
/// let x = HostTensor::new(vec![0.5_f32; 6 * 4], [6, 4])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x);
/// let shape = AttentionShape::from_inputs(&inputs)?.with_lse();
/// let problem = LocalAttention::new(LocalAttentionConfig::new(3))?.problem(&shape)?;
/// let forward = Cpu::new().forward(&problem, &inputs, &Call::default())?;
/// assert_eq!(forward.shape, [6, 4]);
/// assert_eq!(forward.lse.map(|lse| lse.len()), Some(6));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Forward<T: Element> {
    /// The output, row-major `[.., query, dv]`.
    pub out: Vec<T>,
    /// Shape of `out`.
    pub shape: Vec<usize>,
    /// Natural logarithm of the sum of exponentials of the visible logits, `[.., query]`, where
    /// [`AttentionShape::lse`](crate::AttentionShape) asked for it. A row that sees nothing has
    /// `-f32::MAX`.
    pub lse: Option<Vec<T::Accumulator>>,
}

/// Attention weights of a range of queries, before dropout.
///
/// ```
/// use local_attention::cpu::Cpu;
/// use local_attention::{
///     AttentionShape, Engine, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
/// };
///
/// let x = HostTensor::new(vec![0.5_f32; 6 * 4], [6, 4])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x);
/// let attention = LocalAttention::new(LocalAttentionConfig::new(2).causal(true))?;
/// let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
/// // Query 4 sees keys 2, 3 and itself; the last slot of its window lies after it.
/// let weights = Cpu::new().weights(&problem, &inputs, 4..5)?;
/// assert_eq!(weights.keys, [Some(2), Some(3), Some(4), Some(5)]);
/// assert!((weights.weights[0] - 1.0 / 3.0).abs() < 1e-6 && weights.weights[3] == 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Weights<T: Element> {
    /// Softmax weights, row-major `[rows, queries, slots]`, each row summing to 1. A row that sees
    /// nothing sums to 1 over what it does not see; it is 0 with the quirk `uniform_masked_rows` off, or
    /// where there is no such slot.
    pub weights: Vec<T::Accumulator>,
    /// `[rows, queries, slots]`.
    pub shape: [usize; 3],
    /// The key each slot stands for, `[queries, slots]`; `None` where the slot lies outside the
    /// padded sequence. Keys at or past `key_len` are the zeros that autopad appended.
    pub keys: Vec<Option<usize>>,
}
