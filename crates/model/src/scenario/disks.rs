//! `[[disks]]`: what the machine has besides its image, and what each holds when the machine starts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_block::ByteLen;

use super::error::{Problem, ScenarioError};
use super::quantity::DiskSize;
use super::section::Section;
use super::{MAX_DISKS, MAX_SERIAL};
use crate::root::ROOT_SERIAL;

const KEYS: &[&str] = &["count", "size", "serial", "base", "image", "filesystem", "prepare"];

/// One disk, found in the guest by its serial; every machine has a clone of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// `/dev/disk/by-id/virtio-SERIAL` in the guest.
    pub serial: String,
    /// Its size, a whole number of 4096 bytes; none for the size of what it starts as.
    pub size: Option<ByteLen>,
    /// What it holds when a machine starts.
    pub start: DiskStart,
    /// Where the scenario speaks of it.
    pub line: usize,
}

/// What a disk starts as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskStart {
    /// Zeros.
    Empty,
    /// A snapshot of a disk in the pool.
    Base {
        /// The disk.
        disk: String,
        /// Its snapshot.
        snapshot: String,
    },
    /// A raw or qcow2 image, copied into the pool once.
    Image {
        /// As the scenario names it.
        path: PathBuf,
    },
    /// What is made once in the scenario's own guest.
    Made(Making),
}

/// How the start of a disk is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    /// The file system that the guest's `mkfs.NAME` puts on it.
    pub filesystem: Option<String>,
    /// Commands that fill it: in the root of that file system, where there is one.
    pub prepare: Option<String>,
}

pub(super) fn read_disks(root: &Section<'_, '_>) -> Result<Vec<Disk>, ScenarioError> {
    let mut disks: Vec<Disk> = Vec::new();
    let mut first_seen: BTreeMap<String, usize> = BTreeMap::new();
    for section in root.tables("disks", KEYS)? {
        let size: Option<DiskSize> = section.parsed("size")?;
        let start = read_start(&section)?;
        if size.is_none() && matches!(start, DiskStart::Empty | DiskStart::Made(_)) {
            return Err(section.missing("size", "a disk needs one, such as \"1G\""));
        }
        let serial = section.string("serial")?.map_or_else(|| "disk".to_owned(), |s| s.value);
        check_serial(&serial).map_err(|rule| section.value_error("serial", rule))?;
        let count = section.counted("count", MAX_DISKS, "a machine has 1 to 24 disks")?;
        let serials: Vec<String> = match count {
            None => vec![serial],
            Some(count) => (1..=count).map(|number| format!("{serial}{number}")).collect(),
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
            let size = size.map(DiskSize::get);
            disks.push(Disk { serial, size, start: start.clone(), line: section.line() });
        }
    }
    Ok(disks)
}

fn read_start(section: &Section<'_, '_>) -> Result<DiskStart, ScenarioError> {
    let base = section.string("base")?;
    let image = section.string("image")?;
    let filesystem = section.string("filesystem")?.map(|name| name.value);
    let prepare = section.string("prepare")?.map(|commands| commands.value);
    let made = filesystem.is_some() || prepare.is_some();
    if u32::from(base.is_some()) + u32::from(image.is_some()) + u32::from(made) > 1 {
        let key = match (&image, &filesystem) {
            (Some(_), _) => "image",
            (_, Some(_)) => "filesystem",
            _ => "prepare",
        };
        let rule =
            "a disk starts as one thing: `base`, `image`, or what `filesystem` and `prepare` make";
        return Err(section.value_error(key, rule));
    }
    if let Some(base) = base {
        let wrong = |c: char| c == '@' || c == '/' || c.is_control();
        return match base.value.split_once('@') {
            Some((disk, snapshot))
                if !disk.is_empty() && !snapshot.is_empty() && !snapshot.contains(wrong) =>
            {
                Ok(DiskStart::Base { disk: disk.to_owned(), snapshot: snapshot.to_owned() })
            }
            _ => {
                let rule = "name a snapshot of the pool as NAME@SNAP; `kiln disk snap NAME SNAP` takes one";
                Err(section.value_error("base", rule))
            }
        };
    }
    if let Some(image) = image {
        if image.value.is_empty() || image.value.contains('\0') {
            return Err(section.value_error("image", "name a raw or qcow2 file"));
        }
        return Ok(DiskStart::Image { path: PathBuf::from(image.value) });
    }
    if let Some(name) = &filesystem {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.is_empty() || name.len() > 16 || !name.chars().all(plain) {
            let rule = "name a file system such as \"ext4\"; the guest needs its mkfs.ext4";
            return Err(section.value_error("filesystem", rule));
        }
    }
    if let Some(commands) = &prepare
        && (commands.trim().is_empty() || commands.contains('\0'))
    {
        return Err(section.value_error("prepare", "write the commands that fill the disk"));
    }
    Ok(if made { DiskStart::Made(Making { filesystem, prepare }) } else { DiskStart::Empty })
}

/// QEMU's option syntax, udev and shells all see the serial, so it keeps to what none of them interprets.
fn check_serial(serial: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if serial.is_empty() || !serial.chars().all(allowed) {
        Err("a serial is made of letters, digits, '-', '_' and '.'")
    } else if serial == ROOT_SERIAL {
        Err("that is the serial of the root disk: choose another")
    } else if serial.len() > MAX_SERIAL {
        Err("a serial has at most 20 bytes")
    } else {
        Ok(())
    }
}
