//! Small files that have the shape of kernels and modules.

use std::fs;
use std::path::Path;

pub(crate) use super::boot_image::tests::boot_image;
pub(crate) use super::deb::tests::deb;

/// A module: an ELF file with a `.modinfo` section of these fields.
pub(crate) fn module(fields: &[(&str, &str)]) -> Vec<u8> {
    let modinfo: Vec<u8> =
        fields.iter().flat_map(|(key, value)| format!("{key}={value}\0").into_bytes()).collect();
    let names = b"\0.modinfo\0.shstrtab\0";
    let modinfo_at = 64;
    let names_at = modinfo_at + modinfo.len();
    let sections_at = (names_at + names.len()).next_multiple_of(8);
    let mut elf = elf_header(1, 0, 0, sections_at, 3, 2);
    elf.extend_from_slice(&modinfo);
    elf.extend_from_slice(names);
    elf.resize(sections_at, 0);
    for (name, kind, at, len) in
        [(0, 0, 0, 0), (1, 1, modinfo_at, modinfo.len()), (10, 3, names_at, names.len())]
    {
        words(&mut elf, &[name, kind]);
        longs(&mut elf, &[0, 0, at, len]);
        words(&mut elf, &[0, 0]);
        longs(&mut elf, &[1, 0]);
    }
    elf
}

/// A `vmlinux` with one note of this type.
pub(crate) fn vmlinux(note: usize) -> Vec<u8> {
    let mut elf = elf_header(2, 64, 1, 0, 0, 0);
    words(&mut elf, &[4, 4]); // PT_NOTE, readable
    longs(&mut elf, &[120, 0, 0, 20, 20, 4]);
    words(&mut elf, &[4, 4, note]);
    elf.extend(b"Xen\0\0\0\x10\0");
    elf
}

fn elf_header(
    kind: u8,
    segments_at: usize,
    segments: u8,
    sections_at: usize,
    sections: u8,
    names: u8,
) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([kind, 0, 62, 0]);
    words(&mut elf, &[1]);
    longs(&mut elf, &[0, segments_at, sections_at]);
    words(&mut elf, &[0]);
    elf.extend([64, 0, 56, 0, segments, 0, 64, 0, sections, 0, names, 0]);
    assert_eq!(elf.len(), 64);
    elf
}

fn words(out: &mut Vec<u8>, words: &[usize]) {
    words.iter().for_each(|&word| out.extend(u32::try_from(word).unwrap().to_le_bytes()));
}

fn longs(out: &mut Vec<u8>, longs: &[usize]) {
    longs.iter().for_each(|&long| out.extend(u64::try_from(long).unwrap().to_le_bytes()));
}

/// Writes a file, making its folders.
pub(crate) fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A boot directory with this kernel, and its modules beside it, without an index.
pub(crate) fn install(root: &Path, release: &str) {
    put(&root.join(format!("boot/vmlinuz-{release}")), boot_image(release, b"x"));
    let modules = root.join("lib/modules").join(release);
    put(&modules.join("kernel/fs/fs.ko"), module(&[("depends", "lib")]));
    put(&modules.join("kernel/lib/lib.ko"), module(&[("license", "GPL")]));
}
