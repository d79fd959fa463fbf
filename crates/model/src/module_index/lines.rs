//! Lines, paths and names, which all index files share.

use std::borrow::Cow;

/// Longer lines are refused: the longest real one (an `i915` alias list is one alias a line) has a
/// few hundred dependencies of a hundred bytes.
pub(crate) const LINE_LIMIT: usize = 256 * 1024;

/// Why an index was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// A line that cannot be skipped makes no sense.
    #[error("{file} line {line}: {what}: {found:?}")]
    Damaged {
        /// `modules.dep`, …
        file: &'static str,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
        /// How it starts.
        found: String,
    },
    /// Something needs a file which the index does not list.
    #[error("modules.dep: {module} needs {missing}, which has no line of its own")]
    Dangling {
        /// Who needs it.
        module: String,
        /// The path not listed.
        missing: String,
    },
    /// Dependencies are nested so deeply that the index must be damaged.
    #[error("modules.dep: the dependencies of {module} are nested too deeply")]
    TooDeep {
        /// Where following them was given up.
        module: String,
    },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    file: &'static str,
    number: usize,
    pub(super) text: &'a str,
}

impl Line<'_> {
    pub(super) fn damaged(&self, what: &'static str) -> IndexError {
        let found = self.text.chars().take(80).collect();
        IndexError::Damaged { file: self.file, line: self.number, what, found }
    }
}

/// The lines of `text` that say something: trimmed, without comments and empty ones.
pub(super) fn of<'a>(
    file: &'static str,
    text: &'a str,
) -> impl Iterator<Item = Result<Line<'a>, IndexError>> {
    text.lines().enumerate().filter_map(move |(at, text)| {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return None;
        }
        let line = Line { file, number: at + 1, text };
        Some(if text.len() > LINE_LIMIT {
            Err(line.damaged("the line is too long"))
        } else {
            Ok(line)
        })
    })
}

/// The last component of a path.
pub fn base_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, base)| base)
}

/// The name of the module in file `path`: `kernel/fs/nls/nls_iso8859-1.ko.xz` holds `nls_iso8859_1`.
pub fn module_name(path: &str) -> Cow<'_, str> {
    let base = base_name(path);
    let stem = base.split_once(".ko").map_or(base, |(stem, _)| stem);
    normalise(stem)
}

/// A name or alias with `-` written as `_`, as the kernel does, except between brackets, where it
/// spells a range.
pub fn normalise(name: &str) -> Cow<'_, str> {
    if !name.contains('-') {
        return Cow::Borrowed(name);
    }
    let mut inside = false;
    let swap = |c| {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            '-' if !inside => return '_',
            _ => {}
        }
        c
    };
    Cow::Owned(name.chars().map(swap).collect())
}
