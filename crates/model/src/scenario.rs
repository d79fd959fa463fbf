//! The scenario: what a user asks for, in TOML, checked (`docs/scenario.md`).
//!
//! [`Scenario::parse`] is the only way in, so holding a [`Scenario`] proves that every rule of the page was
//! kept. Every refusal names its line. Reading script files is left to the caller ([`Scenario::load_scripts`]),
//! as is what `[guest]` means: the image builder reads that table from the same text.

mod error;
mod nearest;
mod quantity;
mod section;
mod stages;
mod wish;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_block::ByteLen;

pub use error::{Problem, ScenarioError};
pub use nearest::nearest;
pub use quantity::{CpuCount, DiskSize, MemorySize, QuantityError, TimeLimit, duration};
pub use stages::{Script, Stage};
pub(crate) use stages::{check_variable, nearest_stage};
pub use wish::MachineWish;

use section::{Document, Section};

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

/// One disk: sparse, empty at first, found in the guest by its serial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `/dev/disk/by-id/virtio-SERIAL` in the guest.
    pub serial: String,
    /// Its size, a whole number of sectors.
    pub size: ByteLen,
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
        let disks = read_disks(&root)?;
        let environment = stages::read_environment(&root)?;
        let stages = stages::read_stages(&root)?;
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

fn read_disks(root: &Section<'_, '_>) -> Result<Vec<Disk>, ScenarioError> {
    let mut disks: Vec<Disk> = Vec::new();
    let mut first_seen: BTreeMap<String, usize> = BTreeMap::new();
    for section in root.tables("disks", &["count", "size", "serial"])? {
        let size: DiskSize = section
            .parsed("size")?
            .ok_or_else(|| section.missing("size", "a disk needs one, such as \"1G\""))?;
        let serial = section.string("serial")?.map_or_else(|| "disk".to_owned(), |s| s.value);
        check_serial(&serial).map_err(|rule| section.value_error("serial", rule))?;
        let count = section.integer("count")?;
        let serials: Vec<String> = match count {
            None => vec![serial],
            Some(count) => match usize::try_from(count) {
                Ok(count @ 1..=MAX_DISKS) => {
                    (1..=count).map(|number| format!("{serial}{number}")).collect()
                }
                _ => {
                    let rule = format!("a machine has 1 to {MAX_DISKS} disks");
                    return Err(section.value_error("count", rule));
                }
            },
        };
        for serial in serials {
            if serial.len() > MAX_SERIAL {
                let rule =
                    format!("{serial:?} is longer than {MAX_SERIAL} bytes, its number included");
                return Err(section.value_error("serial", rule));
            }
            let line = section.line_of("serial");
            if let Some(first) = first_seen.insert(serial.clone(), line) {
                let what = format!("disk serial {serial:?}");
                return Err(ScenarioError { line, problem: Problem::Duplicate { what, first } });
            }
            if disks.len() == MAX_DISKS {
                let rule = format!("more than {MAX_DISKS} disks do not fit one machine");
                return Err(section.value_error("size", rule));
            }
            disks.push(Disk { serial, size: size.get() });
        }
    }
    Ok(disks)
}

/// QEMU's option syntax, udev and shells all see the serial, so it keeps to what none of them interprets.
fn check_serial(serial: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if serial.is_empty() || !serial.chars().all(allowed) {
        Err("a serial is made of letters, digits, '-', '_' and '.'")
    } else if serial.len() > MAX_SERIAL {
        Err("a serial has at most 20 bytes")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
