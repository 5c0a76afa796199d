//! A share of the suite: `LOCAL_ATTENTION_SHARE=1/2` is the first of two that together are all of it, each on an adapter
//! of its own. The whole suite where nothing is said.

/// Which share, from 0 on, of how many.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    which: usize,
    of: usize,
}

impl Share {
    /// What the variable says.
    pub fn from_env() -> Result<Self, String> {
        let Ok(text) = std::env::var("LOCAL_ATTENTION_SHARE") else {
            return Ok(Self { which: 0, of: 1 });
        };
        let numbers =
            text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((which @ 1.., of)) if which <= of => Ok(Self { which: which - 1, of }),
            _ => Err(format!("LOCAL_ATTENTION_SHARE is {text}: it must be like 1/2")),
        }
    }

    /// Whether the share has what is number `n` of all that is dealt out.
    pub fn has(self, n: usize) -> bool {
        n % self.of == self.which
    }
}
