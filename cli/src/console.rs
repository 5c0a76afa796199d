//! What is printed: text for people on standard output, or one JSON object a result.

use std::io::{ErrorKind, Write};
use std::sync::Mutex;

/// How standard output ended, if it did.
static ENDED: Mutex<Option<ErrorKind>> = Mutex::new(None);

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    json: bool,
    /// Lines go to standard error: standard output is the file that is written.
    beside: bool,
}

impl Console {
    pub fn new(json: bool) -> Self {
        Self { json, beside: false }
    }

    pub fn json(&self) -> bool {
        self.json
    }

    /// The same with every line on standard error.
    pub fn beside_output(self) -> Self {
        Self { beside: true, ..self }
    }

    /// A line for people; not printed with `--json`.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.json {
            self.print(line.as_ref());
        }
    }

    /// A result: the object with `--json`, else the line.
    pub fn result(&self, object: &serde_json::Value, line: impl AsRef<str>) {
        if self.json { self.print(&object.to_string()) } else { self.print(line.as_ref()) }
    }

    fn print(&self, line: &str) {
        if self.beside {
            let _ = writeln!(std::io::stderr(), "{line}");
        } else {
            print(line);
        }
    }

    /// A remark beside the results: on standard error with `--json`, else among the lines.
    pub fn note(&self, line: impl AsRef<str>) {
        if self.json {
            let _ = writeln!(std::io::stderr(), "{}", line.as_ref());
        } else {
            self.say(line);
        }
    }
}

/// Why standard output takes no more: a reader that went away (`| head`), or a full disk.
pub fn ended() -> Option<ErrorKind> {
    ENDED.lock().map_or(None, |e| *e)
}

/// An error, in one line on standard error.
pub fn complain(message: &str) {
    let line = message.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
    // Nobody is left to be told that nobody reads.
    let _ = writeln!(std::io::stderr(), "local-attention: {}", plain(line.trim()));
}

/// A number of things, in words.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A name from outside with its control characters escaped: it stays on its line.
pub fn plain(text: &str) -> String {
    let escape =
        |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn print(line: &str) {
    let mut out = std::io::stdout().lock();
    if ended().is_none()
        && let Err(e) = writeln!(out, "{line}").and_then(|()| out.flush())
        && let Ok(mut ended) = ENDED.lock()
    {
        *ended = Some(e.kind());
    }
}
