//! Building an appliance.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kiln_model::wildcard;

use super::drivers::Drivers;
use super::input::Appliance;
use super::output::{Locked, Output, lies_in};
use super::record::{self, Seen};
use super::root::{self, Contents};
use super::{Bootable, BuildRequest, Built, Format, SuperminError, direct};
use crate::cache::modified_from_environment;
use crate::ext2::{Options, Plan, Time};
use crate::inventory::{Stamp, feed_bytes};
use crate::kernel::{Host, Kernel, KernelError, compare_releases};

/// Grows whenever the same inputs would give another output.
const FORMAT: u32 = 1;
/// Kernels that do not boot on an ordinary machine.
const OTHER_KERNELS: [&str; 3] = ["xen", "zfcpdump", "+debug"];
/// What is smaller is no kernel, but a placeholder for one.
const SMALLEST_KERNEL: u64 = 10_000;

/// Builds an appliance, unless what is there is still right. `tell` is given a line now and then.
pub fn build(request: &BuildRequest, tell: &mut dyn FnMut(&str)) -> Result<Built, SuperminError> {
    if let Some(lock) = &request.lock
        && lies_in(lock, &request.output)
    {
        let why = "it lies in the output, which is replaced".to_owned();
        return Err(SuperminError::Input { path: lock.clone(), why });
    }
    let _locked = match &request.lock {
        Some(lock) => {
            tell(&format!("acquiring lock on {}", lock.display()));
            Some(Locked::wait(lock)?)
        }
        None => None,
    };
    let asked = digest(request)?;
    if request.if_newer && record::still_holds(&request.output, &asked) {
        tell("if-newer: output does not need rebuilding");
        return Ok(Built::StillRight);
    }
    let mut seen = Seen::default();
    tell("reading the supermin appliance");
    let mut appliance = Appliance::read(&request.inputs, tell)?;
    for input in appliance.looked_at.drain(..) {
        seen.add(input);
    }
    let system = &request.system;
    let contents = Contents::find(&appliance, system, request.package_list, &mut seen, tell)?;
    let seconds = modified_from_environment();
    let modified = Time { seconds: seconds.into(), nanos: 0 };
    let output = Output::begin(&request.output)?;
    let mut outputs = Vec::new();
    let entries = match &request.format {
        Format::Chroot => {
            settle(&mut seen)?;
            let tree = contents.tree(&appliance, system, modified)?;
            tell("chroot: copying files");
            let done = tree.unpack(output.path())?;
            if done.left_out > 0 {
                let count = done.left_out;
                tell(&format!(
                    "chroot: {count} owners and devices were left out: only root may give them"
                ));
            }
            done.entries
        }
        Format::Ext2(bootable) => {
            let kernel = choose_kernel(bootable, system, &mut seen)?;
            root::look_at_kernel(&kernel, &mut seen)?;
            tell(&format!("kernel: picked {}", kernel.image.display()));
            tell(&format!("kernel: kernel_version {}", kernel.release));
            let drivers = Drivers::choose(&kernel, bootable)?;
            settle(&mut seen)?;
            let mut tree = contents.tree(&appliance, system, modified)?;
            root::add_modules(&mut tree, &kernel, &bootable.kernels, modified)?;
            let options = Options {
                size: Some(bootable.size),
                epoch: (seconds != 0).then_some(seconds.into()),
                ..Options::default()
            };
            let plan = Plan::new(tree, &options)?;
            tell("ext2: writing the root disk");
            // What the plan says is the cause; that a disk could not be read adds nothing.
            let unreadable = |error: kiln_block::DeviceError| SuperminError::Unreadable(error);
            direct::write_disk(&plan, &output.path().join("root"), &unreadable)?;
            tell(&format!("ext2: {} modules in the initrd", drivers.modules));
            drivers.write(&output.path().join("initrd"), seconds)?;
            place_kernel(&kernel, bootable, &output.path().join("kernel"))?;
            outputs.extend(["kernel", "initrd", "root"]);
            plan.summary().entries
        }
    };
    let lengths = outputs.iter().map(|name| {
        let path = output.path().join(name);
        let meta = fs::metadata(&path);
        Ok((*name, meta.map_err(|e| SuperminError::host("look at", &path, e))?.len()))
    });
    let lengths: Vec<(&str, u64)> = lengths.collect::<Result<_, SuperminError>>()?;
    let record = output.path().join(record::NAME);
    fs::write(&record, seen.record(&asked, &lengths))
        .map_err(|error| SuperminError::host("write", &record, error))?;
    tell(&format!("renaming to {}", request.output.display()));
    output.publish()?;
    let Contents { packages, missing, notes, .. } = contents;
    Ok(Built::Anew { packages, entries, missing, notes })
}

/// What is built from now on is at least as new as what was seen.
fn settle(seen: &mut Seen) -> Result<(), SuperminError> {
    seen.settle().map_err(|error| SuperminError::host("look at", Path::new("the inputs"), error))
}

/// What tells one request from another, apart from what is in the files.
fn digest(request: &BuildRequest) -> Result<blake3::Hash, SuperminError> {
    let mut digest = blake3::Hasher::new();
    let path = |digest: &mut blake3::Hasher, path: Option<&Path>| {
        digest.update(&[u8::from(path.is_some())]);
        let absolute = path.map(std::path::absolute).and_then(Result::ok).unwrap_or_default();
        feed_bytes(digest, absolute.as_os_str().as_encoded_bytes());
    };
    digest.update(&FORMAT.to_le_bytes());
    feed_bytes(&mut digest, env!("CARGO_PKG_VERSION").as_bytes());
    for input in &request.inputs {
        path(&mut digest, Some(input));
    }
    path(&mut digest, Some(&request.system));
    digest.update(&[u8::from(request.package_list)]);
    digest.update(&modified_from_environment().to_le_bytes());
    match &request.format {
        Format::Chroot => drop(digest.update(b"chroot")),
        Format::Ext2(bootable) => {
            digest.update(&bootable.size.get().to_le_bytes());
            digest.update(&[u8::from(bootable.copy_kernel)]);
            feed_bytes(&mut digest, bootable.architecture.as_bytes());
            path(&mut digest, bootable.kernel.as_deref());
            feed_bytes(&mut digest, bootable.release.as_deref().unwrap_or_default().as_bytes());
            path(&mut digest, bootable.modules.as_deref());
            match &bootable.guest {
                crate::cache::GuestExecutable::Bytes(bytes) => {
                    digest.update(&(bytes.len() as u64).to_le_bytes());
                    digest.update(blake3::hash(bytes).as_bytes());
                }
                crate::cache::GuestExecutable::File(file) => {
                    let meta = fs::metadata(file)
                        .map_err(|error| SuperminError::host("look at", file, error))?;
                    feed_bytes(&mut digest, format!("{:?}", Stamp::of(&meta)).as_bytes());
                }
            }
        }
    }
    Ok(digest.finalize())
}

/// The kernel that was named; else the newest one beside its modules; else the newest in `/boot` for the machine type,
/// or of any.
fn choose_kernel(
    bootable: &Bootable,
    system: &Path,
    seen: &mut Seen,
) -> Result<Kernel, SuperminError> {
    let host = Host {
        boot: system.join("boot"),
        modules: system.join("lib/modules"),
        running: String::new(),
    };
    let image = match &bootable.kernel {
        Some(image) => image.clone(),
        None => {
            for folder in [&host.modules, &host.boot] {
                seen.look(folder, true)
                    .map_err(|error| SuperminError::host("look at", folder, error))?;
            }
            installed(&host, &bootable.architecture).ok_or_else(|| KernelError::NotFound {
                wanted: bootable.architecture.clone(),
                tried: vec![
                    format!("{}/*/vmlinuz", host.modules.display()),
                    format!("{}/vmlinuz-*", host.boot.display()),
                ],
            })?
        }
    };
    let mut kernel = crate::kernel::open(&image, &host, &bootable.kernels)?;
    if let Some(release) = &bootable.release {
        kernel.release.clone_from(release);
        let own = host.modules.join(release);
        kernel.modules = own.is_dir().then_some(own).or(kernel.modules);
    }
    if let Some(modules) = &bootable.modules {
        kernel.modules = Some(modules.clone());
    }
    Ok(kernel)
}

fn installed(host: &Host, architecture: &str) -> Option<PathBuf> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let is_usable = |release: &str, image: &Path| {
        let size = fs::metadata(image).map_or(0, |meta| meta.len());
        size >= SMALLEST_KERNEL && !OTHER_KERNELS.iter().any(|other| release.contains(other))
    };
    let newest = |found: Vec<(String, PathBuf)>| {
        found.into_iter().max_by(|a, b| compare_releases(&a.0, &b.0)).map(|(_, image)| image)
    };
    let beside = names(&host.modules).into_iter().filter_map(|release| {
        let image = host.modules.join(&release).join("vmlinuz");
        is_usable(&release, &image).then_some((release, image))
    });
    if let Some(image) = newest(beside.collect()) {
        return Some(image);
    }
    let in_boot = || {
        names(&host.boot).into_iter().filter_map(|name| {
            let release =
                name.strip_prefix("vmlinuz-").or_else(|| name.strip_prefix("vmlinux-"))?;
            let image = host.boot.join(&name);
            let has_modules = host.modules.join(release).join("modules.dep").exists();
            (has_modules && is_usable(release, &image)).then_some((release.to_owned(), image))
        })
    };
    let patterns = machine_patterns(architecture);
    let fitting = in_boot()
        .filter(|(release, _)| patterns.iter().any(|pattern| wildcard::matches(pattern, release)));
    newest(fitting.collect()).or_else(|| newest(in_boot().collect()))
}

/// How distributions write a machine type at the end of a release.
fn machine_patterns(architecture: &str) -> Vec<String> {
    let names: &[&str] = match architecture {
        "amd64" | "x86_64" => &["amd64", "x86_64"],
        "i386" | "i486" | "i586" | "i686" => &["?86", "i?86"],
        "arm64" | "aarch64" => &["arm64", "aarch64"],
        other => return vec![format!("*{other}*")],
    };
    names.iter().map(|name| format!("*{name}")).collect()
}

/// Copies a kernel, unpacked if it can be entered directly, or links to it.
fn place_kernel(kernel: &Kernel, bootable: &Bootable, place: &Path) -> Result<(), SuperminError> {
    let failed = |source| SuperminError::host("write", place, source);
    if !bootable.copy_kernel {
        return std::os::unix::fs::symlink(&kernel.image, place).map_err(failed);
    }
    let boot = kernel.boot_file(&bootable.kernels)?;
    direct::copy_file(boot.path(), place)?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o644)).map_err(failed)
}
