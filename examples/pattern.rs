//! Draws who sees whom: `cargo run --example pattern [FILE.svg]`.

use local_attention::{AttentionShape, LocalAttention, LocalAttentionConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1);
    let path = path.map_or_else(|| std::env::temp_dir().join("pattern.svg"), Into::into);

    // 30 positions in windows of 8; autopad adds 2 zeros, which a non-causal query sees.
    let config = LocalAttentionConfig::new(8).autopad(true).exact_windowsize(true);
    let problem = LocalAttention::new(config)?.problem(&AttentionShape::new([1], 30, 16))?;
    let geometry = problem.geometry();

    print!("{}", geometry.pattern_text(0..geometry.seq_len())?);
    for query in [0, 12, 29] {
        println!("query {query} sees keys {:?}", geometry.visible_range(query));
    }
    std::fs::write(&path, geometry.pattern_svg()?)?;
    println!("wrote {}", path.display());
    Ok(())
}
