//! The scenario: what a user asks for, in TOML, checked (`docs/scenario.md`).
//!
//! [`Scenario::parse`] is the only way in, so holding a [`Scenario`] proves that every rule of the page was
//! kept. Every refusal names its line. Reading script files is left to the caller ([`Scenario::load_scripts`]),
//! as is what `[guest]` means: the image builder reads that table from the same text.

mod disks;
mod error;
mod nearest;
mod quantity;
mod section;
mod stages;
mod wish;

use std::path::{Path, PathBuf};

pub use disks::{Disk, DiskStart, Making};
pub use error::{Problem, ScenarioError};
pub use nearest::nearest;
pub use quantity::{
    CpuCount, DiskSize, MachineCount, MemorySize, QuantityError, TimeLimit, duration,
};
pub use stages::{Script, Stage};
pub(crate) use stages::{check_variable, nearest_stage};
pub use wish::MachineWish;

use section::Document;

use crate::restore::{PREPARE_STAGE, Restore};

/// Longest text a scenario may have, in bytes; a longer one is not read.
pub const MAX_TEXT: usize = 1 << 20;
/// Most disks one machine can have: each takes a PCI slot.
pub const MAX_DISKS: usize = 24;
/// Longest serial of a virtio disk, in bytes.
pub const MAX_SERIAL: usize = 20;
/// Most stages of a scenario.
pub const MAX_STAGES: usize = 1000;

/// A checked scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name; can name a file.
    pub name: String,
    /// One line on what it is for; may be empty.
    pub description: String,
    /// What it asks of the machine.
    pub machine: MachineWish,
    /// The disks, counted out: `count = 6` has become six.
    pub disks: Vec<Disk>,
    /// Environment of every stage, sorted by name.
    pub environment: Vec<(String, String)>,
    /// The stages, in order; a scenario for `kiln shell` has none.
    pub stages: Vec<Stage>,
}

impl Scenario {
    /// Reads and checks a scenario.
    pub fn parse(text: &str) -> Result<Scenario, ScenarioError> {
        if text.len() > MAX_TEXT {
            return Err(ScenarioError { line: 1, problem: Problem::TooLong { bytes: text.len() } });
        }
        let document = Document::parse(text)?;
        let known =
            ["name", "description", "guest", "vm", "disks", "environment", "stages"].as_slice();
        let root = document.root(known)?;
        let name = root.required_string("name")?;
        if name.value.parse::<crate::StageName>().is_err() {
            let rule = "use 1 to 100 letters, digits, '-', '_' and '.', not starting with '.'";
            return Err(root.value_error("name", rule));
        }
        let description = root.string("description")?.map(|d| d.value).unwrap_or_default();
        root.expect_table("guest")?;
        let machine = match root.table("vm", wish::KEYS)? {
            Some(section) => MachineWish::read(&section)?,
            None => MachineWish::default(),
        };
        let disks = disks::read_disks(&root)?;
        let environment = stages::read_environment(&root)?;
        let stages = stages::read_stages(&root)?;
        let prepares = stages.first().is_some_and(|stage| stage.name.as_str() == PREPARE_STAGE);
        if machine.restore == Some(Restore::Prepared)
            && !prepares
            && let Some(vm) = root.table("vm", wish::KEYS)?
        {
            let rule = format!("the first stage has to be one named {PREPARE_STAGE:?}");
            return Err(vm.value_error("restore", rule));
        }
        Ok(Scenario { name: name.value, description, machine, disks, environment, stages })
    }

    /// Replaces every script that was named as a file by its text, which `read` fetches. Paths are as
    /// the scenario wrote them: relative ones mean the scenario's own folder.
    pub fn load_scripts<E>(
        mut self,
        mut read: impl FnMut(&Path) -> Result<String, E>,
    ) -> Result<Scenario, E> {
        for stage in &mut self.stages {
            if let Script::File { path, .. } = &stage.script {
                let path: PathBuf = path.clone();
                stage.script = Script::Text(read(&path)?);
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
