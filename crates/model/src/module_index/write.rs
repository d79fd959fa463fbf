//! The index files as text, for module directories that have none.
//!
//! [`index`] does depmod's work from what the modules say of themselves. Output is sorted by path or
//! name, so that the same modules give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::modinfo::ModInfo;
use super::{module_name, normalise};

/// The files [`index`] makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexFiles {
    /// `modules.dep`.
    pub dep: String,
    /// `modules.alias`.
    pub alias: String,
    /// `modules.softdep`.
    pub softdep: String,
    /// `modules.weakdep`.
    pub weakdep: String,
}

/// Makes the index of `modules`, pairs of a path relative to the module directory and what the file
/// says. A dependency which is not among them is left out: it is built in, or the module cannot be
/// loaded and the kernel will name the symbol that is missing.
pub fn index(modules: &BTreeMap<String, ModInfo>) -> IndexFiles {
    let by_name: BTreeMap<String, &str> =
        modules.keys().map(|path| (module_name(path).into_owned(), path.as_str())).collect();
    let mut files = IndexFiles::default();
    for (path, info) in modules {
        dep_line(&mut files.dep, path, &needs(path, modules, &by_name));
        let name = module_name(path);
        for alias in &info.aliases {
            alias_line(&mut files.alias, alias, &name);
        }
        for softdep in &info.softdeps {
            line(&mut files.softdep, &["softdep", &name, softdep]);
        }
        if !info.weakdeps.is_empty() {
            line(&mut files.weakdep, &["weakdep", &name, &info.weakdeps.join(" ")]);
        }
    }
    files
}

/// Appends one line of `modules.dep`. `needs` is in load order; the file lists it backwards.
pub fn dep_line(out: &mut String, path: &str, needs: &[&str]) {
    out.push_str(path);
    out.push(':');
    for needed in needs.iter().rev() {
        out.push(' ');
        out.push_str(needed);
    }
    out.push('\n');
}

/// Appends one line of `modules.alias`.
pub fn alias_line(out: &mut String, pattern: &str, name: &str) {
    line(out, &["alias", &normalise(pattern), name]);
}

/// Appends one line of `modules.softdep`.
pub fn softdep_line(out: &mut String, name: &str, pre: &[&str], post: &[&str]) {
    let mut text = String::new();
    for (word, list) in [("pre:", pre), ("post:", post)] {
        if !list.is_empty() {
            let gap = if text.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = write!(text, "{gap}{word} {}", list.join(" "));
        }
    }
    if !text.is_empty() {
        line(out, &["softdep", name, &text]);
    }
}

/// Appends one line of `modules.weakdep`.
pub fn weakdep_line(out: &mut String, name: &str, names: &[&str]) {
    if !names.is_empty() {
        line(out, &["weakdep", name, &names.join(" ")]);
    }
}

fn line(out: &mut String, words: &[&str]) {
    out.push_str(&words.join(" "));
    out.push('\n');
}

/// All that `path` needs, directly or not, in load order.
fn needs<'a>(
    path: &'a str,
    modules: &'a BTreeMap<String, ModInfo>,
    by_name: &BTreeMap<String, &'a str>,
) -> Vec<&'a str> {
    // Depth first with a stack of our own: the depth is the modules' choice. A path is opened once,
    // and listed when it comes up again, after all it needs.
    enum Step<'a> {
        Open(&'a str),
        List(&'a str),
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    let mut stack = vec![Step::Open(path)];
    while let Some(step) = stack.pop() {
        match step {
            Step::List(at) => order.push(at),
            Step::Open(at) if seen.insert(at) => {
                stack.push(Step::List(at));
                let depends = modules.get(at).map_or(&[][..], |info| &info.depends);
                let paths = depends.iter().rev().filter_map(|name| by_name.get(name.as_str()));
                stack.extend(paths.map(|&needed| Step::Open(needed)));
            }
            Step::Open(_) => {}
        }
    }
    // What is listed last is the module itself.
    order.pop();
    order
}
