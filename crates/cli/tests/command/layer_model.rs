//! Random changes to random stacks against a byte array. The changes are made through a mounted disk; then they are
//! committed or sealed, mounted again under the next changes, and at last merged and converted.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_block::{BlockDevice, ReadOnly};
use kiln_export::{Export, Exports, fuse};
use kiln_overlaybd::{Input, Layer, NewUpper, OpenOptions, Stack, Upper, Writable};
use rustix::fs::{FallocateFlags, fallocate};

use crate::kiln::Kiln;

const SIZE: usize = 512 << 10;

/// The same throws for the same seed.
struct Dice(u64);

impl Dice {
    fn seeded(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        buffer.fill_with(|| self.roll().to_le_bytes()[0]);
    }
}

/// A disk as a file that the kernel asks for; gone when this is dropped.
struct Mounted {
    disk: Arc<dyn BlockDevice>,
    // The file is closed before the folder goes.
    file: File,
    mount: fuse::Mount,
    _folder: tempfile::TempDir,
}

impl Mounted {
    fn of(disk: Arc<dyn BlockDevice>) -> Mounted {
        let is_writable = !disk.is_read_only();
        let folder = tempfile::Builder::new().prefix("kiln-").tempdir_in("/tmp");
        let folder = folder.expect("a folder");
        let exports = Exports::one("disk", Export::new(Arc::clone(&disk))).expect("it has a name");
        let mount = fuse::Mount::start(folder.path(), exports)
            .unwrap_or_else(|error| panic!("it takes /dev/fuse, and root or fuse3: {error:?}"));
        let path = mount.path_of("disk").expect("it is the only one");
        let file = File::options().read(true).write(is_writable).open(path);
        Mounted { disk, file: file.expect("it can be opened"), mount, _folder: folder }
    }

    fn holds(&self, mirror: &[u8], when: &str) {
        let mut read = vec![0; SIZE];
        self.file.read_exact_at(&mut read, 0).expect("it can be read");
        let differs = read.iter().zip(mirror).position(|(read, wanted)| read != wanted);
        assert_eq!(differs, None, "{when}");
    }

    /// Waits until nobody has the disk any more, so that it can be opened anew.
    fn unmount(self) {
        let Mounted { disk, file, mount, .. } = self;
        file.sync_all().expect("it can be kept");
        drop(file);
        // The kernel closes files at leisure.
        mount.stop();
        while Arc::strong_count(&disk) > 1 {
            std::thread::yield_now();
        }
    }
}

/// A place in a disk, aligned to nothing, or to sectors.
fn place(dice: &mut Dice) -> (u64, u64) {
    let unit = [1, 512, 4096][usize::try_from(dice.below(3)).expect("small")];
    let units = SIZE as u64 / unit;
    let start = dice.below(units);
    let most = (60_000 / unit).min(units - start);
    (start * unit, (1 + dice.below(most)) * unit)
}

/// Changes a file and the array alike.
fn change(file: &File, mirror: &mut [u8], dice: &mut Dice) {
    for _ in 0..1 + dice.below(25) {
        let (at, len) = place(dice);
        let start = usize::try_from(at).expect("small");
        let range = &mut mirror[start..start + usize::try_from(len).expect("small")];
        match dice.below(8) {
            0 => file.sync_data().expect("it can be flushed"),
            1 => {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, how, at, len).expect("it can be punched");
                range.fill(0);
            }
            2 => {
                fallocate(file, FallocateFlags::ZERO_RANGE, at, len).expect("it can be zeroed");
                range.fill(0);
            }
            kind => {
                // Noise, one value, or values of which some are zero.
                match kind {
                    3 | 4 => dice.fill(range),
                    5 => range.fill(u8::try_from(dice.below(256)).expect("a byte")),
                    _ => range.iter_mut().zip(0u8..=255).for_each(|(byte, n)| *byte = n / 50),
                }
                file.write_all_at(range, at).expect("it can be written");
            }
        }
    }
}

/// A layer's flags on the command line.
fn packing(dice: &mut Dice) -> Vec<&'static str> {
    let how = ["none", "lz4", "zstd"][usize::try_from(dice.below(3)).expect("small")];
    // Noise does not fit into blocks of 64 KiB for other readers.
    let size = ["4K", "16K", "32K"][usize::try_from(dice.below(3)).expect("small")];
    let mut flags = vec!["--compress", how, "--block-size", size];
    flags.extend((dice.below(2) == 0).then_some("--tar"));
    flags
}

fn stack(paths: &[PathBuf]) -> Option<Stack> {
    let open = |path: &PathBuf| Layer::open(Input::open(path)?, &OpenOptions::default());
    let layers: Vec<Layer> = paths.iter().map(|path| open(path).expect("it opens")).collect();
    (!layers.is_empty()).then(|| Stack::new(layers).expect("they stack"))
}

#[test]
fn a_mounted_disk_and_all_that_is_made_of_it_read_like_a_byte_array() {
    for seed in 0..6 {
        let mut dice = Dice::seeded(seed);
        let kiln = Kiln::new();
        let path = |name: &str| kiln.folder().join(name);
        let mut mirror = vec![0; SIZE];
        let mut layers: Vec<PathBuf> = Vec::new();
        for number in 0..1 + dice.below(4) {
            let case = format!("seed {seed}, layer {number}");
            let is_sparse = dice.below(3) == 0;
            // Above others it takes their size.
            let virtual_size = if layers.is_empty() || is_sparse { SIZE as u64 } else { 0 };
            let new = NewUpper { virtual_size, ..NewUpper::default() };
            let (data, index) = (format!("data{number}"), format!("index{number}"));
            let upper = match is_sparse {
                true => Upper::create_sparse(&path(&data), &new),
                false => Upper::create_log(&path(&data), &path(&index), &new),
            };
            let disk = Writable::new(upper.expect("it is new"), stack(&layers));
            let mounted = Mounted::of(Arc::new(disk.expect("they fit")));
            mounted.holds(&mirror, &case);
            change(&mounted.file, &mut mirror, &mut dice);
            mounted.holds(&mirror, &case);
            mounted.unmount();
            // What was unmounted is there when it is opened again, and goes on.
            let upper = Upper::open(&path(&data), (!is_sparse).then(|| path(&index)).as_deref());
            let disk = Writable::new(upper.expect("it opens"), stack(&layers));
            let mounted = Mounted::of(Arc::new(disk.expect("they fit")));
            mounted.holds(&mirror, &case);
            change(&mounted.file, &mut mirror, &mut dice);
            mounted.unmount();
            let layer = format!("{number}.obd");
            if !is_sparse && dice.below(3) == 0 {
                kiln.run(&["layer", "seal", &data, &index]).exits(0);
                layers.push(path(&data));
            } else {
                let start = ["layer", "commit", "--output", &layer, &data];
                let index = (!is_sparse).then_some(index.as_str());
                let all = [&start[..], index.as_slice(), &packing(&mut dice)].concat();
                kiln.run(&all).exits(0);
                layers.push(path(&layer));
            }
            let disk = ReadOnly(stack(&layers).expect("there is one"));
            Mounted::of(Arc::new(disk)).holds(&mirror, &case);
        }
        let names: Vec<&str> = layers.iter().filter_map(|path| path.to_str()).collect();
        let run = |start: &[&str], more: &[&str]| kiln.run(&[start, more].concat()).exits(0);
        run(&["layer", "verify"], &names);
        let start = ["layer", "merge", "--output", "merged.obd"];
        run(&[&start[..], &packing(&mut dice)].concat(), &names);
        run(&["layer", "convert", "--to", "raw", "--output", "stack.img"], &names);
        run(&["layer", "convert", "--to", "qcow2", "--output", "stack.qcow2"], &["merged.obd"]);
        let start = ["layer", "convert", "--to", "overlaybd", "--output", "again.obd"];
        run(&[&start[..], &packing(&mut dice)].concat(), &["stack.qcow2"]);
        assert!(std::fs::read(path("stack.img")).expect("it is there") == mirror, "seed {seed}");
        for layer in ["merged.obd", "again.obd"] {
            let disk = ReadOnly(stack(&[path(layer)]).expect("there is one"));
            Mounted::of(Arc::new(disk)).holds(&mirror, &format!("seed {seed}, {layer}"));
        }
    }
}
