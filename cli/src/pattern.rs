//! `pattern`: who sees whom, as text or as a picture.

use std::path::PathBuf;

use clap::Args;
use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};
use serde_json::json;

use crate::args::{CaseArgs, JsonArg};
use crate::console::{Console, ended};
use crate::error::BadInput;
use crate::output::{is_standard_output, write_whole};

/// Lines and columns of text that still can be read.
const TEXT_LIMIT: usize = 512;
/// Queries of a picture that still can be told apart.
const SVG_LIMIT: usize = 8192;

#[derive(Debug, Args)]
pub struct PatternArgs {
    /// Positions in a window.
    #[arg(long, allow_negative_numbers = true)]
    window: i64,
    /// Length of the sequence.
    #[arg(long)]
    n: usize,
    /// Windows before its own that a query sees.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    look_backward: i64,
    /// Windows after its own that a query sees [default: 0 if causal, else 1].
    #[arg(long, allow_negative_numbers = true)]
    look_forward: Option<i64>,
    /// No query sees a later key.
    #[arg(long)]
    causal: bool,
    /// Limit the distance too (exact_windowsize).
    #[arg(long)]
    exact: bool,
    /// Pad the sequence to whole windows.
    #[arg(long)]
    autopad: bool,
    /// The call's own window_size, as xpos permits it.
    #[arg(long, value_name = "WINDOW", allow_negative_numbers = true)]
    override_window: Option<i64>,
    /// Number of keys, where it is not n.
    #[arg(long)]
    keys: Option<usize>,
    #[command(flatten)]
    case: CaseArgs,
    #[command(flatten)]
    pub json: JsonArg,
    /// Write a picture instead of text.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
}

pub fn pattern(args: &PatternArgs, console: Console) -> Result<bool, BadInput> {
    let mut config = LocalAttentionConfig::new(args.window)
        .causal(args.causal)
        .look_backward(args.look_backward)
        .exact_windowsize(args.exact)
        .autopad(args.autopad)
        .use_xpos(args.override_window.is_some());
    config.look_forward = args.look_forward;
    let attention = LocalAttention::new(config)?.with_quirks(args.case.quirks);
    let mut shape = AttentionShape::new([1], args.n, 1).with_key_len(args.keys.unwrap_or(args.n));
    shape.window = args.override_window;
    let problem = attention.problem(&shape)?;
    let geometry = problem.geometry();
    let longest = geometry.padded_len();
    if let Some(path) = &args.svg {
        if longest > SVG_LIMIT {
            return Err(BadInput::Usage(format!(
                "--n is {} ({longest} with padding): a picture shows at most {SVG_LIMIT}",
                args.n
            )));
        }
        write_whole(path, geometry.pattern_svg()?.as_bytes())?;
        // What is said must not land in what is written.
        let console = if is_standard_output(path) { console.beside_output() } else { console };
        let path = path.display().to_string();
        console.result(&json!({ "svg": path }), format!("wrote {path}"));
        return Ok(true);
    }
    if console.json() {
        for query in 0..geometry.seq_len() {
            let visible = geometry.visible_range(query);
            let object = json!({
                "query": query,
                "start": visible.start,
                "end": visible.end,
                "key_len": geometry.key_len(),
            });
            console.result(&object, "");
            if ended().is_some() {
                break;
            }
        }
        return Ok(true);
    }
    if longest > TEXT_LIMIT {
        return Err(BadInput::Usage(format!(
            "--n is {} ({longest} with padding): text shows at most {TEXT_LIMIT}, use --svg or --json",
            args.n
        )));
    }
    console.say(geometry.pattern_text(0..geometry.seq_len())?.trim_end());
    let sees_zeros = |t| geometry.visible_range(t).end > geometry.key_len();
    let zeros = if (0..geometry.seq_len()).any(sees_zeros) {
        ", o a zero of autopad that is seen"
    } else {
        ""
    };
    console.say(format!(
        "# seen{zeros}, . hidden; {} windows of {}, {} slots each",
        geometry.windows(),
        geometry.window(),
        geometry.slots()
    ));
    Ok(true)
}
