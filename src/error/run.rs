//! Calls that cannot be carried out.

use thiserror::Error;

/// A call that could not be carried out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RunError {
    /// A tensor of another shape than the problem was made for.
    #[error("{tensor} has shape {got:?}: this problem needs {expected:?}")]
    TensorShape {
        /// `q`, `k`, `v`, `mask`, `input_mask`, `attn_bias`, `out`, `lse` or `dout`.
        tensor: &'static str,
        /// The shape given.
        got: Vec<usize>,
        /// The shape the problem describes.
        expected: Vec<usize>,
    },
    /// A tensor that the problem describes and the call did not bring.
    #[error("{tensor} is missing: this problem and call need one")]
    MissingTensor {
        /// `mask`, `attn_bias`, `lse` or `dattn_bias`.
        tensor: &'static str,
    },
    /// A tensor that the call brought and the problem does not describe.
    #[error("{tensor} was given: this problem and call take none")]
    UnexpectedTensor {
        /// `mask`, `input_mask`, `attn_bias` or `dattn_bias`.
        tensor: &'static str,
    },
    /// Memory of the caller's for a result, of another length than the result.
    #[error("{result} has room for {got} elements: this problem's has {expected}")]
    ResultLength {
        /// `out`, `lse`, `dq`, `dk`, `dv` or `dattn_bias`.
        result: &'static str,
        /// Elements given.
        got: usize,
        /// Elements of the result, saturated.
        expected: u128,
    },
    /// A range of queries, for attention weights, outside the problem's.
    #[error(
        "queries is {start}..{end}: it must lie within {first}..{last}, the queries of the problem"
    )]
    Queries {
        /// First query asked for.
        start: usize,
        /// One past the last query asked for.
        end: usize,
        /// First query of the problem.
        first: usize,
        /// One past the last query of the problem.
        last: usize,
    },
    /// Memory for a result or for scratch that could not be had.
    #[error("{what} of {elements} elements could not be allocated")]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// How many elements, saturated.
        elements: u128,
    },
    /// A thread pool that could not be made.
    #[error("threads is {threads}: no pool of that size could be started ({reason})")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// An instruction set that this machine does not have.
    #[error("isa is {isa}: this machine has {available}")]
    Isa {
        /// The one asked for.
        isa: &'static str,
        /// Those present, by name.
        available: String,
    },
}
