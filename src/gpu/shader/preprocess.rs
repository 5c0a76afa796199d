//! Shader sources: `#import NAME`, once each, and `#ifdef`, `#ifndef`, `#else`, `#endif`. Nothing
//! else, so that tools for WGSL still read the files; and every mistake is an error.

use std::fmt;

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
) -> Result<String, PreprocessError> {
    let mut expansion = Expansion { source_of, defined, done: Vec::new(), text: String::new() };
    expansion.file(file, &|what| PreprocessError { file: file.to_owned(), line: 0, what })?;
    Ok(expansion.text)
}

struct Expansion<'a> {
    source_of: &'a dyn Fn(&str) -> Option<&'static str>,
    defined: &'a [&'a str],
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
        let mut open: Vec<Condition> = Vec::new();
        for (i, text) in source.lines().enumerate() {
            let line = i + 1;
            let fail = |what: String| PreprocessError { file: file.to_owned(), line, what };
            let Some(directive) = text.trim_start().strip_prefix('#') else {
                if open.iter().all(|c| c.holds) {
                    self.text.push_str(text);
                    self.text.push('\n');
                }
                continue;
            };
            let words: Vec<_> = directive.split_whitespace().collect();
            match words[..] {
                ["import", name] => {
                    if open.iter().all(|c| c.holds) {
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
            _ => return None,
        })
    }

    #[test]
    fn expands() {
        assert_eq!(expand("main", &source_of, &["X"]).unwrap(), "x\na\nmain\n");
        assert_eq!(expand("nested", &source_of, &["X"]).unwrap(), "x alone\n");
        assert_eq!(expand("nested", &source_of, &["X", "Y"]).unwrap(), "both\n");
        assert_eq!(expand("nested", &source_of, &["Y"]).unwrap(), "");
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
        ] {
            let error = expand(file, &source_of, &[]).unwrap_err().to_string();
            assert!(error.ends_with(says), "{error}");
        }
    }
}
