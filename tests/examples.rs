//! Every example runs, and says what it promises.

mod common;

/// What an example prints.
fn run(name: &str, args: &[&str]) -> String {
    let out = common::example(name).args(args).output().unwrap();
    assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn minimal() {
    assert!(run("minimal", &[]).starts_with("out [1, 100, 32]"));
}

#[test]
fn pattern() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = run("pattern", &[file.path().to_str().unwrap()]);
    assert!(text.contains("query 29 sees keys 21..32"), "{text}");
    let svg = std::fs::read_to_string(file.path()).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
}

#[test]
fn weights() {
    let text = run("weights", &[]);
    assert!(text.contains("head 1, query 8:"), "{text}");
    let sum: f64 = text
        .lines()
        .filter_map(|l| {
            l.split_whitespace().find_map(|w| w.parse::<f64>().ok().filter(|_| w.contains('.')))
        })
        .sum();
    assert!((sum - 4.0).abs() < 0.02, "four rows of weights sum to {sum}");
}

#[test]
fn port_from_pytorch() {
    let text = run("port_from_pytorch", &[]);
    let value = |line: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(line)).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    assert!(value("difference to PyTorch") < 1e-5);
    assert!(value("with rotary at the true distance") > 1e-2);
}

/// A model with attention alone to mix characters learns more than pairs of them can tell.
#[test]
fn char_model() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = run("char_model", &["120", file.path().to_str().unwrap()]);
    let line = text.lines().find(|l| l.starts_with("validation loss")).unwrap();
    let numbers: Vec<f64> = line
        .split([' ', ';'])
        .filter_map(|w| w.parse().ok().filter(|x: &f64| x.fract() != 0.0))
        .collect();
    let [loss, bigram] = numbers[..] else { panic!("{line}") };
    assert!(bigram > 2.0 && loss < bigram, "{line}");
    let svg = std::fs::read_to_string(file.path()).unwrap();
    assert!(svg.contains("bigram entropy") && svg.ends_with("</svg>\n"), "{svg}");
}
