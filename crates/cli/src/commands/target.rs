//! What `run`, `shell`, `plan` and `image build` begin with: flags, scenario, kernel.

use kiln_image::kernel::Kernel;
use kiln_model::event::KernelIdentity;
use kiln_model::plan::{Choices, Plan, PlanError, plan};
use kiln_model::scenario::Scenario;
use kiln_runner::{LoadError, Loaded, load};

use super::kernel;
use crate::arguments::MachineArgs;
use crate::config::Side;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;

/// Puts the flags about the machine in force.
pub(crate) fn machine_flags(session: &mut Session, args: &MachineArgs) -> Result<(), Failure> {
    session.flag("vm.memory", args.memory.as_deref())?;
    session.flag("vm.cpus", args.cpus.as_deref())?;
    session.flag("vm.acceleration", args.acceleration.as_deref())?;
    session.flag("vm.qemu", args.qemu.as_deref())?;
    session.flag("vm.boot_timeout", args.boot_timeout.as_deref())?;
    session.flag("vm.hang_timeout", args.hang_timeout.as_deref())?;
    session.flag("vm.fast", args.fast.then_some("true"))?;
    session.config.set_texts("vm.kernel_parameters", &args.parameters);
    Ok(())
}

/// Loads a scenario by path or name.
pub(crate) fn scenario(name: &str) -> Result<Loaded, Failure> {
    load(name).map_err(|error| {
        let hint = match &error {
            LoadError::NotFound { .. } => "kiln plan --list",
            LoadError::Read { .. } | LoadError::Script { .. } => {
                "paths in a scenario start at its own folder"
            }
            LoadError::Refused { .. } => "docs/scenario.md describes every key",
        };
        Failure::from(error).with_exit(Exit::Usage).hint(hint)
    })
}

/// The kernel that flag, variable or file names.
pub(crate) fn chosen_kernel(session: &mut Session, flag: Option<&str>) -> Result<Kernel, Failure> {
    session.flag("run.kernel", flag)?;
    kernel::chosen(session, session.config.text("run.kernel"))
}

/// What the user chose, beyond the stages.
pub(crate) fn choices(session: &Session) -> Choices {
    Choices {
        machine: session.config.machine(Side::Above),
        machine_defaults: session.config.machine(Side::Below),
        keep_disks: session.config.is_on("run.keep"),
        ..Choices::default()
    }
}

/// Computes the plan.
pub(crate) fn planned(
    scenario: &Scenario,
    kernel: &KernelIdentity,
    choices: &Choices,
) -> Result<Plan, Failure> {
    plan(scenario, kernel, choices).map_err(|error| {
        let (exit, hint) = match &error {
            PlanError::NoStages { scenario } => {
                (Exit::NothingSelected, format!("kiln shell {scenario}"))
            }
            PlanError::NothingSelected { .. } => (
                Exit::NothingSelected,
                "quote patterns, so that the shell leaves `*` alone".to_owned(),
            ),
            PlanError::Variable { .. } => (Exit::Usage, "--env NAME=VALUE".to_owned()),
        };
        Failure::from(error).with_exit(exit).hint(hint)
    })
}
