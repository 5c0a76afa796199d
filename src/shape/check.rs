//! Every check on shapes: against each other, the configuration and what engines can count.

use super::{AttentionShape, MAX_POSITIONS};
use crate::geometry::{Lengths, WindowGeometry};
use crate::tensor::elements;
use crate::{LocalAttentionConfig, ReferenceQuirks, ShapeError};

impl AttentionShape {
    /// The packed batch `B`, and 1 or `B` for k and v.
    pub(crate) fn check_batch(&self) -> Result<(usize, usize), ShapeError> {
        let product = |argument, dims: &[usize]| {
            elements(dims).filter(|&b| u32::try_from(b).is_ok()).ok_or_else(|| {
                ShapeError::TooLarge {
                    argument,
                    got: saturating_product(dims),
                    max: u128::from(u32::MAX),
                }
            })
        };
        let batch = product("the packed batch of q", &self.leading)?;
        let kv_batch = product("the packed batch of k and v", &self.kv_leading)?;
        if kv_batch != batch && kv_batch != 1 {
            return Err(ShapeError::KvBatch { got: kv_batch, batch });
        }
        Ok((batch, kv_batch))
    }

    /// Windows and lengths, checked against the configuration and each other.
    pub(crate) fn check_geometry(
        &self,
        config: &LocalAttentionConfig,
        quirks: ReferenceQuirks,
    ) -> Result<WindowGeometry, ShapeError> {
        for (argument, got) in [("seq_len", self.seq_len), ("head_dim", self.head_dim)] {
            if got == 0 {
                return Err(ShapeError::Zero { argument });
            }
        }
        let window = match self.window {
            Some(got) if !config.use_xpos => return Err(ShapeError::WindowNeedsXpos { got }),
            Some(got) if got < 1 => return Err(ShapeError::Window { got }),
            Some(window) => window,
            None => config.window_size,
        };
        let windows =
            i128::from(config.look_backward) + 1 + i128::from(config.look_forward_or_default());
        limit(
            "(look_backward + 1 + look_forward) * window_size",
            windows.saturating_mul(i128::from(window)) as u128,
        )?;
        let window = limit("window_size", window as u128)?;
        let multiple = if config.autopad { config.window_size as u128 } else { 1 };
        let pad = |len: usize| (len as u128).div_ceil(multiple) * multiple;
        let padded_len = limit("the padded sequence length", pad(self.seq_len))?;
        if !padded_len.is_multiple_of(window) {
            return Err(ShapeError::Indivisible {
                len: padded_len,
                window,
                overridden: self.window.is_some(),
            });
        }
        if pad(self.key_len) != padded_len as u128 {
            return Err(ShapeError::KeyLength {
                tensor: "k",
                got: self.key_len,
                // Here it divides padded_len, so it fits.
                multiple: multiple as usize,
                padded: padded_len,
            });
        }
        if self.query.start > self.query.end || self.query.end > self.seq_len {
            return Err(ShapeError::QueryRange {
                start: self.query.start,
                end: self.query.end,
                seq_len: self.seq_len,
            });
        }
        if let Ok(Some((_, dim))) = config.rotary_dim()
            && i64::try_from(self.head_dim) != Ok(dim)
        {
            return Err(ShapeError::RotaryDim { head_dim: self.head_dim, dim });
        }
        let lengths = Lengths { seq_len: self.seq_len, key_len: self.key_len, padded_len };
        Ok(WindowGeometry::new(config, quirks, window, lengths))
    }

    /// Mask and bias against the geometry.
    pub(crate) fn check_broadcast(
        &self,
        geometry: &WindowGeometry,
        batch: usize,
        autopad: bool,
    ) -> Result<(), ShapeError> {
        if let Some(mask) = self.mask {
            check_rows("mask (or input_mask)", mask.rows, batch)?;
            let (window, padded) = (geometry.window(), geometry.padded_len());
            let multiple = if autopad { window } else { 1 };
            if mask.len.div_ceil(multiple).checked_mul(multiple) != Some(padded) {
                return Err(ShapeError::MaskLength { got: mask.len, padded, window, autopad });
            }
        }
        if let Some(bias) = self.bias {
            check_rows("attn_bias", bias.rows, batch)?;
            for (axis, got, expected) in
                [("query", bias.queries, geometry.window()), ("slot", bias.slots, geometry.slots())]
            {
                if got != 1 && got != expected {
                    return Err(ShapeError::BiasSize { axis, got, expected });
                }
            }
        }
        Ok(())
    }
}

fn check_rows(tensor: &'static str, got: usize, batch: usize) -> Result<(), ShapeError> {
    if got == 0 || !batch.is_multiple_of(got) {
        return Err(ShapeError::Rows { tensor, got, batch });
    }
    Ok(())
}

fn limit(argument: &'static str, got: u128) -> Result<usize, ShapeError> {
    if got > MAX_POSITIONS as u128 {
        return Err(ShapeError::TooLarge { argument, got, max: MAX_POSITIONS as u128 });
    }
    Ok(got as usize)
}

pub(crate) fn saturating_product(dims: &[usize]) -> u128 {
    dims.iter().fold(1_u128, |n, &d| n.saturating_mul(d as u128))
}
