//! Whether a disk is its source: every file, through readers that share nothing with the writer. The kernel says
//! all there is to say, and needs root and a loop device; `ext4-view` says most of it to anybody.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use ext4_view::{Ext4, PathBuf as DiskPath};
use kiln_image::ext2::Mapping;
use rustix::fs::SeekFrom;

/// Blocks that are holes in the source are holes on the disk.
pub(crate) const BLOCK: u64 = 4096;
const PIECE: usize = 1 << 20;

/// Names of a directory, sorted. The disk's root has one more, which is left out.
pub(crate) fn names(folder: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Holds a directory tree against the same tree where the kernel has mounted it. Returns how many files there are.
pub(crate) fn same_mounted(source: &Path, mount: &Path) -> usize {
    let device = fs::metadata(source).unwrap().dev();
    // By their inode in the source: the one on the disk, how many names were seen, and how many it says.
    let mut linked: HashMap<u64, (u64, u64, u64)> = HashMap::new();
    let mut count = 0;
    let mut ahead = vec![(source.to_owned(), mount.to_owned())];
    while let Some((here, there)) = ahead.pop() {
        let shown = here.display();
        let (meta, copy) =
            (fs::symlink_metadata(&here).unwrap(), fs::symlink_metadata(&there).unwrap());
        count += 1;
        assert_eq!(meta.mode(), copy.mode(), "mode of {shown}");
        assert_eq!((meta.uid(), meta.gid()), (copy.uid(), copy.gid()), "owner of {shown}");
        let time = |meta: &Metadata| (meta.mtime(), meta.mtime_nsec());
        assert_eq!(time(&meta), time(&copy), "time of {shown}");
        assert_eq!(meta.rdev(), copy.rdev(), "device of {shown}");
        let (wanted, found) = (xattrs(&here), xattrs(&there));
        assert_eq!(wanted, found, "attributes of {shown}");
        if !meta.is_dir() {
            let seen = linked.entry(meta.ino()).or_insert((copy.ino(), 0, copy.nlink()));
            assert_eq!(seen.0, copy.ino(), "hard links of {shown}");
            seen.1 += 1;
            if seen.1 > 1 {
                continue;
            }
        }
        if meta.is_file() {
            same_bytes(&here, &there, &meta, &copy);
        } else if meta.is_symlink() {
            assert_eq!(fs::read_link(&here).unwrap(), fs::read_link(&there).unwrap(), "{shown}");
        } else if meta.is_dir() {
            let listed = if meta.dev() == device { names(&here) } else { Vec::new() };
            let mut found = names(&there);
            if here == source && !listed.iter().any(|name| name == "lost+found") {
                found.retain(|name| name != "lost+found");
            }
            assert!(listed == found, "names in {shown}");
            ahead.extend(listed.iter().map(|name| (here.join(name), there.join(name))));
        }
    }
    for (inode, seen, said) in linked.values() {
        assert_eq!(seen, said, "links of inode {inode}");
    }
    count
}

/// All attributes that ext2 has a place for.
pub(crate) fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0; 65536];
    let Ok(len) = rustix::fs::llistxattr(path, &mut list[..]) else { return Vec::new() };
    let mut found: Vec<(Vec<u8>, Vec<u8>)> = list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && !name.starts_with(b"system.n"))
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect();
    found.sort();
    found
}

fn same_bytes(here: &Path, there: &Path, meta: &Metadata, copy: &Metadata) {
    let shown = here.display();
    assert_eq!(meta.len(), copy.len(), "length of {shown}");
    let (one, other) = (File::open(here).unwrap(), File::open(there).unwrap());
    let whole = std::iter::once((0, meta.len())).filter(|(_, end)| *end > 0).collect::<Vec<_>>();
    let sparse = is_sparse(meta);
    let runs = if sparse { data(&one, meta.len()) } else { whole };
    if sparse {
        assert_eq!(runs, data(&other, meta.len()), "holes of {shown}");
    }
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    for (start, end) in runs {
        for at in (start..end.min(meta.len())).step_by(PIECE) {
            let len = usize::try_from(end.min(meta.len()) - at).unwrap().min(PIECE);
            one.read_exact_at(&mut a[..len], at).unwrap();
            other.read_exact_at(&mut b[..len], at).unwrap();
            assert!(a[..len] == b[..len], "content of {shown} from {at} on");
        }
    }
}

/// Whether a file has holes, as far as can be seen without looking for them.
pub(crate) fn is_sparse(meta: &Metadata) -> bool {
    meta.len() > BLOCK && meta.blocks() * 512 < meta.len()
}

/// Where a file has data, in whole blocks: starts and ends.
pub(crate) fn data(file: &File, len: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < len {
        let Ok(start) = rustix::fs::seek(file, SeekFrom::Data(at)) else { break };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap();
        let (first, last) = (start / BLOCK * BLOCK, end.div_ceil(BLOCK) * BLOCK);
        match runs.last_mut() {
            Some(run) if run.1 >= first => run.1 = last,
            _ => runs.push((first, last)),
        }
        at = end;
    }
    runs
}

/// Holds a directory tree against an image as `ext4-view` reads it: names, kinds, permissions, owners, lengths, bytes,
/// where links lead. It takes a table that is not there for block 0, so of files with holes it is only asked for the
/// bytes where they are found by extents. Returns how many files there are.
pub(crate) fn same_viewed(source: &Path, image: &Path, mapping: Mapping) -> usize {
    let disk = Ext4::load_from_path(image).unwrap();
    let device = fs::metadata(source).unwrap().dev();
    let mut count = 0;
    let mut read = std::collections::HashSet::new();
    let mut ahead = vec![(source.to_owned(), DiskPath::new("/"))];
    while let Some((here, there)) = ahead.pop() {
        let shown = here.display();
        let meta = fs::symlink_metadata(&here).unwrap();
        let copy = disk.symlink_metadata(&there).unwrap_or_else(|error| panic!("{shown}: {error}"));
        count += 1;
        assert_eq!(meta.mode() & 0o7777, u32::from(copy.mode()) & 0o7777, "mode of {shown}");
        assert_eq!((meta.uid(), meta.gid()), (copy.uid(), copy.gid()), "owner of {shown}");
        let kinds = (copy.file_type().is_regular_file(), copy.is_dir(), copy.is_symlink());
        assert_eq!(kinds, (meta.is_file(), meta.is_dir(), meta.is_symlink()), "kind of {shown}");
        if meta.is_symlink() {
            let target = disk.read_link(&there).unwrap();
            let wanted = fs::read_link(&here).unwrap();
            assert_eq!(AsRef::<[u8]>::as_ref(&target), wanted.as_os_str().as_bytes(), "{shown}");
        } else if meta.is_dir() {
            let listed = if meta.dev() == device { names(&here) } else { Vec::new() };
            let mut found: Vec<Vec<u8>> = disk
                .read_dir(&there)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().as_ref().to_vec())
                .filter(|name| name != b"." && name != b"..")
                .filter(|name| here != source || name != b"lost+found")
                .collect();
            found.sort();
            let wanted = listed.iter().filter(|name| here != source || *name != "lost+found");
            assert!(wanted.map(|name| name.as_bytes()).eq(&found), "names in {shown}");
            ahead.extend(listed.iter().map(|name| (here.join(name), there.join(name.as_bytes()))));
        } else if meta.is_file() {
            assert_eq!(meta.len(), copy.len(), "length of {shown}");
            let whole = mapping == Mapping::Extents || meta.blocks() * 512 >= meta.len();
            if whole && read.insert(meta.ino()) {
                viewed_bytes(&here, &disk, &there);
            }
        }
    }
    count
}

fn viewed_bytes(here: &Path, disk: &Ext4, there: &DiskPath) {
    let mut one = File::open(here).unwrap();
    let len = one.metadata().unwrap().len();
    let mut other = disk.open(there).unwrap();
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    // It seeks block by block; of gigabytes with holes, a look here and there has to do.
    let sparse = len > 1 << 30 && one.metadata().unwrap().blocks() * 512 < len;
    let runs = if sparse { data(&one, len) } else { vec![(0, len)] };
    for (start, end) in runs.iter().copied().step_by(runs.len() / 8 + 1) {
        rustix::fs::seek(&one, SeekFrom::Start(start)).unwrap();
        other.seek_to(start).unwrap();
        let mut left = end.min(len) - start;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            one.read_exact(&mut a[..piece]).unwrap();
            let mut done = 0;
            while done < piece {
                let count = other.read_bytes(&mut b[done..piece]).unwrap();
                assert!(count > 0, "end of {}", here.display());
                done += count;
            }
            assert!(a[..piece] == b[..piece], "content of {}", here.display());
            left -= piece as u64;
        }
    }
}
