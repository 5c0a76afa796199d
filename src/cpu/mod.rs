//! The CPU engine: threads over blocks of queries, SIMD inside, no score matrix.
//!
//! A block of queries reads the keys that some of its queries see, 256 at a time:
//! each key is normalised, rotated and packed once a block, logits live in one small tile, and the
//! softmax is carried along online. Results do not depend on the number of threads, nor on how the
//! queries are cut into calls.

mod ahead;
mod backward;
mod bias_back;
mod block;
mod by_logits;
mod forward;
mod gradients;
mod kernel;
mod keys;
mod pack;
mod pages;
mod rows;
mod scratch;
mod simd;
mod weights;

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use rayon::prelude::*;

use crate::dropout::KeepMask;
use crate::engine::{reserve, zeros};
use crate::shape::saturating_product;
use crate::{
    BackwardInputs, Call, Element, Engine, Forward, Gradients, HostInputs, Problem, RunError,
    Weights,
};
use block::{Blocks, Job, Parts};
use forward::ForwardOp;
pub use gradients::GradientsMut;
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
    threads: Threads,
    isa: Available,
}

/// Who computes.
#[derive(Debug, Clone)]
enum Threads {
    /// rayon's global pool.
    Global,
    Pool(Arc<rayon::ThreadPool>),
    /// The thread that calls.
    Caller,
}

/// Whether rayon's global pool is there, or could be started: rayon panics otherwise.
fn global_works() -> bool {
    #[cfg(not(target_family = "wasm"))]
    {
        use std::error::Error;
        static WORKS: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        // An error with no other behind it says that there is one already.
        *WORKS.get_or_init(|| match rayon::ThreadPoolBuilder::new().build_global() {
            Ok(()) => true,
            Err(e) => e.source().is_none(),
        })
    }
    // It is the thread that calls there.
    #[cfg(target_family = "wasm")]
    true
}

impl Cpu {
    /// On rayon's global thread pool; on the thread that calls where the system starts no threads for that.
    pub fn new() -> Self {
        Self { threads: Threads::Global, isa: Available::best() }
    }

    /// On a thread pool of its own; with one thread, on the thread that calls.
    ///
    /// # Errors
    /// [`RunError::Threads`] for 0 or more than 1024, or where the system starts no more threads.
    pub fn with_threads(threads: usize) -> Result<Self, RunError> {
        let fail = |reason: String| RunError::Threads { threads, reason };
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(fail(format!("1 to {MAX_THREADS} are allowed")));
        }
        if threads == 1 {
            return Ok(Self { threads: Threads::Caller, ..Self::new() });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| fail(e.to_string()))?;
        Ok(Self::with_pool(Arc::new(pool)))
    }

    /// On the caller's thread pool.
    pub fn with_pool(pool: Arc<rayon::ThreadPool>) -> Self {
        Self { threads: Threads::Pool(pool), ..Self::new() }
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
        match &self.threads {
            Threads::Global if global_works() => rayon::current_num_threads(),
            Threads::Pool(pool) => pool.current_num_threads(),
            Threads::Global | Threads::Caller => 1,
        }
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
        let small =
            products.saturating_mul((shape.head_dim as u128) + (shape.value_dim as u128)) < SMALL;
        match &self.threads {
            Threads::Pool(pool) if !small => {
                pool.install(|| (0..tasks).into_par_iter().try_for_each(work))
            }
            Threads::Global if !small && global_works() => {
                (0..tasks).into_par_iter().try_for_each(work)
            }
            _ => (0..tasks).try_for_each(work),
        }
    }

    /// [`Engine::forward`] into the caller's memory: `out` row-major `[.., query, dv]`, and `lse`
    /// `[.., query]`, which is not empty where the problem was made with one. What it allocates does
    /// not grow with the sequence, rotary tables at a problem's first call aside.
    ///
    /// ```
    /// use local_attention::cpu::Cpu;
    /// use local_attention::{
    ///     AttentionShape, Call, HostInputs, HostTensor, LocalAttention, LocalAttentionConfig,
    /// };
    ///
    /// let x = HostTensor::new(vec![0.5_f32; 6 * 4], [6, 4])?;
    /// let inputs = HostInputs::new(x.clone(), x.clone(), x);
    /// let attention = LocalAttention::new(LocalAttentionConfig::new(3))?;
    /// let problem = attention.problem(&AttentionShape::from_inputs(&inputs)?)?;
    /// let mut out = vec![0.0; 6 * 4];
    /// Cpu::new().forward_into(&problem, &inputs, &Call::default(), &mut out, &mut [])?;
    /// assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`Engine::forward`], and results of another length than the problem's.
    pub fn forward_into<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
        out: &mut [T],
        lse: &mut [f32],
    ) -> Result<(), RunError> {
        problem.check_inputs(inputs)?;
        let shape = &problem.shape;
        let queries = saturating_product(&[problem.batch, shape.query.len()]);
        for (result, got, expected) in [
            ("out", out.len(), queries.saturating_mul(shape.value_dim as u128)),
            ("lse", lse.len(), if shape.lse { queries } else { 0 }),
        ] {
            if got as u128 != expected {
                return Err(RunError::ResultLength { result, got, expected });
            }
        }
        let (at, len) = (out.as_mut_ptr().cast::<MaybeUninit<T>>(), out.len());
        // SAFETY: the same elements, which nothing but elements is written to.
        let out = unsafe { std::slice::from_raw_parts_mut(at, len) };
        self.write_forward(problem, inputs, call, out, lse)
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
        let result = &mut out.spare_capacity_mut()[..len];
        pages::prefer_large(result);
        // Written by the threads that compute it: no pass over it before.
        self.write_forward(problem, inputs, call, result, &mut lse)?;
        // SAFETY: all of it was written.
        unsafe { out.set_len(len) };
        Ok(Forward { out, shape: problem.out_shape(), lse: shape.lse.then_some(lse) })
    }

    /// Writes every element of `out` and `lse`, which are as long as the problem's.
    fn write_forward<T: Element<Accumulator = f32>>(
        &self,
        problem: &Problem,
        inputs: &HostInputs<'_, T>,
        call: &Call,
        out: &mut [MaybeUninit<T>],
        lse: &mut [f32],
    ) -> Result<(), RunError> {
        // Without a result there is nothing to prepare either, however vast the features.
        if out.is_empty() && lse.is_empty() {
            return Ok(());
        }
        let shape = &problem.shape;
        let job = Job::new(problem, inputs, KeepMask::new(problem.dropout, call))?;
        let blocks = Blocks::new(problem, shape.query.clone());
        let out = Parts::new(out, shape.value_dim);
        let lse = Parts::new(lse, usize::from(shape.lse));
        // The blocks cover all rows and queries, and each block writes its part.
        self.each(problem, blocks.count(), |task| {
            let block = blocks.get(task);
            // SAFETY: every task is a block of its own.
            let (out, lse) = unsafe { (out.of(&blocks, &block), lse.of(&blocks, &block)) };
            Scratch::with(problem, |scratch| {
                self.isa.run(ForwardOp { job: &job, block, scratch, out, lse });
            })
        })
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

            fn backward(
                &self,
                problem: &Problem,
                inputs: &HostInputs<'_, $element>,
                saved: &BackwardInputs<'_, $element>,
                call: &Call,
            ) -> Result<Gradients<$element>, RunError> {
                self.backward_f32(problem, inputs, saved, call)
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
