//! What can go wrong with a device.

use thiserror::Error;

use crate::RunError;

/// A device that cannot be had, or that failed.
///
/// ```no_run
/// use local_attention::gpu::{DeviceError, Gpu, RequestOptions};
///
/// match Gpu::request_blocking(&RequestOptions::adapter("no such name")) {
///     Err(DeviceError::NoAdapter { present, .. }) => println!("there are {present:?}"),
///     other => println!("{other:?}"),
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// No adapter, or none of the name asked for.
    #[error("there is no adapter {asked}: {}", if .present.is_empty() { "none is present".to_owned() } else { format!("present: {}", .present.join(", ")) })]
    NoAdapter {
        /// What was asked for.
        asked: String,
        /// The adapters there are.
        present: Vec<String>,
    },
    /// An adapter that gave no device.
    #[error("adapter {adapter} gave no device: {reason}")]
    Request {
        /// Its name.
        adapter: String,
        /// What it said.
        reason: String,
    },
    /// The device is gone: make another `Gpu`.
    #[error("the device was lost while {doing}: {reason}")]
    Lost {
        /// What was being done.
        doing: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// Memory of the device ran out.
    #[error("the device has no memory for {doing}: {reason}")]
    OutOfMemory {
        /// What was being done.
        doing: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The device refused what it was asked for.
    #[error("the device refused {doing}: {reason}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        reason: String,
    },
}

/// A problem that no kernel carries out on this device.
///
/// ```
/// use local_attention::gpu::PlanError;
///
/// let error = PlanError::HeadDim { got: 300, max: 256 };
/// assert_eq!(error.to_string(), "head_dim is 300: the GPU engine takes at most 256");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Features that do not fit the largest tile.
    #[error("head_dim is {got}: the GPU engine takes at most {max}")]
    HeadDim {
        /// The size given.
        got: usize,
        /// The largest one.
        max: usize,
    },
    /// A limit of the device below what the smallest kernel needs.
    #[error("{limit} is {got} on this device: the GPU engine needs at least {needed}")]
    Limit {
        /// The limit's name.
        limit: &'static str,
        /// The device's.
        got: u64,
        /// What is needed.
        needed: u64,
    },
    /// Windows that take more turns of loops than the adapter has: Mesa's llvmpipe ends the loops of a
    /// thread after 65,535 turns, and results would be wrong; others would take seconds for a thread.
    #[error(
        "windows of this size take up to {needed} turns of a thread's loops: this adapter has {max}; use another adapter or the CPU engine"
    )]
    LoopTurns {
        /// What is needed, at most.
        needed: u64,
        /// The adapter's.
        max: u64,
    },
    /// One query or one row that is larger than a binding of the device.
    #[error(
        "{tensor} needs {needed} bytes for one query range: a binding of this device has at most {max}"
    )]
    LayoutExceedsBinding {
        /// The tensor.
        tensor: &'static str,
        /// Bytes of the smallest part.
        needed: u64,
        /// The largest binding.
        max: u64,
    },
    /// Memory that could not be had, on the host.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A pipeline that the device does not compile, or memory it does not have.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Tensors that do not fit a plan.
///
/// ```
/// use local_attention::gpu::BindError;
///
/// let error = BindError::Overlap { output: "out", input: "q" };
/// assert_eq!(error.to_string(), "out overlaps q: results need memory of their own");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BindError {
    /// A tensor of another shape than the plan's.
    #[error("{tensor} has shape {got:?}: this plan needs {expected:?}")]
    Shape {
        /// The tensor.
        tensor: &'static str,
        /// The shape given.
        got: Vec<usize>,
        /// The shape planned.
        expected: Vec<usize>,
    },
    /// Strides that are not one a dimension.
    #[error("{tensor} has strides {got:?}: one for each of its {dims} dimensions is needed")]
    Strides {
        /// The tensor.
        tensor: &'static str,
        /// The strides given.
        got: Vec<i64>,
        /// Dimensions of the tensor.
        dims: usize,
    },
    /// A tensor that is missing, or one too many.
    #[error("{tensor} is {}", if *.given { "given: the problem was made without one" } else { "missing: this plan needs one" })]
    Presence {
        /// `mask`, `attn_bias`, `lse` or `dattn_bias`.
        tensor: &'static str,
        /// Whether it was given.
        given: bool,
    },
    /// A tensor of another type than the plan's.
    #[error("{tensor} is {got}: this plan needs {needed}")]
    Dtype {
        /// The tensor.
        tensor: &'static str,
        /// The type given.
        got: &'static str,
        /// The types that fit.
        needed: &'static str,
    },
    /// An offset or a stride that the plan's kernel cannot read.
    #[error("{tensor} has {what} {got}: {allowed}")]
    Layout {
        /// The tensor.
        tensor: &'static str,
        /// What does not fit.
        what: &'static str,
        /// Its value.
        got: i128,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// A buffer that ends before its tensor.
    #[error("{tensor} ends {needed} bytes into its buffer, which has {got}")]
    BufferSize {
        /// The tensor.
        tensor: &'static str,
        /// The buffer's bytes.
        got: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// A buffer that was not made for storage.
    #[error("{tensor} lies in a buffer with usages {got}: STORAGE is needed")]
    Usage {
        /// The tensor.
        tensor: &'static str,
        /// The usages given.
        got: String,
    },
    /// A result in the memory of another tensor, from the first byte of each to its last.
    #[error("{output} overlaps {input}: results need memory of their own")]
    Overlap {
        /// `out` or `lse`, or a gradient.
        output: &'static str,
        /// The other tensor.
        input: &'static str,
    },
    /// An `lse` in the buffer of an input that is not `out`'s too.
    #[error(
        "{output} shares a buffer with {input}, and out lies in another: put {output} into a buffer of its own, or into out's"
    )]
    Aliasing {
        /// `lse`.
        output: &'static str,
        /// The other tensor.
        input: &'static str,
    },
    /// More dimensions than kernels count.
    #[error("the leading dimensions of {tensor} are {got} that do not merge: at most {max} are allowed{}", if *.max == 1 { " where k and v have others than q" } else { "" })]
    Rank {
        /// The tensor, or `all` of them together.
        tensor: &'static str,
        /// Dimensions left after merging.
        got: usize,
        /// How many kernels count.
        max: usize,
    },
    /// A workspace without a free slot: submit, then `recall`, or make a larger one.
    #[error(
        "the workspace has {slots} slots, {used} in use, and {needed} are needed: recall() it after a submit, or make a larger one"
    )]
    NoSlot {
        /// Its size.
        slots: usize,
        /// Slots in use.
        used: usize,
        /// Slots needed.
        needed: usize,
    },
    /// A workspace of another `Gpu` than the plan's: clones of one are the same.
    #[error("the workspace was made by another Gpu than the plan")]
    WorkspaceGpu,
    /// A workspace other than the one it was bound with.
    #[error("the workspace is not the one that the tensors were bound with")]
    Workspace,
    /// The tensors cannot be cut into parts that fit the device.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What the device said.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A call of the GPU engine that failed.
///
/// ```
/// use local_attention::gpu::{DeviceError, GpuError};
///
/// let lost = DeviceError::Lost { doing: "a call", reason: "removed".into() };
/// // Another device is needed; other errors leave this one as it was.
/// assert!(matches!(GpuError::from(lost), GpuError::Device(DeviceError::Lost { .. })));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GpuError {
    /// Tensors that are not what the problem describes, or host memory that cannot be had.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A problem that no kernel carries out.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Tensors that do not fit the plan.
    #[error(transparent)]
    Bind(BindError),
    /// A device that failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<BindError> for GpuError {
    /// A problem or a device is what it is, whichever step found out.
    fn from(error: BindError) -> Self {
        match error {
            BindError::Plan(e) => Self::Plan(e),
            BindError::Device(e) => Self::Device(e),
            e => Self::Bind(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A type's variants, by a match that does not build without one of them.
    macro_rules! variants {
        ($($type:ident: $($variant:ident),*;)*) => {{
            $(let _ = |e: &$type| match e { $($type::$variant { .. } => (),)* };)*
            vec![$($(concat!(stringify!($type), "::", stringify!($variant))),*),*]
        }};
    }

    /// The tests on devices cause each variant that their list has: it has them all.
    #[test]
    fn the_list_of_errors_is_complete() {
        let all = variants! {
            DeviceError: NoAdapter, Request, Lost, OutOfMemory, Refused;
            PlanError: HeadDim, Limit, LoopTurns, LayoutExceedsBinding, Run, Device;
            BindError: Shape, Strides, Presence, Dtype, Layout, BufferSize, Usage, Overlap, Aliasing,
                Rank, NoSlot, WorkspaceGpu, Workspace, Plan, Device;
            GpuError: Run, Plan, Bind, Device;
        };
        let list = include_str!("../../tests/gpu_suite/errors.txt");
        let listed: Vec<_> = list.lines().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(listed, all);
    }
}
