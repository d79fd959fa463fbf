//! Kernel parameters meant for us: `kiln.NAME=VALUE`, and `MODULE.NAME=VALUE` for modules.

use std::fs;

use kiln_model::module_index::normalise;

/// The kernel's command line.
#[derive(Debug, Default)]
pub(crate) struct Cmdline {
    words: Vec<String>,
}

impl Cmdline {
    /// Reads `/proc/cmdline`; empty when there is none.
    pub(crate) fn read() -> Cmdline {
        let text = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        Cmdline { words: split(&text) }
    }

    /// The value of `kiln.NAME=`; the last one wins.
    pub(crate) fn kiln(&self, name: &str) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .find_map(|word| word.strip_prefix("kiln.")?.strip_prefix(name)?.strip_prefix('='))
    }

    /// What is meant for a module when it is loaded: `NAME=VALUE NAME=VALUE`.
    pub(crate) fn module_parameters(&self, module: &str) -> String {
        let parameters: Vec<&str> = self
            .words
            .iter()
            .filter_map(|word| {
                let (owner, parameter) = word.split('=').next()?.split_once('.')?;
                let matches = normalise(owner) == normalise(module) && !parameter.is_empty();
                matches.then(|| &word[owner.len() + 1..])
            })
            .collect();
        parameters.join(" ")
    }
}

/// Splits at blanks outside of double quotes, as the kernel does; the quotes stay.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in text.trim().chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                words.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
