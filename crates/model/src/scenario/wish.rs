//! What is asked of the machine: `[vm]` of a scenario, and the same words from configuration and flags.

use std::path::PathBuf;
use std::str::FromStr;

use super::quantity::{CpuCount, MachineCount, MemorySize, TimeLimit};
use super::section::Section;
use super::{ScenarioError, nearest};
use crate::job::{AccelerationChoice, Machine};
use crate::restore::Restore;
use crate::root::RootChoice;

pub(super) const KEYS: &[&str] = &[
    "memory",
    "cpus",
    "machines",
    "acceleration",
    "boot_timeout",
    "hang_timeout",
    "kernel_parameters",
    "fast",
    "root",
    "restore",
];

/// How long a boot may take where nobody says otherwise: translated and on a busy machine it takes a while.
const BOOT_TIMEOUT: TimeLimit = TimeLimit::of_secs(180);
/// How long a guest may be silent where nobody says otherwise.
const HANG_TIMEOUT: TimeLimit = TimeLimit::of_secs(60);

/// Wishes about the machine; what is `None` is left to whoever is asked next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineWish {
    /// Its memory.
    pub memory: Option<MemorySize>,
    /// Its processors.
    pub cpus: Option<CpuCount>,
    /// How many of them at once.
    pub machines: Option<MachineCount>,
    /// What executes it.
    pub acceleration: Option<AccelerationChoice>,
    /// How long a boot may take.
    pub boot_timeout: Option<TimeLimit>,
    /// How long silence is not yet a hang.
    pub hang_timeout: Option<TimeLimit>,
    /// Kernel parameters, added to those of the layers below.
    pub kernel_parameters: Vec<String>,
    /// Whether parameters that boot faster but change the kernel's behaviour are welcome.
    pub fast: Option<bool>,
    /// Where the root file system is.
    pub root: Option<RootChoice>,
    /// Where machines start.
    pub restore: Option<Restore>,
    /// The emulator, if not the one on the PATH. Never part of a scenario: it belongs to a host.
    pub qemu: Option<PathBuf>,
}

impl MachineWish {
    pub(super) fn read(section: &Section<'_, '_>) -> Result<MachineWish, ScenarioError> {
        let kernel_parameters = section.strings("kernel_parameters")?;
        for parameter in &kernel_parameters {
            check_parameter(parameter)
                .map_err(|rule| section.value_error("kernel_parameters", rule))?;
        }
        Ok(MachineWish {
            memory: section.parsed("memory")?,
            cpus: section.parsed("cpus")?,
            machines: section.parsed("machines")?,
            acceleration: section.parsed("acceleration")?,
            boot_timeout: section.parsed("boot_timeout")?,
            hang_timeout: section.parsed("hang_timeout")?,
            kernel_parameters,
            fast: section.boolean("fast")?,
            root: section.parsed("root")?,
            restore: section.parsed("restore")?,
            qemu: None,
        })
    }

    /// These wishes first, `below` where they say nothing. Kernel parameters add up, those of `below` first,
    /// so that where a parameter is given twice the kernel takes the more specific one.
    pub fn over(self, below: &MachineWish) -> MachineWish {
        MachineWish {
            memory: self.memory.or(below.memory),
            cpus: self.cpus.or(below.cpus),
            machines: self.machines.or(below.machines),
            acceleration: self.acceleration.or(below.acceleration),
            boot_timeout: self.boot_timeout.or(below.boot_timeout),
            hang_timeout: self.hang_timeout.or(below.hang_timeout),
            kernel_parameters: below
                .kernel_parameters
                .iter()
                .cloned()
                .chain(self.kernel_parameters)
                .collect(),
            fast: self.fast.or(below.fast),
            root: self.root.or(below.root),
            restore: self.restore.or(below.restore),
            qemu: self.qemu.or_else(|| below.qemu.clone()),
        }
    }

    /// The machine these wishes and the defaults add up to.
    pub fn settle(&self) -> Machine {
        Machine {
            memory: self.memory.unwrap_or(MemorySize::DEFAULT).get().get(),
            cpus: self.cpus.unwrap_or(CpuCount::DEFAULT).get(),
            acceleration: self.acceleration.unwrap_or_default(),
            boot_timeout_ms: self.boot_timeout.unwrap_or(BOOT_TIMEOUT).as_millis(),
            hang_timeout_ms: self.hang_timeout.unwrap_or(HANG_TIMEOUT).as_millis(),
            qemu: self.qemu.clone(),
        }
    }
}

/// One parameter is one word of the kernel's command line; a second word would slip in unchecked.
pub(super) fn check_parameter(parameter: &str) -> Result<(), String> {
    let printable = parameter.chars().all(|c| c.is_ascii_graphic());
    if parameter.is_empty() || parameter.len() > 256 || !printable {
        let shown: String = parameter.chars().take(64).collect();
        return Err(format!(
            "{shown:?} is not one kernel parameter: write one word each, up to 256 letters"
        ));
    }
    Ok(())
}

/// An acceleration nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an acceleration: auto, kvm or tcg{}", meant(*nearest))]
pub struct AccelerationError {
    text: String,
    nearest: Option<&'static str>,
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean {name}?"))
}

impl FromStr for AccelerationChoice {
    type Err = AccelerationError;

    fn from_str(text: &str) -> Result<AccelerationChoice, AccelerationError> {
        match text {
            "auto" => Ok(AccelerationChoice::Auto),
            "kvm" => Ok(AccelerationChoice::Kvm),
            "tcg" => Ok(AccelerationChoice::Tcg),
            _ => Err(AccelerationError {
                text: text.chars().take(32).collect(),
                nearest: nearest(text, ["auto", "kvm", "tcg"]),
            }),
        }
    }
}
