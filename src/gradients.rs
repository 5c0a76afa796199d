//! What a backward pass takes beside the inputs, and what it gives.

use crate::{Element, HostInputs, HostTensor, Problem, RunError};

/// Weights are computed again from `lse`. Beyond this, in powers of 2, what rounding it to f32 cost would be seen in
/// them (1e-5 of a row's sum at 150, measured), and engines compute maximum and sum of the row again.
pub(crate) const EXACT_LSE: f32 = 64.0;

/// What a backward pass takes beside the inputs of the forward pass: two of its results, and the
/// gradient of one of them.
///
/// Nothing else is saved between the passes, and nothing of size queries times keys: beside `q`, `k`, `v`
/// and `out`, which a model holds anyway (4 bytes an element in f32, 2 in f16), `lse` is 4 bytes a query and packed row (8 in
/// f64).
///
/// ```
/// use local_attention::{
///     AttentionShape, BackwardInputs, Call, Engine, HostInputs, HostTensor, LocalAttention,
///     LocalAttentionConfig, cpu::Cpu,
/// };
///
/// let x = HostTensor::new(vec![0.5_f32; 6 * 4], [6, 4])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x.clone());
/// let attention = LocalAttention::new(LocalAttentionConfig::new(3))?;
/// // `lse` is needed later.
/// let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?.with_lse())?;
/// let forward = Cpu::new().forward(&problem, &inputs, &Call::default())?;
///
/// // The gradient of a loss by `out`, which comes from what was computed of it.
/// let dout = HostTensor::new(vec![1.0_f32; 6 * 4], [6, 4])?;
/// let saved = BackwardInputs::new(&problem, &forward, dout)?;
/// let gradients = Cpu::new().backward(&problem, &inputs, &saved, &Call::default())?;
/// assert_eq!(gradients.dq.shape, [6, 4]);
/// // Six queries share their weights of 1 among the keys of each.
/// assert!((gradients.dv.data.iter().sum::<f32>() - 24.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackwardInputs<'a, T: Element> {
    /// The output of the forward pass, `[.., query, dv]`: as many bytes as the type has for each element. (The oracle
    /// computes it and `lse` again, and reads neither.)
    pub out: HostTensor<'a, T>,
    /// Its `lse`, `[.., query]`.
    pub lse: HostTensor<'a, T::Accumulator>,
    /// The gradient of the loss by `out`, `[.., query, dv]`.
    pub dout: HostTensor<'a, T>,
    /// Whether `dattn_bias` is computed where there is a bias: on by default, and two fifths of the time.
    pub bias_gradient: bool,
}

impl<'a, T: Element> BackwardInputs<'a, T> {
    /// From what the forward pass gave.
    ///
    /// # Errors
    /// [`RunError::MissingTensor`] where it was made without `lse`
    /// ([`AttentionShape::with_lse`](crate::AttentionShape::with_lse)), [`RunError::TensorShape`] where it is that of
    /// another problem.
    pub fn new(
        problem: &Problem,
        forward: &'a crate::Forward<T>,
        dout: HostTensor<'a, T>,
    ) -> Result<Self, RunError> {
        let lse = forward.lse.as_deref().ok_or(RunError::MissingTensor { tensor: "lse" })?;
        let fail = |tensor, got: &[usize], expected: Vec<usize>| {
            let got = got.to_vec();
            move |_| RunError::TensorShape { tensor, got, expected }
        };
        let (out_shape, lse_shape) = (problem.out_shape(), problem.lse_shape());
        if forward.shape != out_shape {
            let got = forward.shape.clone();
            return Err(RunError::TensorShape { tensor: "out", got, expected: out_shape });
        }
        Ok(Self {
            out: HostTensor::new(&forward.out[..], out_shape.clone()).map_err(fail(
                "out",
                &[forward.out.len()],
                out_shape,
            ))?,
            lse: HostTensor::new(lse, lse_shape.clone()).map_err(fail(
                "lse",
                &[lse.len()],
                lse_shape,
            ))?,
            dout,
            bias_gradient: true,
        })
    }

    /// From tensors: `out` and `dout` `[.., query, dv]`, `lse` `[.., query]`.
    pub fn from_tensors(
        out: HostTensor<'a, T>,
        lse: HostTensor<'a, T::Accumulator>,
        dout: HostTensor<'a, T>,
    ) -> Self {
        Self { out, lse, dout, bias_gradient: true }
    }

    /// Whether to compute `dattn_bias`: a bias that is not trained needs none.
    #[must_use]
    pub fn with_bias_gradient(mut self, bias_gradient: bool) -> Self {
        self.bias_gradient = bias_gradient;
        self
    }
}

/// One gradient; [`BackwardInputs`] has an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gradient<T> {
    /// Its elements, row-major.
    pub data: Vec<T>,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// The gradients of a loss by the inputs; [`BackwardInputs`] has an example.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gradients<T: Element> {
    /// `[.., query, d]`.
    pub dq: Gradient<T>,
    /// `[.., key_len, d]`, the leading dimensions those of `k`; one along which `k` has the stride 0 is 1: the
    /// sum over all that read those keys. (Views of `ndarray` with a stride of 0 are copied into tensors without.)
    pub dk: Gradient<T>,
    /// `[.., key_len, dv]`; as for `dk`.
    pub dv: Gradient<T>,
    /// In the bias's own shape `[rows, 1 or W, 1 or J]`: the sum over windows and over the rows that share it.
    pub dattn_bias: Option<Gradient<T>>,
}

impl Problem {
    /// The shape of `lse`, `[.., query]`.
    ///
    /// ```
    /// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
    ///
    /// let attention = LocalAttention::new(LocalAttentionConfig::new(4))?;
    /// let problem = attention.problem(&AttentionShape::new([2, 3], 8, 16))?;
    /// assert_eq!(problem.lse_shape(), [2, 3, 8]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lse_shape(&self) -> Vec<usize> {
        [&self.shape.leading[..], &[self.shape.query.len()]].concat()
    }

    /// An error unless the tensors of a backward pass fit the problem.
    pub(crate) fn check_backward<T: Element>(
        &self,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
    ) -> Result<(), RunError> {
        self.check_inputs(inputs)?;
        for (tensor, got, expected) in [
            ("out", saved.out.shape(), self.out_shape()),
            ("lse", saved.lse.shape(), self.lse_shape()),
            ("dout", saved.dout.shape(), self.out_shape()),
        ] {
            if got != expected {
                return Err(RunError::TensorShape { tensor, got: got.to_vec(), expected });
            }
        }
        Ok(())
    }
}

/// Which packed rows of k or v have one gradient: those that differ in dimensions of stride 0.
#[derive(Debug, Clone)]
pub(crate) struct SharedRows {
    /// The leading dimensions of the gradient.
    leading: Vec<usize>,
    sizes: Vec<usize>,
}

impl SharedRows {
    /// Of a tensor with these leading dimensions, then two more.
    fn new<T: Clone>(tensor: &HostTensor<'_, T>) -> Self {
        let sizes = tensor.shape()[..tensor.shape().len() - 2].to_vec();
        let shared = |(&size, &stride): (&usize, &isize)| if stride == 0 { 1 } else { size };
        // Without elements strides say nothing.
        let leading = if tensor.is_empty() {
            sizes.clone()
        } else {
            sizes.iter().zip(tensor.strides()).map(shared).collect()
        };
        Self { leading, sizes }
    }

    /// The gradient's row of a packed row of the tensor.
    pub(crate) fn of(&self, mut row: usize) -> usize {
        let (mut at, mut step) = (0, 1);
        for (&size, &own) in self.sizes.iter().zip(&self.leading).rev() {
            at += row % size % own * step;
            row /= size;
            step *= own;
        }
        at
    }

    /// The first packed row of those that share a row of the gradient.
    #[cfg(feature = "gpu")]
    pub(crate) fn first_of(&self, mut at: usize) -> usize {
        let (mut row, mut step) = (0, 1);
        for (&size, &own) in self.sizes.iter().zip(&self.leading).rev() {
            row += at % own * step;
            at /= own;
            step *= size;
        }
        row
    }

    /// The leading dimensions of the gradient.
    #[cfg(feature = "gpu")]
    pub(crate) fn leading(&self) -> &[usize] {
        &self.leading
    }

    /// The shape of a gradient.
    fn shape(&self, len: usize, features: usize) -> Vec<usize> {
        [&self.leading[..], &[len, features]].concat()
    }
}

/// The shapes of gradients, and which rows share them; `bias`: where it is wanted.
pub(crate) struct Shapes {
    pub(crate) dq: Vec<usize>,
    pub(crate) dk: Vec<usize>,
    pub(crate) dv: Vec<usize>,
    pub(crate) bias: Option<Vec<usize>>,
    pub(crate) k_rows: SharedRows,
    pub(crate) v_rows: SharedRows,
}

impl Shapes {
    pub(crate) fn new<T: Element>(
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
    ) -> Self {
        let shape = &problem.shape;
        let (k_rows, v_rows) = (SharedRows::new(&inputs.k), SharedRows::new(&inputs.v));
        let bias = shape.bias.filter(|_| saved.bias_gradient);
        Self {
            dq: [&shape.leading[..], &[shape.query.len(), shape.head_dim]].concat(),
            dk: k_rows.shape(shape.key_len, shape.head_dim),
            dv: v_rows.shape(shape.key_len, shape.value_dim),
            bias: bias.map(|b| vec![b.rows, b.queries, b.slots]),
            k_rows,
            v_rows,
        }
    }
}
