//! What callers hold: a checked module and a checked problem.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::engine::reserve;
use crate::geometry::WindowGeometry;
use crate::rotary::{RotarySpec, RotaryTables, xpos_reach};
use crate::shape::{AttentionShape, BiasShape, MaskShape, bias_shape, mask_shape};
use crate::{ConfigError, HostInputs, LocalAttentionConfig, ReferenceQuirks, RunError, ShapeError};

/// The module: a configuration that has been checked, and the quirks to reproduce.
///
/// ```
/// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig, ReferenceQuirks};
///
/// let attention = LocalAttention::new(LocalAttentionConfig::new(5).causal(true))?
///     .with_quirks(ReferenceQuirks::NONE);
/// let problem = attention.problem(&AttentionShape::new([1], 100, 32))?;
/// assert_eq!(problem.out_shape(), [1, 100, 32]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LocalAttention {
    config: LocalAttentionConfig,
    quirks: ReferenceQuirks,
}

impl LocalAttention {
    /// Checks a configuration.
    ///
    /// # Errors
    /// What the reference rejects, and what it accepts by accident; see [`ConfigError`].
    pub fn new(config: LocalAttentionConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self { config, quirks: ReferenceQuirks::default() })
    }

    /// The same module with these artefacts of the reference on or off.
    #[must_use]
    pub fn with_quirks(mut self, quirks: ReferenceQuirks) -> Self {
        self.quirks = quirks;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &LocalAttentionConfig {
        &self.config
    }

    /// The artefacts of the reference that are on.
    pub fn quirks(&self) -> ReferenceQuirks {
        self.quirks
    }

    /// Whether queries and keys are rotated: `dim` (or the legacy `rel_pos_emb_config`) is set and
    /// `use_rotary_pos_emb` is on.
    pub fn rotary(&self) -> bool {
        matches!(self.config.rotary_dim(), Ok(Some(_)))
    }

    /// Checks the shapes of a call against the configuration.
    ///
    /// # Errors
    /// Shapes that do not fit; see [`ShapeError`].
    pub fn problem(&self, shape: &AttentionShape) -> Result<Problem, ShapeError> {
        let (batch, kv_batch) = shape.check_batch()?;
        let geometry = shape.check_geometry(&self.config, self.quirks)?;
        shape.check_broadcast(&geometry, batch, self.config.autopad)?;
        let rotary = self.rotary().then(|| RotarySpec {
            dim: shape.head_dim,
            xpos_scale_base: self.config.use_xpos.then(|| self.config.xpos_scale_base_or_default()),
        });
        Ok(Problem {
            scale: self.config.scale.unwrap_or_else(|| (shape.head_dim as f64).powf(-0.5)),
            dropout: self.config.dropout,
            shared_qk: self.config.shared_qk,
            uniform_masked_rows: self.quirks.uniform_masked_rows,
            shape: shape.clone(),
            batch,
            kv_batch,
            geometry,
            rotary,
            tables: Arc::default(),
        })
    }
}

/// A call that has been checked: who sees whom, and the shapes of every tensor. Needs no device.
///
/// Make it once for a shape and use it for every call of that shape: it keeps the rotary tables.
///
/// ```
/// use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
///
/// let attention = LocalAttention::new(LocalAttentionConfig::new(128).causal(true).dim(64))?;
/// let problem = attention.problem(&AttentionShape::new([2, 8], 1024, 64))?;
/// assert_eq!(problem.batch(), 16);
/// assert_eq!(problem.geometry().visible_range(300), 128..301);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Problem {
    pub(crate) shape: AttentionShape,
    pub(crate) batch: usize,
    pub(crate) kv_batch: usize,
    pub(crate) geometry: WindowGeometry,
    pub(crate) scale: f64,
    pub(crate) dropout: f64,
    pub(crate) shared_qk: bool,
    pub(crate) uniform_masked_rows: bool,
    pub(crate) rotary: Option<RotarySpec>,
    tables: Arc<OnceLock<RotaryTables<f32>>>,
}

/// Queries that share one block of rotated keys, at most.
pub(crate) const MAX_QUERY_BLOCK: usize = 256;

impl Problem {
    /// Who sees whom.
    pub fn geometry(&self) -> &WindowGeometry {
        &self.geometry
    }

    /// The shapes it was made from.
    pub fn shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// Product of the leading dimensions.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Shape of the output: q's leading dimensions, queries, value_dim.
    pub fn out_shape(&self) -> Vec<usize> {
        let shape = &self.shape;
        [&shape.leading[..], &[shape.query.len(), shape.value_dim]].concat()
    }

    /// Queries a block of the f32 engines may hold: all of one block is rotated about one centre.
    pub(crate) fn query_block(&self) -> usize {
        let (behind, ahead) = self.geometry.rotary_span();
        let reach = self.rotary.as_ref().map_or(usize::MAX, |spec| xpos_reach(spec, behind, ahead));
        reach.saturating_mul(2).clamp(1, MAX_QUERY_BLOCK)
    }

    /// The tables of the f32 engines, made at the first call. Rotation depends on differences of
    /// positions alone, so a block of queries counts positions from the first key it reads: keys
    /// take `0..span`, queries the same shifted.
    pub(crate) fn rotary_tables(&self) -> Result<Option<&RotaryTables<f32>>, RunError> {
        let Some(spec) = &self.rotary else { return Ok(None) };
        if let Some(tables) = self.tables.get() {
            return Ok(Some(tables));
        }
        let block = self.query_block() as i64;
        let shift = self.geometry.rotary_shift() as i64;
        let len = self.shape.seq_len.max(self.shape.key_len) as i64;
        // A block of queries may cross from one window into the next.
        let reach = (self.geometry.slots() + self.geometry.window()) as i64 + 2 * block;
        let span = len.min(reach);
        let positions = [0..span, shift..shift + span];
        let lags = [-block..block + 1, shift - span..shift + span + 1];
        let tables = RotaryTables::new(spec, &positions, &lags)?;
        // Of threads that made them at the same time, one keeps its own.
        Ok(Some(self.tables.get_or_init(|| tables)))
    }

    /// Checks the tensors of a call against the shapes of the problem.
    pub(crate) fn check_inputs<T: Clone>(
        &self,
        inputs: &HostInputs<'_, T>,
    ) -> Result<(), RunError> {
        let shape = &self.shape;
        let (q, kv) = (&shape.leading[..], &shape.kv_leading[..]);
        for (tensor, got, leading, last) in [
            ("q", inputs.q.shape(), q, [shape.query.len(), shape.head_dim]),
            ("k", inputs.k.shape(), kv, [shape.key_len, shape.head_dim]),
            ("v", inputs.v.shape(), kv, [shape.key_len, shape.value_dim]),
        ] {
            // No list is made of what is expected: a small call would notice.
            if got.strip_prefix(leading) != Some(&last) {
                let expected = [leading, &last].concat();
                return Err(RunError::TensorShape { tensor, got: got.to_vec(), expected });
            }
        }
        let mask = inputs.effective_mask().map(|m| m.shape());
        check_optional(inputs.mask_name(), mask, shape.mask, mask_shape, |m: MaskShape| {
            vec![m.rows, m.len]
        })?;
        let bias = inputs.attn_bias.as_ref().map(|b| b.shape());
        check_optional("attn_bias", bias, shape.bias, bias_shape, |b: BiasShape| {
            vec![b.rows, b.queries, b.slots]
        })
    }

    /// Checks a range of queries for attention weights.
    pub(crate) fn check_queries(&self, queries: &Range<usize>) -> Result<(), RunError> {
        let all = &self.shape.query;
        if queries.start > queries.end || queries.start < all.start || queries.end > all.end {
            return Err(RunError::Queries {
                start: queries.start,
                end: queries.end,
                first: all.start,
                last: all.end,
            });
        }
        Ok(())
    }

    /// For each slot of a query's window, the position it stands for.
    pub(crate) fn slot_positions(
        &self,
        queries: Range<usize>,
    ) -> Result<Vec<Option<usize>>, RunError> {
        let slots = self.geometry.slots();
        let (mut positions, _) = reserve("keys of attention weights", &[queries.len(), slots])?;
        for t in queries {
            let window = self.geometry.window_of(t);
            positions.extend((0..slots).map(|s| self.geometry.position_of(window, s)));
        }
        Ok(positions)
    }
}

fn check_optional<S: PartialEq + Copy>(
    tensor: &'static str,
    got: Option<&[usize]>,
    declared: Option<S>,
    parse: impl Fn(&'static str, &[usize]) -> Result<S, ShapeError>,
    dims: impl Fn(S) -> Vec<usize>,
) -> Result<(), RunError> {
    match (got, declared) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(RunError::MissingTensor { tensor }),
        (Some(_), None) => Err(RunError::UnexpectedTensor { tensor }),
        (Some(got), Some(declared)) if parse(tensor, got) != Ok(declared) => {
            Err(RunError::TensorShape { tensor, got: got.to_vec(), expected: dims(declared) })
        }
        _ => Ok(()),
    }
}
