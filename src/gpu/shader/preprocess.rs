//! Shader sources: `#import NAME`, once each; `#ifdef`, `#ifndef`, `#else`, `#endif`; and
//! `#repeat NAME COUNT` up to `#endrepeat`, a block for each number below a count, which it knows as a
//! constant: not every compiler unrolls a loop. Blocks may lie in each other. Nothing else, so that tools for
//! WGSL still read the files; and every mistake is an error.

use std::fmt::{self, Write};

/// A mistake in a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PreprocessError {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for PreprocessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// Expands a file and what it imports, each file once, in the order they are first met.
pub(crate) fn expand(
    file: &str,
    source_of: &dyn Fn(&str) -> Option<&'static str>,
    defined: &[&str],
    counts: &[(&str, u32)],
) -> Result<String, PreprocessError> {
    let mut expansion =
        Expansion { source_of, defined, counts, done: Vec::new(), text: String::new() };
    expansion.file(file, &|what| PreprocessError { file: file.to_owned(), line: 0, what })?;
    Ok(expansion.text)
}

struct Expansion<'a> {
    source_of: &'a dyn Fn(&str) -> Option<&'static str>,
    defined: &'a [&'a str],
    counts: &'a [(&'a str, u32)],
    /// Files met.
    done: Vec<String>,
    text: String,
}

/// A condition that is open.
struct Condition {
    line: usize,
    holds: bool,
    in_else: bool,
}

impl Expansion<'_> {
    fn file(
        &mut self,
        file: &str,
        at_import: &dyn Fn(String) -> PreprocessError,
    ) -> Result<(), PreprocessError> {
        if self.done.iter().any(|f| f == file) {
            return Ok(());
        }
        let source = (self.source_of)(file).ok_or_else(|| at_import(format!("no file {file}")))?;
        self.done.push(file.to_owned());
        let lines: Vec<_> = (1..).zip(source.lines()).collect();
        self.lines(file, &lines)
    }

    /// Expands lines of a file, with their numbers.
    fn lines(&mut self, file: &str, lines: &[(usize, &str)]) -> Result<(), PreprocessError> {
        let mut open: Vec<Condition> = Vec::new();
        let mut rest = lines.iter().copied();
        while let Some((line, text)) = rest.next() {
            let fail = |what: String| PreprocessError { file: file.to_owned(), line, what };
            let holds = open.iter().all(|c| c.holds);
            let Some(directive) = text.trim_start().strip_prefix('#') else {
                if holds {
                    self.text.push_str(text);
                    self.text.push('\n');
                }
                continue;
            };
            let words: Vec<_> = directive.split_whitespace().collect();
            match words[..] {
                ["import", name] => {
                    if holds {
                        self.file(name, &fail)?;
                    }
                }
                ["ifdef", name] => {
                    open.push(Condition { line, holds: self.is_defined(name), in_else: false });
                }
                ["ifndef", name] => {
                    open.push(Condition { line, holds: !self.is_defined(name), in_else: false });
                }
                ["else"] => match open.last_mut() {
                    Some(c) if !c.in_else => (c.holds, c.in_else) = (!c.holds, true),
                    _ => return Err(fail("#else without #ifdef".to_owned())),
                },
                ["endif"] => {
                    open.pop().ok_or_else(|| fail("#endif without #ifdef".to_owned()))?;
                }
                ["repeat", name, count] => {
                    let times = self.counts.iter().find(|(n, _)| *n == count);
                    let times = times.ok_or_else(|| fail(format!("no count {count}")))?.1;
                    let (mut body, mut open) = (Vec::new(), 1);
                    loop {
                        let Some(line) = rest.next() else {
                            return Err(fail("#repeat without #endrepeat".to_owned()));
                        };
                        match line.1.split_whitespace().next() {
                            Some("#repeat") => open += 1,
                            Some("#endrepeat") => open -= 1,
                            _ => {}
                        }
                        if open == 0 {
                            break;
                        }
                        body.push(line);
                    }
                    for i in (0..times).filter(|_| holds) {
                        let _ = writeln!(self.text, "{{\nconst {name} = {i}u;");
                        self.lines(file, &body)?;
                        self.text.push_str("}\n");
                    }
                }
                _ => return Err(fail(format!("'#{directive}' is no directive"))),
            }
        }
        match open.pop() {
            None => Ok(()),
            Some(c) => Err(PreprocessError {
                file: file.to_owned(),
                line: c.line,
                what: "a condition without #endif".to_owned(),
            }),
        }
    }

    fn is_defined(&self, name: &str) -> bool {
        self.defined.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source_of(name: &str) -> Option<&'static str> {
        Some(match name {
            "main" => "#import a\n#import b\nmain\n",
            "a" => "#import b\na\n",
            "b" => "#ifdef X\nx\n#else\nno x\n#endif\n#ifndef X\n#import gone\n#endif\n",
            "nested" => "#ifdef X\n#ifdef Y\nboth\n#else\nx alone\n#endif\n#endif\n",
            "unknown" => "\n#define X\n",
            "open" => "a\n#ifdef X\n",
            "lone else" => "#else\n",
            "two elses" => "#ifdef X\n#else\n#else\n#endif\n",
            "lone endif" => "#endif\n",
            "repeat" => {
                "#repeat i TWO\n#ifdef X\nx\n#endif\n#endrepeat\n#ifdef Y\n#repeat i TWO\n#endrepeat\n#endif\n"
            }
            "twice" => "#repeat i TWO\n#repeat j TWO\na\n#endrepeat\n#endrepeat\nb\n",
            "open inside" => "#repeat i TWO\n#repeat j TWO\n#endrepeat\n",
            "open repeat" => "#repeat i TWO\na\n",
            "no count" => "#repeat i THREE\n#endrepeat\n",
            "lone endrepeat" => "#endrepeat\n",
            "wrong inside" => "#repeat i TWO\n\n#else\n#endrepeat\n",
            _ => return None,
        })
    }

    fn expand(file: &str, defined: &[&str]) -> Result<String, PreprocessError> {
        super::expand(file, &source_of, defined, &[("TWO", 2)])
    }

    #[test]
    fn expands() {
        assert_eq!(expand("main", &["X"]).unwrap(), "x\na\nmain\n");
        assert_eq!(expand("nested", &["X"]).unwrap(), "x alone\n");
        assert_eq!(expand("nested", &["X", "Y"]).unwrap(), "both\n");
        assert_eq!(expand("nested", &["Y"]).unwrap(), "");
        let twice = "{\nconst i = 0u;\nx\n}\n{\nconst i = 1u;\nx\n}\n";
        assert_eq!(expand("repeat", &["X"]).unwrap(), twice);
        let inner = "{\nconst j = 0u;\na\n}\n{\nconst j = 1u;\na\n}\n";
        let both = format!("{{\nconst i = 0u;\n{inner}}}\n{{\nconst i = 1u;\n{inner}}}\nb\n");
        assert_eq!(expand("twice", &[]).unwrap(), both);
    }

    #[test]
    fn every_mistake_is_an_error() {
        for (file, says) in [
            ("main", "b:7: no file gone"),
            ("absent", "no file absent"),
            ("unknown", "unknown:2: '#define X' is no directive"),
            ("open", "open:2: a condition without #endif"),
            ("lone else", "lone else:1: #else without #ifdef"),
            ("two elses", "two elses:3: #else without #ifdef"),
            ("lone endif", "lone endif:1: #endif without #ifdef"),
            ("open inside", "open inside:1: #repeat without #endrepeat"),
            ("open repeat", "open repeat:1: #repeat without #endrepeat"),
            ("no count", "no count:1: no count THREE"),
            ("lone endrepeat", "lone endrepeat:1: '#endrepeat' is no directive"),
            ("wrong inside", "wrong inside:3: #else without #ifdef"),
        ] {
            let error = expand(file, &[]).unwrap_err().to_string();
            assert!(error.ends_with(says), "{error}");
        }
    }
}
