//! What `run`, `shell`, `plan` and `image build` begin with: flags, scenario, kernel.

use kiln_image::cache::{ForeseenImage, ImageError};
use kiln_image::closure::ClosureError;
use kiln_image::kernel::Kernel;
use kiln_model::event::KernelIdentity;
use kiln_model::job::{AccelerationChoice, KeepDisks, Machine};
use kiln_model::plan::{Choices, Plan, PlanError, plan};
use kiln_model::root::RootChoice;
use kiln_model::scenario::{Scenario, TimeLimit};
use kiln_runner::{
    BaseError, EquipError, Equipment, LoadError, Loaded, PoolAccess, Stores, equip, foresee, load,
};
use kiln_store::{Start, StoreError, Why};
use kiln_vm::Emulator;

use super::kernel;
use crate::arguments::MachineArgs;
use crate::config::Side;
use crate::embedded;
use crate::exit::Exit;
use crate::failure::{Explain as _, Failure};
use crate::session::Session;

/// Puts the flags about the machine in force.
pub(crate) fn machine_flags(session: &mut Session, args: &MachineArgs) -> Result<(), Failure> {
    session.flag("vm.memory", args.memory.as_deref())?;
    session.flag("vm.cpus", args.cpus.as_deref())?;
    session.flag("vm.machines", args.machines.as_deref())?;
    session.flag("vm.acceleration", args.acceleration.as_deref())?;
    session.flag("vm.qemu", args.qemu.as_deref())?;
    session.flag("vm.boot_timeout", args.boot_timeout.as_deref())?;
    session.flag("vm.hang_timeout", args.hang_timeout.as_deref())?;
    session.flag("vm.fast", args.fast.then_some("true"))?;
    session.flag("vm.root", args.root.as_deref())?;
    let restore = if args.cold { Some("never") } else { args.restore.as_deref() };
    session.flag("vm.restore", restore)?;
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
        keep_disks: session
            .config
            .text("run.keep_disks")
            .and_then(KeepDisks::of)
            .unwrap_or_default(),
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

/// Where kernels and images are kept, and the guest executable.
pub(crate) fn stores(session: &Session) -> Result<Stores, Failure> {
    Ok(Stores {
        kernels: kernel::cache(session),
        images: super::image::store(session)?,
        guest: embedded::guest(session.config.path("guest.executable"))?,
    })
}

/// What the scenario boots on this kernel, found or built.
pub(crate) fn equipment(
    session: &Session,
    loaded: &Loaded,
    kernel: &Kernel,
    root: RootChoice,
) -> Result<Equipment, Failure> {
    equip(loaded, kernel, &stores(session)?, root).map_err(unequipped)
}

/// What that would boot, without building it; none where no guest executable is to be had, which only this
/// Kiln lacks.
pub(crate) fn foreseen(
    session: &Session,
    loaded: &Loaded,
    kernel: &Kernel,
    root: RootChoice,
) -> Result<Option<ForeseenImage>, Failure> {
    if session.config.path("guest.executable").is_none() && !embedded::has_guest() {
        return Ok(None);
    }
    foresee(loaded, kernel, &stores(session)?, root).map(Some).map_err(unequipped)
}

fn unequipped(error: EquipError) -> Failure {
    // A mistake in the manifest is the user's, a missing file this machine's, the rest ours.
    let (exit, hint) = match &error {
        _ if is_full(&error) => (Exit::BuildFailed, "df -h; kiln image prune"),
        EquipError::Kernel(_) | EquipError::Drivers(_) => (Exit::BuildFailed, "kiln kernel ls"),
        EquipError::Image { source, .. } => match **source {
            ImageError::Manifest(_) => (Exit::Usage, "docs/manifest.md describes every key"),
            ImageError::Closure(ClosureError::Base(_)) => (
                Exit::BuildFailed,
                "docs/manifest.md describes `bases`, `packages` and `host_files`",
            ),
            ImageError::Closure(ClosureError::Unreadable { .. }) => {
                (Exit::BuildFailed, "docs/manifest.md: `exclude`, and `optional` or a leading '?'")
            }
            ImageError::Closure(_) => {
                (Exit::BuildFailed, "`kiln doctor` names missing tools and their packages")
            }
            ImageError::Module(_) => (
                Exit::BuildFailed,
                "another kernel may have it: kiln kernel fetch debian --flavour generic",
            ),
            _ => (Exit::BuildFailed, "df -h; kiln image prune"),
        },
    };
    Failure::from(error).with_exit(exit).hint(hint)
}

/// Whether a full disk is at the bottom of it.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::StorageFull)
}

/// The pool that runs take their disks from.
pub(crate) fn pool(session: &Session) -> std::path::PathBuf {
    session.home.data().join("disks.pool")
}

/// Where machines that were saved are kept.
pub(crate) fn warm(session: &Session) -> std::path::PathBuf {
    session.home.cache().join("warm")
}

/// How jobs get at that pool: through its owner, which is this program once more.
pub(crate) fn pool_access() -> PoolAccess {
    let program = std::env::current_exe().unwrap_or_else(|_| "kiln".into()).into_os_string();
    PoolAccess::owner(Start::new([program, "disk".into(), "own".into(), "--detached".into()]))
}

/// What it means that disks have nothing to start as.
pub(crate) fn not_based(error: BaseError) -> Failure {
    let (exit, hint) = match &error {
        BaseError::Unfit { .. } => {
            (Exit::Usage, "docs/scenario.md describes every key of [[disks]]")
        }
        BaseError::Image { .. } => (Exit::Usage, "paths in a scenario start at its own folder"),
        BaseError::Commands { how, .. } if how == "exit status 127" => {
            (Exit::BuildFailed, "add the missing program to `binaries` in [guest]")
        }
        BaseError::Commands { .. } => {
            (Exit::BuildFailed, "`kiln shell` of a scenario without that disk tries it by hand")
        }
        BaseError::Machine { .. } => (Exit::InfrastructureBroke, "kiln doctor"),
        BaseError::Pool { source, .. } => {
            let full = matches!(&**source, StoreError::Refused(no) if no.why == Why::NoSpace);
            let hint = if full { "kiln disk ls; kiln disk gc" } else { "kiln disk verify" };
            (Exit::InfrastructureBroke, hint)
        }
        BaseError::Interrupted => return Failure::from(error).with_exit(Exit::Interrupted),
        BaseError::Plan(_) | BaseError::Host { .. } => (Exit::Setup, "df -h"),
    };
    Failure::from(error).with_exit(exit).hint(hint)
}

/// The scenario's name as it will still be right in another folder: paths become absolute.
pub(crate) fn lasting_name(name: &str, session: &Session) -> String {
    let shipped = kiln_runner::shipped::ALL.iter().any(|shipped| shipped.name == name);
    if shipped || !session.folder.join(name).is_file() {
        return name.to_owned();
    }
    session.folder.join(name).components().collect::<std::path::PathBuf>().display().to_string()
}

/// Reads a time that a flag gave.
pub(crate) fn time_limit(text: &str) -> Result<TimeLimit, Failure> {
    text.parse::<TimeLimit>()
        .tried(|| "--timeout".to_owned())
        .exits(Exit::Usage)
        .hint("--timeout 90s")
}

/// What a machine needs of this host, asked before anything is recorded.
pub(crate) fn check_machine(session: &Session, machine: &Machine) -> Result<(), Failure> {
    Emulator::find(machine.qemu.as_deref()).exits(Exit::Setup).hint("kiln doctor")?;
    if machine.acceleration == AccelerationChoice::Kvm {
        let verdict = kiln_vm::probe::kvm(Some(session.home.cache()));
        if !verdict.is_usable() {
            return Err(Failure::new(Exit::Setup, format!("KVM was asked for, but {verdict}"))
                .hint("--acceleration tcg, or see `kiln doctor`"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_recognised_below_any_number_of_causes() {
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let source =
            ImageError::Store { act: "write", path: "/cache/image".into(), source: full() };
        assert!(is_full(&EquipError::Image { scenario: "x".into(), source: Box::new(source) }));
        assert!(is_full(&full()));
        assert!(!is_full(&std::io::Error::from(std::io::ErrorKind::NotFound)));
    }
}
