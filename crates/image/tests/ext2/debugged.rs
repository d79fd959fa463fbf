//! Whether a disk is its source as e2fsprogs' `debugfs` reads it: every inode, name, link, attribute and byte. It asks
//! for inodes by number, so names may hold anything, and needs no rights.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::faithful::{BLOCK, data, is_sparse, names, xattrs};
use super::tool;

const ROOT: u32 = 2;
/// `lost+found`; the rest follows.
const FIRST: u32 = 11;
const DIRECTORY: u32 = 0o040_000;
/// Files up to this long are taken out whole, as long as they have no holes; of others the blocks are looked at.
const WHOLE: u64 = 16 << 20;
/// So much of them lies in the work folder at once.
const AT_ONCE: u64 = 256 << 20;

/// What `stat` says of an inode.
struct Inode {
    permissions: u32,
    owner: (u32, u32),
    size: u64,
    links: u64,
    modified: (i64, i64),
    device: (u32, u32),
    /// A link that lies in the inode.
    target: Option<Vec<u8>>,
    /// How many attributes there are.
    attributes: usize,
    /// In the order of the file: its block, the disk's, how many.
    runs: Vec<(u64, u64, u64)>,
}

/// A file of the source whose bytes are still to be compared with an inode's.
struct Left<'s> {
    path: PathBuf,
    meta: Metadata,
    number: u32,
    inode: &'s Inode,
}

/// What `debugfs` answers to each of these requests, in a folder where it may leave files.
fn ask(image: &Path, work: &Path, requests: &[String]) -> Vec<Vec<u8>> {
    if requests.is_empty() {
        return Vec::new();
    }
    let script = work.join("requests");
    fs::write(&script, requests.join("\n") + "\n").unwrap();
    let image = fs::canonicalize(image).unwrap();
    let mut debugfs = tool("debugfs");
    debugfs.args(["-f", "requests"]).arg(image).current_dir(work).stdin(Stdio::null());
    let output = debugfs.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().filter(|line| !line.starts_with("debugfs 1.")).collect();
    assert!(output.status.success() && said.is_empty(), "{said:?}");
    fs::remove_file(script).unwrap();
    let mut answers: Vec<Vec<u8>> = Vec::with_capacity(requests.len());
    for line in output.stdout.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b"debugfs: ") {
            let request = String::from_utf8_lossy(&line[9..]);
            assert_eq!(Some(request.trim_end()), requests.get(answers.len()).map(String::as_str));
            answers.push(Vec::new());
        } else {
            answers.last_mut().unwrap().extend_from_slice(line);
        }
    }
    assert_eq!(answers.len(), requests.len());
    answers
}

/// The first number behind a word.
fn number(text: &str, word: &str) -> i64 {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no {word} in {text}"));
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("{word} is no number in {text}"))
}

/// An owner is printed as if it had a sign.
fn id(text: &str, word: &str) -> u32 {
    u32::try_from(number(text, word) & 0xffff_ffff).unwrap()
}

impl Inode {
    fn parse(answer: &[u8]) -> Inode {
        const LINK: &[u8] = b"Fast link dest: \"";
        let text = String::from_utf8_lossy(answer);
        let (_, modified) = text.split_once("\n mtime: 0x").unwrap();
        let word = |at: usize| u32::from_str_radix(&modified[at..at + 8], 16).unwrap();
        let extra = word(9);
        let seconds = i64::from(word(0).cast_signed()) + (i64::from(extra & 3) << 32);
        let mut device = (0, 0);
        if let Some((_, numbers)) = text.split_once("Device major/minor number: ") {
            let (major, rest) = numbers.split_once(':').unwrap();
            let (minor, _) = rest.split_once(' ').unwrap();
            device = (major.parse().unwrap(), minor.parse().unwrap());
        }
        let target = answer.windows(LINK.len()).position(|bytes| bytes == LINK).map(|at| {
            let rest = &answer[at + LINK.len()..];
            rest[..rest.iter().rposition(|byte| *byte == b'"').unwrap()].to_vec()
        });
        let attributes = text.split_once("\nExtended attributes:\n").map_or(0, |(_, listed)| {
            listed.lines().take_while(|line| line.starts_with("  ")).count()
        });
        let blocks = text.split_once("\nBLOCKS:\n").or_else(|| text.split_once("\nEXTENTS:\n"));
        let (_, mode) = text.split_once("Mode:").unwrap();
        let mode = mode.split_whitespace().next().unwrap();
        Inode {
            permissions: u32::from_str_radix(mode, 8).unwrap(),
            owner: (id(&text, "User:"), id(&text, "Group:")),
            size: u64::try_from(number(&text, "Size:")).unwrap(),
            links: u64::try_from(number(&text, "Links:")).unwrap(),
            modified: (seconds, i64::from(extra >> 2)),
            device,
            target,
            attributes,
            runs: blocks.map_or_else(Vec::new, |(_, blocks)| runs(blocks)),
        }
    }

    /// Its stretches of blocks that are not holes: starts and ends, in bytes.
    fn stretches(&self) -> Vec<(u64, u64)> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        for (block, _, count) in &self.runs {
            let (start, end) = (block * BLOCK, (block + count) * BLOCK);
            match found.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => found.push((start, end)),
            }
        }
        found
    }

    /// Fills a buffer from a place on that lies within one run's blocks, and maybe the next ones'.
    fn read(&self, image: &File, mut at: u64, buffer: &mut [u8]) {
        let mut buffer = buffer;
        let first = self.runs.partition_point(|(block, _, count)| (block + count) * BLOCK <= at);
        for (block, place, count) in &self.runs[first..] {
            let inside = at - block * BLOCK;
            let left = usize::try_from(count * BLOCK - inside).unwrap();
            let all = buffer;
            let (here, rest) = all.split_at_mut(left.min(all.len()));
            image.read_exact_at(here, place * BLOCK + inside).unwrap();
            at += here.len() as u64;
            buffer = rest;
            if buffer.is_empty() {
                return;
            }
        }
        panic!("nothing at {at}");
    }
}

/// From `(0-11):500-511, (IND):512, (12):513`: what leads to blocks is left out.
fn runs(blocks: &str) -> Vec<(u64, u64, u64)> {
    let line = blocks.lines().next().unwrap_or_default();
    let range = |text: &str| -> (u64, u64) {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (first.parse().unwrap(), last.parse().unwrap())
    };
    let is_run = |item: &&str| item.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
    let items = line.split(", ").filter(is_run);
    let runs = items.map(|item| {
        let (file, disk) = item[1..].split_once("):").unwrap();
        let ((block, last), (place, end)) = (range(file), range(disk));
        assert_eq!(last - block, end - place, "{item}");
        (block, place, last - block + 1)
    });
    runs.collect()
}

/// Names in a directory from `ls -p`: `/INODE/MODE/UID/GID/NAME/SIZE/` in a line each. Only a name may hold a newline,
/// and nothing a slash.
fn entries(listed: &[u8]) -> Vec<(Vec<u8>, u32, u32)> {
    let fields: Vec<&[u8]> = listed.split(|byte| *byte == b'/').collect();
    let mut found = Vec::new();
    for entry in fields[1..].chunks_exact(7) {
        let text = |at: usize| std::str::from_utf8(entry[at]).unwrap();
        let mode = u32::from_str_radix(text(1), 8).unwrap();
        if !matches!(entry[4], b"." | b"..") {
            found.push((entry[4].to_vec(), text(0).parse().unwrap(), mode));
        }
    }
    found.sort();
    found
}

/// Holds a directory tree against an image as `debugfs` reads it. Returns how many files there are.
pub(crate) fn same_debugged(source: &Path, image: &Path, work: &Path) -> usize {
    let folder = tempfile::tempdir_in(work).unwrap();
    let work = folder.path();
    let counts = ask(image, work, &["show_super_stats -h".to_owned()]).remove(0);
    let counts = String::from_utf8(counts).unwrap();
    let last = number(&counts, "Inode count:") - number(&counts, "Free inodes:");
    let numbers: Vec<u32> =
        std::iter::once(ROOT).chain(FIRST..=u32::try_from(last).unwrap()).collect();
    let requests: Vec<String> = numbers.iter().map(|number| format!("stat <{number}>")).collect();
    let answers = ask(image, work, &requests);
    let folders: Vec<u32> = numbers
        .iter()
        .zip(&answers)
        .filter(|(_, answer)| answer.windows(17).take(60).any(|w| w == b" Type: directory "))
        .map(|(number, _)| *number)
        .collect();
    let inodes: HashMap<u32, Inode> =
        numbers.iter().copied().zip(answers.iter().map(|answer| Inode::parse(answer))).collect();
    let requests: Vec<String> = folders.iter().map(|number| format!("ls -p <{number}>")).collect();
    let listed: HashMap<u32, Vec<u8>> =
        folders.iter().copied().zip(ask(image, work, &requests)).collect();

    let device = fs::metadata(source).unwrap().dev();
    // By their inode in the source: the one on the disk, and how many names were seen.
    let mut linked: HashMap<u64, (u32, u64)> = HashMap::new();
    let mut left = Vec::new();
    let mut count = 0;
    let mut ahead = vec![(source.to_owned(), ROOT, None)];
    while let Some((here, number, mode)) = ahead.pop() {
        let shown = here.display();
        let (meta, inode) = (fs::symlink_metadata(&here).unwrap(), &inodes[&number]);
        count += 1;
        assert!(mode.is_none_or(|mode| mode == meta.mode()), "mode of {shown}");
        assert_eq!(inode.permissions, meta.mode() & 0o7777, "permissions of {shown}");
        assert_eq!(inode.owner, (meta.uid(), meta.gid()), "owner of {shown}");
        assert_eq!(inode.modified, (meta.mtime(), meta.mtime_nsec()), "time of {shown}");
        let numbers = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        assert_eq!(inode.device, numbers, "device of {shown}");
        if meta.is_dir() {
            let wanted = if meta.dev() == device { names(&here) } else { Vec::new() };
            let mut found = entries(&listed[&number]);
            let below = found.iter().filter(|(_, _, mode)| mode & 0o170_000 == DIRECTORY).count();
            assert_eq!(inode.links, below as u64 + 2, "links of {shown}");
            if here == source && !wanted.iter().any(|name| name == "lost+found") {
                found.retain(|(name, _, _)| name != b"lost+found");
            }
            let sorted = found.iter().map(|(name, _, _)| name.as_slice());
            assert!(wanted.iter().map(|name| name.as_bytes()).eq(sorted), "names in {shown}");
            let children = wanted.iter().zip(&found);
            ahead.extend(
                children.map(|(name, (_, number, mode))| (here.join(name), *number, Some(*mode))),
            );
        } else {
            let seen = linked.entry(meta.ino()).or_insert((number, 0));
            assert_eq!(seen.0, number, "hard links of {shown}");
            seen.1 += 1;
            if seen.1 > 1 {
                continue;
            }
        }
        left.push(Left { path: here, meta, number, inode });
    }
    for (number, names) in linked.values() {
        assert_eq!(inodes[number].links, *names, "links of inode {number}");
    }
    same_attributes(image, work, &left);
    same_contents(image, work, &left);
    count
}

/// Attributes by name, and their values; of names that cannot be asked for, that they are there.
fn same_attributes(image: &Path, work: &Path, left: &[Left<'_>]) {
    let (mut requests, mut wanted) = (Vec::new(), Vec::new());
    for file in left {
        let all = xattrs(&file.path);
        assert_eq!(all.len(), file.inode.attributes, "attributes of {}", file.path.display());
        for (name, value) in all {
            let Ok(name) = String::from_utf8(name) else { continue };
            if name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
                requests.push(format!("ea_get -f {} <{}> {name}", wanted.len(), file.number));
                wanted.push((file, name, value));
            }
        }
    }
    ask(image, work, &requests);
    for (at, (file, name, value)) in wanted.into_iter().enumerate() {
        let path = work.join(at.to_string());
        let mut found = fs::read(&path).unwrap();
        fs::remove_file(path).unwrap();
        let mut value = value;
        if name.starts_with("system.posix_acl") {
            // Entries that name nobody have no number; what stands in its place differs.
            for list in [&mut value, &mut found] {
                for entry in list[4..].chunks_exact_mut(8).filter(|e| !matches!(e[0], 2 | 8)) {
                    entry[4..].fill(0);
                }
            }
        }
        assert!(found == value, "attribute {name} of {}", file.path.display());
    }
}

fn same_contents(image: &Path, work: &Path, left: &[Left<'_>]) {
    let disk = File::open(image).unwrap();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for file in left {
        let (meta, inode, shown) = (&file.meta, file.inode, file.path.display());
        if meta.is_symlink() {
            let target = fs::read_link(&file.path).unwrap();
            let found = inode.target.clone().unwrap_or_else(|| {
                let mut bytes = vec![0; usize::try_from(inode.size).unwrap()];
                inode.read(&disk, 0, &mut bytes);
                bytes
            });
            assert_eq!(found, target.as_os_str().as_bytes(), "target of {shown}");
        }
        if !meta.is_file() {
            continue;
        }
        assert_eq!(inode.size, meta.len(), "length of {shown}");
        let here = File::open(&file.path).unwrap();
        let runs = if is_sparse(meta) {
            data(&here, meta.len())
        } else {
            Vec::from_iter((meta.len() > 0).then_some((0, meta.len().next_multiple_of(BLOCK))))
        };
        assert_eq!(inode.stretches(), runs, "holes of {shown}");
        if is_sparse(meta) || meta.len() > WHOLE {
            same_blocks(&here, inode, &disk, &runs, &shown.to_string());
            continue;
        }
        batch.push(file);
        bytes += meta.len();
        if bytes > AT_ONCE || batch.len() == 5000 {
            same_whole(image, work, &std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    same_whole(image, work, &batch);
}

/// Compares blocks at the places where they are said to be; behind a file's end are zeros.
fn same_blocks(here: &File, inode: &Inode, disk: &File, runs: &[(u64, u64)], shown: &str) {
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for (start, end) in runs {
        for at in (*start..*end).step_by(one.len()) {
            let len = usize::try_from(end - at).unwrap().min(one.len());
            let inside = usize::try_from(inode.size.saturating_sub(at)).unwrap().min(len);
            here.read_exact_at(&mut one[..inside], at).unwrap();
            one[inside..len].fill(0);
            inode.read(disk, at, &mut other[..len]);
            assert!(one[..len] == other[..len], "content of {shown} from {at} on");
        }
    }
}

/// Takes files out of the image and compares them.
fn same_whole(image: &Path, work: &Path, files: &[&Left<'_>]) {
    let dump = |(at, file): (usize, &&Left<'_>)| format!("dump <{}> {at}", file.number);
    ask(image, work, &files.iter().enumerate().map(dump).collect::<Vec<_>>());
    for (at, file) in files.iter().enumerate() {
        let path = work.join(at.to_string());
        let same = fs::read(&path).unwrap() == fs::read(&file.path).unwrap();
        assert!(same, "content of {}", file.path.display());
        fs::remove_file(path).unwrap();
    }
}
