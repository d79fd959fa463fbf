//! `kiln supermin`: appliances as supermin makes them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use kiln_image::kernel::KernelError;
use kiln_image::packages::{Manager, PackageError};
use kiln_image::supermin::{
    Bootable, BuildRequest, Built, Format, PrepareRequest, SuperminError, build, prepare,
};
use serde_json::json;

use super::kernel;
use crate::arguments::{Made, SuperminArgs};
use crate::embedded;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::hostile;
use crate::session::Session;
use crate::terminal;

/// The release of supermin whose command line is understood. Programs that are built to use supermin ask for it.
const RELEASE: &str = "5.3.5";

/// The command line as it is meant: a program called `supermin` is this command, and there `--format` says what
/// to build.
pub(crate) fn as_typed(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    if called == Some(OsStr::new("supermin")) {
        arguments.splice(..1, ["kiln", "supermin"].map(OsString::from));
    }
    if arguments.get(1).is_some_and(|command| command == "supermin") {
        for at in 2..arguments.len() {
            let made = |text: &OsStr| {
                ["ext2", "chroot", "fs", "filesystem"].iter().any(|made| text == *made)
            };
            let joined = arguments[at].to_str().and_then(|text| text.strip_prefix("--format="));
            if let Some(value) = joined.filter(|value| made(OsStr::new(value))) {
                arguments[at] = format!("-f{value}").into();
            } else if arguments[at] == "--format"
                && arguments.get(at + 1).is_some_and(|value| made(value))
            {
                arguments[at] = "-f".into();
            }
        }
    }
    arguments
}

/// `kiln supermin`
pub(crate) fn supermin(
    session: &Session,
    args: &SuperminArgs,
    verbose: u8,
) -> Result<Exit, Failure> {
    if args.names {
        let message = "--names is supermin 4's; this is the command line of supermin 5";
        return Err(Failure::new(Exit::Usage, message));
    }
    if args.dtb.is_some() {
        let message = "--dtb is gone since supermin 5.1.18: leave it and its wildcard out";
        return Err(Failure::new(Exit::Usage, message));
    }
    if args.release {
        let ours = env!("CARGO_PKG_VERSION");
        terminal::out_line(&format!("supermin {RELEASE} (kiln {ours})"))?;
        return Ok(Exit::Success);
    }
    if args.list_drivers {
        return list_drivers(session);
    }
    if let Some(folder) = std::env::var_os("TMPDIR")
        && Path::new(&folder).is_relative()
    {
        return Err(Failure::new(Exit::Usage, "TMPDIR must be an absolute path"));
    }
    // The parser has seen to it that there is one.
    let output = args.output.clone().unwrap_or_default();
    if args.inputs.is_empty() {
        let what = if args.prepare { "packages" } else { "appliance" };
        return Err(Failure::new(Exit::Usage, format!("no {what} given")));
    }
    let mut tell = |line: &str| {
        if verbose > 0 {
            terminal::say(&format!("supermin: {}", hostile::line(line)));
        }
    };
    let system = PathBuf::from("/");
    if args.prepare {
        let request = PrepareRequest {
            packages: args.inputs.clone(),
            output,
            use_installed: args.use_installed,
            packager_config: args.packager_config.clone(),
            system,
        };
        let prepared = prepare(&request, &mut tell).map_err(refused)?;
        notes(&prepared.notes);
        return done(
            session,
            &json!({
                "path": request.output, "packages": prepared.packages, "config": prepared.config,
                "notes": prepared.notes,
            }),
        );
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let format = match args.made {
        Some(Made::Chroot) => Format::Chroot,
        Some(Made::Ext2) | None => Format::Ext2(Box::new(Bootable {
            size: args.size,
            copy_kernel: args.copy_kernel,
            architecture: args.host_cpu.clone(),
            kernel: variable("SUPERMIN_KERNEL").map(PathBuf::from),
            release: variable("SUPERMIN_KERNEL_VERSION").and_then(|text| text.into_string().ok()),
            modules: variable("SUPERMIN_MODULES").map(PathBuf::from),
            kernels: kernel::cache(session),
            guest: embedded::guest(session.config.path("guest.executable"))?,
        })),
    };
    let request = BuildRequest {
        inputs: args.inputs.iter().map(PathBuf::from).collect(),
        output,
        format,
        if_newer: args.if_newer,
        lock: args.lock.clone(),
        package_list: args.include_packagelist,
        system,
    };
    let built = build(&request, &mut tell).map_err(refused)?;
    let about = match &built {
        Built::StillRight => json!({"path": request.output, "built": false}),
        Built::Anew { packages, entries, missing, notes: other } => {
            notes(missing);
            if verbose > 0 {
                notes(other);
            }
            json!({
                "path": request.output, "built": true, "packages": packages, "entries": entries,
                "missing": missing, "notes": other,
            })
        }
    };
    done(session, &about)
}

fn notes(notes: &[String]) {
    for note in notes {
        terminal::say(&format!("note: {}", hostile::line(note)));
    }
}

/// supermin says nothing when all is well, and neither do we unless JSON is wanted.
fn done(session: &Session, about: &serde_json::Value) -> Result<Exit, Failure> {
    if session.json() {
        session.out_json(about)?;
    }
    Ok(Exit::Success)
}

fn list_drivers(session: &Session) -> Result<Exit, Failure> {
    let here = |manager: Manager| manager.is_used_by(Path::new("/"));
    if session.json() {
        let drivers =
            Manager::ALL.map(|manager| json!({"name": manager.name(), "detected": here(manager)}));
        session.out_json(&drivers)?;
        return Ok(Exit::Success);
    }
    for manager in Manager::ALL {
        let word = if here(manager) { "detected" } else { "not-detected" };
        terminal::out_line(&format!("{}\t{word}", manager.name()))?;
    }
    Ok(Exit::Success)
}

fn refused(error: SuperminError) -> Failure {
    let (exit, hint) = match &error {
        SuperminError::Input { .. }
        | SuperminError::NoPackage { .. }
        | SuperminError::Package(PackageError::NotInstalled { .. }) => (Exit::Usage, None),
        SuperminError::Host { act: "read" | "lock", .. } => (Exit::Usage, None),
        SuperminError::Package(PackageError::Database { .. }) => {
            (Exit::Setup, Some("packages are read from dpkg's database or asked of rpm"))
        }
        SuperminError::Kernel(KernelError::NotFound { .. }) => (
            Exit::Setup,
            Some("install a kernel, or name one: SUPERMIN_KERNEL=$(kiln kernel path …)"),
        ),
        SuperminError::Kernel(KernelError::Unreadable { .. }) => (Exit::Setup, None),
        _ => (Exit::BuildFailed, None),
    };
    let failure = Failure::from(error).with_exit(exit);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
