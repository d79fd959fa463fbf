//! In which order modules are loaded.

use std::collections::HashSet;

use super::{IndexError, ModuleIndex, module_name};

/// Real nesting is below ten: `modules.dep` lists hard dependencies transitively, so only soft ones
/// nest. Bounded because a hostile index would otherwise choose our stack's depth.
const DEPTH_LIMIT: u32 = 64;

/// What a request stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution<'a> {
    /// These files: one for a name, perhaps several for an alias.
    Modules(Vec<&'a str>),
    /// The kernel has it built in: nothing to load.
    BuiltIn,
    /// No module, built-in or alias matches.
    Unknown,
}

impl<'a> ModuleIndex<'a> {
    /// The files to load for module file `path` (one that [`resolve`](Self::resolve) gave), each
    /// after all it needs: hard dependencies always, soft ones as far as they are there. Appends to
    /// `order` what is not yet in `seen`, and adds it there, so that plans can be chained.
    pub fn plan(
        &self,
        path: &'a str,
        seen: &mut HashSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) -> Result<(), IndexError> {
        self.visit(path, 0, seen, order)
    }

    fn visit(
        &self,
        path: &'a str,
        depth: u32,
        seen: &mut HashSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) -> Result<(), IndexError> {
        // Marked before its dependencies are followed, so that a cycle ends where it began.
        if !seen.insert(path) {
            return Ok(());
        }
        let name = module_name(path);
        if depth > DEPTH_LIMIT {
            return Err(IndexError::TooDeep { module: name.into_owned() });
        }
        let Some(entry) = self.modules.get(&*name) else { return Ok(()) };
        for soft in &entry.pre {
            self.visit_soft(soft, depth, seen, order)?;
        }
        for &needed in entry.needs.iter().rev() {
            if self.path(&module_name(needed)).is_none() {
                let (module, missing) = (name.clone().into_owned(), needed.to_owned());
                return Err(IndexError::Dangling { module, missing });
            }
            self.visit(needed, depth + 1, seen, order)?;
        }
        order.push(path);
        for soft in &entry.post {
            self.visit_soft(soft, depth, seen, order)?;
        }
        Ok(())
    }

    fn visit_soft(
        &self,
        request: &str,
        depth: u32,
        seen: &mut HashSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) -> Result<(), IndexError> {
        let Resolution::Modules(paths) = self.resolve(request) else { return Ok(()) };
        paths.into_iter().try_for_each(|path| self.visit(path, depth + 1, seen, order))
    }
}
