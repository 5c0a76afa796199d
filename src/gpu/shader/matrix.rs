//! Matrix units: which products they compute.

use std::fmt;

/// Square matrices of f16 that a subgroup multiplies, with sums in f32: what wgpu calls cooperative matrices.
///
/// ```
/// use local_attention::gpu::Matrix;
///
/// assert!(Matrix::ALL.iter().any(|m| m.side == 8 && m.lanes == 8));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Matrix {
    /// Rows, and columns.
    pub side: u32,
    /// Threads of a subgroup.
    pub lanes: u32,
    /// Browsers have none, and no code for any.
    #[cfg(target_arch = "wasm32")]
    never: std::convert::Infallible,
}

impl Matrix {
    /// Those that there are kernels for.
    #[cfg(target_arch = "wasm32")]
    pub const ALL: [Self; 0] = [];
    /// Those that there are kernels for.
    #[cfg(not(target_arch = "wasm32"))]
    pub const ALL: [Self; 4] = [
        Self { side: 8, lanes: 8 },
        Self { side: 8, lanes: 32 },
        Self { side: 16, lanes: 32 },
        Self { side: 16, lanes: 64 },
    ];

    /// Subgroups of a workgroup: each has the queries of one matrix.
    const SUBGROUPS: u32 = 4;

    /// Queries of a workgroup.
    pub(super) fn queries(self) -> u32 {
        self.side * Self::SUBGROUPS
    }

    /// Threads of a workgroup.
    pub(super) fn threads(self) -> u32 {
        self.lanes * Self::SUBGROUPS
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "matrix{}x{}", self.side, self.lanes)
    }
}
