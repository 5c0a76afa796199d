//! What is printed: text for people on standard output, or one JSON object a result.

use std::io::Write;

/// Where results go. A reader that goes away (`| head`) ends output, not the program.
#[derive(Debug, Clone, Copy)]
pub struct Console {
    json: bool,
}

impl Console {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    pub fn json(&self) -> bool {
        self.json
    }

    /// A line for people; not printed with `--json`.
    pub fn say(&self, line: impl AsRef<str>) {
        if !self.json {
            write(std::io::stdout(), line.as_ref());
        }
    }

    /// A result: the object with `--json`, else the line.
    pub fn result(&self, object: &serde_json::Value, line: impl AsRef<str>) {
        let text = if self.json { object.to_string() } else { line.as_ref().to_owned() };
        write(std::io::stdout(), &text);
    }

    /// A remark beside the results: on standard error with `--json`, else among the lines.
    pub fn note(&self, line: impl AsRef<str>) {
        if self.json {
            write(std::io::stderr(), line.as_ref());
        } else {
            self.say(line);
        }
    }
}

/// An error, in one line on standard error.
pub fn complain(message: &str) {
    let line = message.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
    write(std::io::stderr(), &format!("local-attention: {}", line.trim()));
}

fn write(mut to: impl Write, line: &str) {
    // Nobody is left to be told that nobody reads.
    let _ = writeln!(to, "{line}");
}
