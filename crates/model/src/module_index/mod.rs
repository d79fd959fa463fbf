//! What a kernel's module directory says about its modules: which file holds a name, what must be
//! loaded before it, which aliases mean it, and what is built in (`docs/formats/module-index.md`).
//!
//! The host reads it to choose modules for an image, and writes it for trees which have none; the
//! guest reads it to load modules. Text in, names out: this module opens no file.

mod lines;
pub mod modinfo;
mod plan;
pub mod write;

use std::borrow::Cow;
use std::collections::HashMap;

pub use lines::{IndexError, base_name, module_name, normalise};
pub use plan::Resolution;

use crate::wildcard;
use lines::Line;

/// The text of one module directory's index files. An absent file is an empty string.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexText<'a> {
    /// `modules.dep`.
    pub dep: &'a str,
    /// `modules.alias`.
    pub alias: &'a str,
    /// `modules.softdep`.
    pub softdep: &'a str,
    /// `modules.weakdep`.
    pub weakdep: &'a str,
    /// `modules.builtin`.
    pub builtin: &'a str,
    /// `modules.builtin.modinfo`; not UTF-8 by contract.
    pub builtin_modinfo: &'a [u8],
}

/// The parsed index. Names are kept as the kernel reports them, with `_` for `-`.
#[derive(Clone, Debug, Default)]
pub struct ModuleIndex<'a> {
    modules: HashMap<Cow<'a, str>, Entry<'a>>,
    aliases: Vec<(&'a str, &'a str)>,
    builtin: HashMap<Cow<'a, str>, &'a str>,
    builtin_aliases: Vec<(Cow<'a, str>, &'a str)>,
}

#[derive(Clone, Debug, Default)]
struct Entry<'a> {
    path: &'a str,
    /// Paths as `modules.dep` lists them: what stands last is loaded first.
    needs: Vec<&'a str>,
    pre: Vec<&'a str>,
    post: Vec<&'a str>,
    weak: Vec<&'a str>,
}

impl<'a> ModuleIndex<'a> {
    /// Parses all files. Only a `modules.dep` line without a colon is refused; lines of the other
    /// files that say nothing understood are skipped, as kmod does.
    pub fn parse(text: &IndexText<'a>) -> Result<ModuleIndex<'a>, IndexError> {
        let mut index = ModuleIndex::default();
        for line in lines::of("modules.dep", text.dep) {
            let line = line?;
            let Some((path, needs)) = line.text.split_once(':') else {
                return Err(line.damaged("no colon"));
            };
            let path = path.trim();
            if path.is_empty() {
                return Err(line.damaged("no path before the colon"));
            }
            let needs = needs.split_ascii_whitespace().collect();
            index.modules.insert(module_name(path), Entry { path, needs, ..Entry::default() });
        }
        for line in lines::of("modules.alias", text.alias) {
            let Line { text, .. } = line?;
            let mut words = text.split_ascii_whitespace();
            if let (Some("alias"), Some(pattern), Some(name)) =
                (words.next(), words.next(), words.next())
            {
                index.aliases.push((pattern, name));
            }
        }
        for line in lines::of("modules.softdep", text.softdep) {
            index.soft(line?.text);
        }
        for line in lines::of("modules.weakdep", text.weakdep) {
            index.weak(line?.text);
        }
        for line in lines::of("modules.builtin", text.builtin) {
            let path = line?.text;
            index.builtin.insert(module_name(path), path);
        }
        for (name, key, value) in modinfo::builtin_fields(text.builtin_modinfo) {
            if key == "alias" {
                index.builtin_aliases.push((normalise(value), name));
            }
        }
        Ok(index)
    }

    /// `softdep NAME [pre: NAME...] [post: NAME...]`
    fn soft(&mut self, text: &'a str) {
        let mut words = text.split_ascii_whitespace();
        let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { return };
        let Some(entry) = self.modules.get_mut(&*normalise(name)) else { return };
        let mut list = None;
        for word in words {
            match (word, list) {
                ("pre:", _) => list = Some(false),
                ("post:", _) => list = Some(true),
                (name, Some(false)) => entry.pre.push(name),
                (name, Some(true)) => entry.post.push(name),
                (_, None) => {}
            }
        }
    }

    /// `weakdep NAME NAME...`
    fn weak(&mut self, text: &'a str) {
        let mut words = text.split_ascii_whitespace();
        let (Some("weakdep"), Some(name)) = (words.next(), words.next()) else { return };
        if let Some(entry) = self.modules.get_mut(&*normalise(name)) {
            entry.weak.extend(words);
        }
    }

    /// The file of a loadable module, relative to the module directory.
    pub fn path(&self, name: &str) -> Option<&'a str> {
        self.modules.get(&*normalise(name)).map(|entry| entry.path)
    }

    /// Whether the kernel itself holds a module of this name.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains_key(&*normalise(name))
    }

    /// What `name` would like to have at hand later, without needing it to load.
    pub fn weak_needs(&self, name: &str) -> &[&'a str] {
        self.modules.get(&*normalise(name)).map_or(&[], |entry| &entry.weak)
    }

    /// What `name` would like loaded around it: before, and after.
    pub fn soft_needs(&self, name: &str) -> (&[&'a str], &[&'a str]) {
        self.modules.get(&*normalise(name)).map_or((&[], &[]), |entry| (&entry.pre, &entry.post))
    }

    /// The files `name` cannot be loaded without, in `modules.dep`'s order (last first loaded).
    pub fn hard_needs(&self, name: &str) -> &[&'a str] {
        self.modules.get(&*normalise(name)).map_or(&[], |entry| &entry.needs)
    }

    /// All loadable modules' names, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.modules.keys().map(AsRef::as_ref)
    }

    /// All names of built-in modules, in no particular order.
    pub fn builtin_names(&self) -> impl Iterator<Item = &str> {
        self.builtin.keys().map(AsRef::as_ref)
    }

    /// Pairs of alias pattern and module name, in file order.
    pub fn aliases(&self) -> &[(&'a str, &'a str)] {
        &self.aliases
    }

    /// Pairs of alias pattern and built-in module's name.
    pub fn builtin_aliases(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.builtin_aliases.iter().map(|(pattern, name)| (pattern.as_ref(), *name))
    }

    /// What `request`, a module's name or something its aliases match, stands for. A name wins over
    /// an alias, a loadable module over a built-in one.
    pub fn resolve(&self, request: &str) -> Resolution<'a> {
        let request = normalise(request);
        if let Some(entry) = self.modules.get(&*request) {
            return Resolution::Modules(vec![entry.path]);
        }
        if self.builtin.contains_key(&*request) {
            return Resolution::BuiltIn;
        }
        let mut found: Vec<&'a str> = Vec::new();
        for (pattern, name) in &self.aliases {
            let hit = *pattern == request || matches_normalised(pattern, &request);
            let Some(path) = hit.then(|| self.path(name)).flatten() else { continue };
            if !found.contains(&path) {
                found.push(path);
            }
        }
        if !found.is_empty() {
            return Resolution::Modules(found);
        }
        let mut builtin = self.builtin_aliases.iter();
        if builtin.any(|(pattern, _)| wildcard::matches(pattern, &request)) {
            return Resolution::BuiltIn;
        }
        Resolution::Unknown
    }
}

/// Alias patterns are written with `_` already by depmod; those of other hands may not be.
fn matches_normalised(pattern: &str, request: &str) -> bool {
    // Almost every pattern differs in its first bytes: cheaper to see that than to match.
    let literal = pattern.bytes().zip(request.bytes()).take_while(|(p, r)| p == r).count();
    match pattern.as_bytes().get(literal) {
        Some(b'*' | b'?' | b'[' | b'\\' | b'-') => wildcard::matches(&normalise(pattern), request),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
