//! The CPU engine: threads over blocks of queries, SIMD inside, no score matrix.
//!
//! A block of queries reads the keys that some of its queries see, 256 at a time:
//! each key is normalised, rotated and packed once a block, logits live in one small tile, and the
//! softmax is carried along online. Results do not depend on the number of threads, nor on how the
//! queries are cut into calls.

mod block;
mod forward;
mod kernel;
mod pack;
mod rows;
mod scratch;
mod simd;
mod weights;

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use rayon::prelude::*;

use crate::dropout::KeepMask;
use crate::engine::{reserve, zeros};
use crate::shape::saturating_product;
use crate::{Call, Element, Engine, Forward, HostInputs, Problem, RunError, Weights};
use block::{Blocks, Job, Parts};
use forward::ForwardOp;
use scratch::Scratch;
use simd::Available;
pub use simd::Isa;

/// Products below which a call is computed by the thread that makes it: about 50 microseconds.
const SMALL: u128 = 1 << 21;

/// Threads of a pool, at most: waking more of them takes longer than they save.
const MAX_THREADS: usize = 1024;

/// The CPU engine.
///
/// Uses rayon's global thread pool unless told otherwise, and the best instruction set of the
/// machine. Cheap to make and to clone.
///
/// ```
/// use local_attention::cpu::Cpu;
///
/// let engine = Cpu::with_threads(2)?;
/// assert_eq!(engine.threads(), 2);
/// println!("{} threads, {}", engine.threads(), engine.isa());
/// # Ok::<(), local_attention::RunError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Cpu {
    pool: Option<Arc<rayon::ThreadPool>>,
    isa: Available,
}

impl Cpu {
    /// On rayon's global thread pool.
    pub fn new() -> Self {
        Self { pool: None, isa: Available::best() }
    }

    /// On a thread pool of its own.
    ///
    /// # Errors
    /// [`RunError::Threads`] for 0 or more than 1024, or where the system starts no more threads.
    pub fn with_threads(threads: usize) -> Result<Self, RunError> {
        let fail = |reason: String| RunError::Threads { threads, reason };
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(fail(format!("1 to {MAX_THREADS} are allowed")));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| fail(e.to_string()))?;
        Ok(Self::with_pool(Arc::new(pool)))
    }

    /// On the caller's thread pool.
    pub fn with_pool(pool: Arc<rayon::ThreadPool>) -> Self {
        Self { pool: Some(pool), ..Self::new() }
    }

    /// The same engine with another instruction set, to compare or to reproduce results.
    ///
    /// # Errors
    /// [`RunError::Isa`] where the machine does not have it.
    pub fn with_isa(mut self, isa: Isa) -> Result<Self, RunError> {
        self.isa = isa.check()?;
        Ok(self)
    }

    /// Threads it computes on.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |p| p.current_num_threads())
    }

    /// The instruction set it uses.
    pub fn isa(&self) -> Isa {
        self.isa.isa()
    }

    /// Carries out tasks on the pool of this engine, or here where waking it would take longer.
    fn each(
        &self,
        problem: &Problem,
        tasks: usize,
        work: impl Fn(usize) -> Result<(), RunError> + Send + Sync,
    ) -> Result<(), RunError> {
        let shape = &problem.shape;
        let keys = problem.geometry.slots().min(shape.key_len) as u128;
        let products = saturating_product(&[problem.batch, shape.query.len()]) * keys;
        if products.saturating_mul((shape.head_dim as u128) + (shape.value_dim as u128)) < SMALL {
            return (0..tasks).try_for_each(work);
        }
        let tasks = (0..tasks).into_par_iter();
        match &self.pool {
            Some(pool) => pool.install(|| tasks.try_for_each(work)),
            None => tasks.try_for_each(work),
        }
    }

    fn forward_f32<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
    ) -> Result<Forward<T>, RunError> {
        problem.check_inputs(inputs)?;
        let shape = &problem.shape;
        let (rows, queries) = (problem.batch, shape.query.len());
        let (mut out, len) = reserve::<T>("out", &[rows, queries, shape.value_dim])?;
        let mut lse: Vec<f32> = zeros("lse", &[rows, if shape.lse { queries } else { 0 }])?;
        // Without a result there is nothing to prepare either, however vast the features.
        if len > 0 || !lse.is_empty() {
            let job = Job::new(problem, inputs, KeepMask::new(problem.dropout, call))?;
            let blocks = Blocks::new(problem, shape.query.clone());
            // Written by the threads that compute it: no pass over it before.
            let out = Parts::new(&mut out.spare_capacity_mut()[..len], shape.value_dim);
            let lse = Parts::new(&mut lse, usize::from(shape.lse));
            self.each(problem, blocks.count(), |task| {
                let block = blocks.get(task);
                // SAFETY: every task is a block of its own.
                let (out, lse) = unsafe { (out.of(&blocks, &block), lse.of(&blocks, &block)) };
                Scratch::with(problem, |scratch| {
                    self.isa.run(ForwardOp { job: &job, block, scratch, out, lse });
                })
            })?;
        }
        // SAFETY: the blocks cover all rows and queries, and each block has written its part.
        unsafe { out.set_len(len) };
        Ok(Forward { out, shape: problem.out_shape(), lse: shape.lse.then_some(lse) })
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The engine for one element type.
macro_rules! engine {
    ($($element:ty),*) => {$(
        impl Engine<$element> for Cpu {
            fn forward(
                &self,
                problem: &Problem,
                inputs: &HostInputs<'_, $element>,
                call: &Call,
            ) -> Result<Forward<$element>, RunError> {
                self.forward_f32(problem, inputs, call)
            }

            fn weights(
                &self,
                problem: &Problem,
                inputs: &HostInputs<'_, $element>,
                queries: Range<usize>,
            ) -> Result<Weights<$element>, RunError> {
                self.weights_f32(problem, inputs, queries)
            }
        }
    )*};
}

engine!(f32, f16);
