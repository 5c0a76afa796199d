//! Configurations and quirks as JSON, under the reference's own names.

use local_attention::{LocalAttentionConfig, ReferenceQuirks};
use serde_json::{from_str, from_value, json, to_value};

#[test]
fn every_argument_goes_there_and_back() {
    let config = LocalAttentionConfig::new(8)
        .causal(true)
        .look_backward(2)
        .look_forward(0)
        .dropout(0.25)
        .shared_qk(true)
        .rel_pos_emb_config(vec![16, 4])
        .dim(32)
        .autopad(true)
        .exact_windowsize(true)
        .scale(0.1)
        .use_rotary_pos_emb(false)
        .use_xpos(true)
        .xpos_scale_base(3.5);
    let text = to_value(&config).unwrap();
    let expected = json!({
        "window_size": 8, "causal": true, "look_backward": 2, "look_forward": 0, "dropout": 0.25,
        "shared_qk": true, "rel_pos_emb_config": [16, 4], "dim": 32, "autopad": true,
        "exact_windowsize": true, "scale": 0.1, "use_rotary_pos_emb": false, "use_xpos": true,
        "xpos_scale_base": 3.5,
    });
    assert_eq!(text, expected);
    assert_eq!(from_value::<LocalAttentionConfig>(text).unwrap(), config);
}

#[test]
fn defaults_are_the_references() {
    let config: LocalAttentionConfig = from_str(r#"{"window_size": 5}"#).unwrap();
    assert_eq!(config, LocalAttentionConfig::new(5));
    let null = r#"{"window_size": 5, "look_forward": null, "dim": null, "scale": null,
        "rel_pos_emb_config": null, "xpos_scale_base": null}"#;
    assert_eq!(from_str::<LocalAttentionConfig>(null).unwrap(), config);
    // Only the first element of the legacy argument means anything.
    let legacy = r#"{"window_size": 5, "rel_pos_emb_config": [8, null, "x", 3]}"#;
    let legacy: LocalAttentionConfig = from_str(legacy).unwrap();
    assert_eq!(legacy.rel_pos_emb_config, Some(vec![8, 3]));
}

#[test]
fn what_is_not_an_argument_is_an_error() {
    for (text, says) in [
        (r#"{}"#, "missing field `window_size`"),
        (r#"{"window_size": 5, "window": 3}"#, "unknown field `window`"),
        (r#"{"window_size": 5.5}"#, "expected i64"),
        (r#"{"window_size": 5, "causal": 1}"#, "expected a boolean"),
        (r#"{"window_size": 5, "rel_pos_emb_config": ["x"]}"#, "rel_pos_emb_config"),
    ] {
        let error = from_str::<LocalAttentionConfig>(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    // Read as it stands, and rejected with a typed error where it is used.
    assert_eq!(from_str::<LocalAttentionConfig>(r#"{"window_size": -1}"#).unwrap().window_size, -1);
}

#[test]
fn quirks_default_to_on() {
    let all: ReferenceQuirks = from_str("{}").unwrap();
    assert_eq!(all, ReferenceQuirks::ALL);
    let mut one_off = ReferenceQuirks::ALL;
    one_off.uniform_masked_rows = false;
    assert_eq!(from_str::<ReferenceQuirks>(r#"{"uniform_masked_rows": false}"#).unwrap(), one_off);
    for quirks in [ReferenceQuirks::ALL, ReferenceQuirks::NONE, one_off] {
        assert_eq!(from_value::<ReferenceQuirks>(to_value(quirks).unwrap()).unwrap(), quirks);
    }
    assert!(from_str::<ReferenceQuirks>(r#"{"tail_aligned": true}"#).is_err());
}
