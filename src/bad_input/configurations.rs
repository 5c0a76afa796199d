use super::*;

#[test]
fn configurations() {
    let rejected = |c| LocalAttention::new(c).unwrap_err();
    let nan = f64::NAN;
    assert_rows(
        CONFIG,
        config_variant,
        vec![
            ("WindowSize", "window_size is 0", rejected(config(0))),
            ("WindowSize", "window_size is -1", rejected(config(-1))),
            (
                "LookBackward",
                "look_backward is -1",
                rejected(config(4).look_backward(-1).look_forward(1)),
            ),
            ("LookForward", "look_forward is -2", rejected(config(4).look_forward(-2))),
            (
                "LookForward",
                "look_forward is -1",
                rejected(config(4).causal(true).look_forward(-1)),
            ),
            (
                "CausalLookForward",
                "look_forward is 1",
                rejected(config(4).causal(true).look_forward(1)),
            ),
            ("Dropout", "dropout is 1", rejected(config(4).dropout(1.0))),
            ("Dropout", "dropout is -0.1", rejected(config(4).dropout(-0.1))),
            ("Dropout", "dropout is NaN", rejected(config(4).dropout(nan))),
            ("RotaryDim", "dim is 3", rejected(config(4).dim(3))),
            ("RotaryDim", "dim is 0", rejected(config(4).dim(0))),
            ("RotaryDim", "dim is -2", rejected(config(4).dim(-2))),
            (
                "RotaryDim",
                "rel_pos_emb_config[0] is 5",
                rejected(config(4).dim(8).rel_pos_emb_config(vec![5, 1])),
            ),
            (
                "RelPosEmbConfigEmpty",
                "rel_pos_emb_config is []",
                rejected(config(4).dim(8).rel_pos_emb_config(vec![])),
            ),
            ("Scale", "scale is NaN", rejected(config(4).scale(nan))),
            ("Scale", "scale is inf", rejected(config(4).scale(f64::INFINITY))),
            (
                "XposScaleBase",
                "xpos_scale_base is 0",
                rejected(config(4).dim(8).use_xpos(true).xpos_scale_base(0.0)),
            ),
            ("XposScaleBase", "window_size // 2", rejected(config(1).dim(8).use_xpos(true))),
            (
                "XposScaleBase",
                "xpos_scale_base is NaN",
                rejected(config(4).dim(8).use_xpos(true).xpos_scale_base(nan)),
            ),
        ],
    );
    // Only what is in effect is rejected.
    for accepted in [
        config(4).dim(3).use_rotary_pos_emb(false),
        config(4).rel_pos_emb_config(vec![]).use_rotary_pos_emb(false),
        config(4).dim(3).rel_pos_emb_config(vec![8]),
        config(4).dim(8).xpos_scale_base(0.0),
        config(1).use_xpos(true),
        config(4).dim(8).use_xpos(true).xpos_scale_base(-8.0),
        config(4).scale(0.0).dropout(0.999),
        config(4).causal(true).look_forward(0).look_backward(0),
    ] {
        LocalAttention::new(accepted).unwrap();
    }
}
