//! Constructor arguments, set one by one: those that are not set keep the library's defaults.

use local_attention::{LocalAttentionConfig, ReferenceQuirks};
use wasm_bindgen::prelude::*;

/// What an attention is made from. Names are the reference's; JavaScript has checked that they and the types are
/// right, the library checks values.
#[wasm_bindgen]
pub struct Config {
    pub(crate) config: LocalAttentionConfig,
    pub(crate) quirks: ReferenceQuirks,
}

#[wasm_bindgen]
impl Config {
    #[wasm_bindgen(constructor)]
    pub fn new(window_size: f64) -> Self {
        let config = LocalAttentionConfig::new(window_size as i64);
        Self { config, quirks: ReferenceQuirks::ALL }
    }

    /// Sets a number. False where there is none of that name.
    pub fn number(&mut self, name: &str, value: f64) -> bool {
        let config = &mut self.config;
        match name {
            "look_backward" => config.look_backward = value as i64,
            "look_forward" => config.look_forward = Some(value as i64),
            "dim" => config.dim = Some(value as i64),
            "dropout" => config.dropout = value,
            "scale" => config.scale = Some(value),
            "xpos_scale_base" => config.xpos_scale_base = Some(value),
            _ => return false,
        }
        true
    }

    /// Switches something on or off. False where there is nothing of that name.
    pub fn flag(&mut self, name: &str, value: bool) -> bool {
        let (config, quirks) = (&mut self.config, &mut self.quirks);
        let flag = match name {
            "causal" => &mut config.causal,
            "shared_qk" => &mut config.shared_qk,
            "autopad" => &mut config.autopad,
            "exact_windowsize" => &mut config.exact_windowsize,
            "use_rotary_pos_emb" => &mut config.use_rotary_pos_emb,
            "use_xpos" => &mut config.use_xpos,
            "tail_aligned_rotary" => &mut quirks.tail_aligned_rotary,
            "visible_autopad_keys" => &mut quirks.visible_autopad_keys,
            "uniform_masked_rows" => &mut quirks.uniform_masked_rows,
            _ => return false,
        };
        *flag = value;
        true
    }

    /// Sets `rel_pos_emb_config`.
    pub fn rel_pos_emb_config(&mut self, values: &[f64]) {
        self.config.rel_pos_emb_config = Some(values.iter().map(|&x| x as i64).collect());
    }
}
