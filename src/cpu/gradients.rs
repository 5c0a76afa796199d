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
use crate::gradients::SharedRows;
use crate::{BackwardInputs, Call, Element, Gradient, Gradients, HostInputs, Problem, RunError};

impl Cpu {
    pub(super) fn backward_f32<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        saved: &BackwardInputs<'_, T>,
        call: &Call,
    ) -> Result<Gradients<T>, RunError> {
        problem.check_backward(inputs, saved)?;
        let shape = &problem.shape;
        let (d, width, keys) = (shape.head_dim, shape.value_dim, shape.key_len);
        let queries = shape.query.len();
        let (k_rows, v_rows) = (SharedRows::new(&inputs.k), SharedRows::new(&inputs.v));
        let (mut dq, len) = reserve::<T>("dq", &[problem.batch, queries, d])?;
        let mut dk = self.zeros(problem, "dk", &[k_rows.rows(), keys, d])?;
        let mut dv = self.zeros(problem, "dv", &[v_rows.rows(), keys, width])?;
        let bias = shape.bias.filter(|_| saved.bias_gradient);
        let mut dattn_bias = Vec::new();
        if len > 0 {
            let job = Job::new(problem, inputs, KeepMask::new(problem.dropout, call))?;
            let blocks = Blocks::new(problem, shape.query.clone());
            let result = &mut dq.spare_capacity_mut()[..len];
            pages::prefer_large(result);
            let results = Results {
                dq: Parts::new(result, d),
                dk: KeyRows::new(&mut dk, &k_rows, keys, d),
                dv: KeyRows::new(&mut dv, &v_rows, keys, width),
            };
            self.each_block(&job, saved, &blocks, &results)?;
            // SAFETY: every block wrote its part, and blocks cover all of it.
            unsafe { dq.set_len(len) };
            if let Some(bias) = bias {
                dattn_bias = self.bias_back(&job, saved, &blocks, bias)?;
            }
        } else if let Some(b) = bias {
            dattn_bias = zeros("dattn_bias", &[b.rows, b.queries, b.slots])?;
        }
        let gradient = |data, shape| Gradient { data, shape };
        Ok(Gradients {
            dq: gradient(dq, [&shape.leading[..], &[queries, d]].concat()),
            dk: gradient(T::store_all(dk), k_rows.shape(keys, d)),
            dv: gradient(T::store_all(dv), v_rows.shape(keys, width)),
            dattn_bias: bias
                .map(|b| gradient(T::store_all(dattn_bias), vec![b.rows, b.queries, b.slots])),
        })
    }

    /// Zeros, written by all threads, into large pages where there are some: a tenth of small calls otherwise.
    fn zeros(
        &self,
        problem: &Problem,
        what: &'static str,
        dims: &[usize],
    ) -> Result<Vec<f32>, RunError> {
        let (mut data, len) = reserve::<f32>(what, dims)?;
        let spare = &mut data.spare_capacity_mut()[..len];
        pages::prefer_large(spare);
        let parts: Vec<_> = spare.chunks_mut(1 << 18).map(Mutex::new).collect();
        self.each(problem, parts.len(), |i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            part.fill(MaybeUninit::new(0.0));
            Ok(())
        })?;
        // SAFETY: all parts were written.
        unsafe { data.set_len(len) };
        Ok(data)
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

/// Where blocks write.
struct Results<'a, T> {
    dq: Parts<'a, MaybeUninit<T>>,
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
