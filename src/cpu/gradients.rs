//! The gradients of a call: blocks of queries, colour after colour.

use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use super::backward::BackwardOp;
use super::block::{Blocks, Job, Parts};
use super::keys::KeyRows;
use super::scratch::Scratch;
use super::{Cpu, pages};
use crate::dropout::KeepMask;
use crate::engine::{reserve, zeros};
use crate::gradients::Shapes;
use crate::shape::saturating_product;
use crate::{BackwardInputs, Call, Element, Gradient, Gradients, HostInputs, Problem, RunError};

/// Memory of the caller's for gradients, each row-major in the shape that [`Gradients`] says.
///
/// ```
/// use local_attention::cpu::{Cpu, GradientsMut};
/// use local_attention::{
///     AttentionShape, BackwardInputs, Call, Engine, HostInputs, HostTensor, LocalAttention,
///     LocalAttentionConfig,
/// };
///
/// let x = HostTensor::new(vec![0.5_f32; 6 * 4], [6, 4])?;
/// let inputs = HostInputs::new(x.clone(), x.clone(), x.clone());
/// let attention = LocalAttention::new(LocalAttentionConfig::new(3))?;
/// let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?.with_lse())?;
/// let forward = Cpu::new().forward(&problem, &inputs, &Call::default())?;
/// let saved = BackwardInputs::new(&problem, &forward, x)?;
/// let (mut dq, mut dk, mut dv) = (vec![0.0; 24], vec![0.0; 24], vec![0.0; 24]);
/// let to = GradientsMut { dq: &mut dq, dk: &mut dk, dv: &mut dv, dattn_bias: None };
/// Cpu::new().backward_into(&problem, &inputs, &saved, &Call::default(), to)?;
/// assert!((dv.iter().sum::<f32>() - 12.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "callers make it")]
pub struct GradientsMut<'a, T> {
    /// `[.., query, d]`.
    pub dq: &'a mut [T],
    /// `[.., key_len, d]`, 1 for dimensions along which `k` has the stride 0.
    pub dk: &'a mut [T],
    /// `[.., key_len, dv]`, as for `dk`.
    pub dv: &'a mut [T],
    /// `[rows, 1 or W, 1 or J]`: there where [`BackwardInputs::bias_gradient`] asks for it and the problem has a bias.
    pub dattn_bias: Option<&'a mut [T]>,
}

impl Cpu {
    pub(super) fn backward_f32<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
    ) -> Result<Gradients<T>, RunError> {
        problem.check_backward(inputs, saved)?;
        let shapes = Shapes::new(problem, inputs, saved);
        let mut dq = self.fresh(problem, "dq", &shapes.dq)?;
        let mut dk = self.fresh(problem, "dk", &shapes.dk)?;
        let mut dv = self.fresh(problem, "dv", &shapes.dv)?;
        let mut bias = shapes.bias.as_deref().map(|b| zeros("dattn_bias", b)).transpose()?;
        let to =
            GradientsMut { dq: &mut dq, dk: &mut dk, dv: &mut dv, dattn_bias: bias.as_deref_mut() };
        self.write_backward(problem, inputs, saved, call, (&shapes, to))?;
        let gradient = |data, shape| Gradient { data, shape };
        Ok(Gradients {
            dq: gradient(dq, shapes.dq),
            dk: gradient(dk, shapes.dk),
            dv: gradient(dv, shapes.dv),
            dattn_bias: bias.zip(shapes.bias).map(|(data, shape)| gradient(data, shape)),
        })
    }

    /// [`Engine::backward`](crate::Engine::backward) into the caller's memory, whatever it holds. With f32 tensors what
    /// it allocates does not grow with the sequence, unless there is a bias.
    ///
    /// # Errors
    /// As there, and results of another length than the problem's.
    pub fn backward_into<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
        to: GradientsMut<'_, T>,
    ) -> Result<(), RunError> {
        problem.check_backward(inputs, saved)?;
        let shapes = Shapes::new(problem, inputs, saved);
        match (&to.dattn_bias, &shapes.bias) {
            (None, Some(_)) => return Err(RunError::MissingTensor { tensor: "dattn_bias" }),
            (Some(_), None) => return Err(RunError::UnexpectedTensor { tensor: "dattn_bias" }),
            _ => {}
        }
        let bias = shapes.bias.as_deref().unwrap_or(&[0]);
        for (result, got, shape) in [
            ("dq", to.dq.len(), &shapes.dq[..]),
            ("dk", to.dk.len(), &shapes.dk),
            ("dv", to.dv.len(), &shapes.dv),
            ("dattn_bias", to.dattn_bias.as_ref().map_or(0, |b| b.len()), bias),
        ] {
            let expected = saturating_product(shape);
            if got as u128 != expected {
                return Err(RunError::ResultLength { result, got, expected });
            }
        }
        for keys in [&mut *to.dk, &mut *to.dv] {
            self.fill(problem, keys)?;
        }
        self.write_backward(problem, inputs, saved, call, (&shapes, to))
    }

    /// Writes dq, adds to dk and dv, which are zeros, and writes dattn_bias; all have their lengths.
    fn write_backward<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
        (shapes, to): (&Shapes, GradientsMut<'_, T>),
    ) -> Result<(), RunError> {
        let shape = &problem.shape;
        if to.dq.is_empty() {
            to.dattn_bias.into_iter().for_each(|bias| bias.fill(T::default()));
            return Ok(());
        }
        let (d, width, keys) = (shape.head_dim, shape.value_dim, shape.key_len);
        let job = Job::new(problem, inputs, KeepMask::new(problem.dropout, call))?;
        let blocks = Blocks::new(problem, shape.query.clone());
        let dq = Parts::new(to.dq, d);
        let rows = (&shapes.k_rows, &shapes.v_rows);
        let key_rows =
            |dk, dv| (KeyRows::new(dk, rows.0, keys, d), KeyRows::new(dv, rows.1, keys, width));
        match (T::as_f32_mut(to.dk), T::as_f32_mut(to.dv)) {
            (Some(dk), Some(dv)) => {
                let (dk, dv) = key_rows(dk, dv);
                self.each_block(&job, saved, &blocks, &Results { dq, dk, dv })?;
            }
            _ => {
                // Sums of many: rounded once.
                let mut sums_k: Vec<f32> = self.fresh(problem, "dk in f32", &shapes.dk)?;
                let mut sums_v: Vec<f32> = self.fresh(problem, "dv in f32", &shapes.dv)?;
                let (dk, dv) = key_rows(&mut sums_k, &mut sums_v);
                self.each_block(&job, saved, &blocks, &Results { dq, dk, dv })?;
                round(&sums_k, to.dk);
                round(&sums_v, to.dv);
            }
        }
        if let Some((to, bias)) = to.dattn_bias.zip(shape.bias) {
            round(&self.bias_back(&job, saved, &blocks, bias)?, to);
        }
        Ok(())
    }

    /// Zeros, written by all threads, into large pages where there are some: a tenth of small calls otherwise.
    fn fresh<T: Element>(
        &self,
        problem: &Problem,
        what: &'static str,
        dims: &[usize],
    ) -> Result<Vec<T>, RunError> {
        let (mut data, len) = reserve::<T>(what, dims)?;
        let spare = &mut data.spare_capacity_mut()[..len];
        pages::prefer_large(spare);
        self.fill_with(problem, spare, MaybeUninit::new(T::default()))?;
        // SAFETY: all of it was written.
        unsafe { data.set_len(len) };
        Ok(data)
    }

    /// Zeros, written by all threads.
    fn fill<T: Element>(&self, problem: &Problem, data: &mut [T]) -> Result<(), RunError> {
        self.fill_with(problem, data, T::default())
    }

    fn fill_with<T: Copy + Send + Sync>(
        &self,
        problem: &Problem,
        data: &mut [T],
        value: T,
    ) -> Result<(), RunError> {
        let parts: Vec<_> = data.chunks_mut(1 << 18).map(Mutex::new).collect();
        self.each(problem, parts.len(), |i| {
            parts[i].lock().unwrap_or_else(PoisonError::into_inner).fill(value);
            Ok(())
        })
    }

    /// Colour after colour: blocks of one colour gather different keys, so they may add to dk and dv at the same
    /// time. Rows that share keys come one after the other.
    fn each_block<T: Element<Accumulator = f32>>(
        &self,
        job: &Job<'_, T>,
        saved: &BackwardInputs<'_, T>,
        blocks: &Blocks<'_>,
        results: &Results<'_, T>,
    ) -> Result<(), RunError> {
        let groups = RowGroups::new(job.problem, job.inputs);
        let colours = blocks.colours();
        for colour in 0..colours {
            let first = blocks.first_of(colour, colours);
            let count = blocks.per_row().saturating_sub(first).div_ceil(colours);
            self.each(job.problem, groups.count * count, |task| {
                let number = first + task % count * colours;
                for row in groups.rows(task / count) {
                    let block = blocks.get(row * blocks.per_row() + number);
                    // SAFETY: every task has other queries.
                    let dq = unsafe { results.dq.of(blocks, &block) };
                    let (dk, dv) = (&results.dk, &results.dv);
                    Scratch::with_backward(job.problem, |scratch| {
                        self.isa.run(BackwardOp { job, saved, block, scratch, dq, dk, dv });
                    })?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

fn round<T: Element<Accumulator = f32>>(from: &[f32], to: &mut [T]) {
    to.iter_mut().zip(from).for_each(|(to, &x)| *to = T::store(x));
}

/// Where blocks write.
struct Results<'a, T> {
    dq: Parts<'a, T>,
    dk: KeyRows<'a>,
    dv: KeyRows<'a>,
}

/// Packed rows in groups, so that rows of different groups share no gradient of a key.
struct RowGroups {
    count: usize,
    /// The leading dimensions, and whether k or v is the same along one.
    dims: Vec<(usize, bool)>,
}

impl RowGroups {
    fn new<T: Element>(problem: &Problem, inputs: &HostInputs<'_, T>) -> Self {
        let dims: Vec<_> = if problem.kv_batch == 1 {
            vec![(problem.batch, true)]
        } else {
            // As many rows as q has: the same dimensions, or others of one product.
            let strides = inputs.k.strides().iter().zip(inputs.v.strides());
            let sizes = problem.shape.kv_leading.iter();
            sizes.zip(strides).map(|(&n, (&k, &v))| (n, k == 0 || v == 0)).collect()
        };
        let count = dims.iter().filter(|(_, shared)| !shared).map(|(n, _)| n).product();
        Self { count, dims }
    }

    /// The rows of a group, in their order.
    fn rows(&self, group: usize) -> impl Iterator<Item = usize> {
        let sharing: usize =
            self.dims.iter().filter(|(_, shared)| *shared).map(|(n, _)| n).product();
        (0..sharing).map(move |member| {
            let (mut group, mut member, mut row, mut step) = (group, member, 0, 1);
            for &(size, shared) in self.dims.iter().rev() {
                let from = if shared { &mut member } else { &mut group };
                row += *from % size * step;
                *from /= size;
                step *= size;
            }
            row
        })
    }
}
