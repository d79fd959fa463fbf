//! What an ELF file needs to run: libraries, where it wants them searched, and its interpreter.
//!
//! Only program headers and the dynamic section are read, so that a stripped file will do and a large
//! one costs no more than a small one. Files are hostile: every count and length has a bound.

use object::Endianness;
use object::elf::{self, FileHeader32, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};

/// A dynamic section larger than this is damaged; real ones have a few hundred bytes.
const DYNAMIC_LIMIT: u64 = 1 << 20;
/// Longer names are damaged: no path is longer.
const TEXT_LIMIT: u64 = 4096;
/// More libraries than any program has.
const NEEDED_LIMIT: usize = 4096;

/// Which machine's code a file holds. A library of another one is passed over in a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Architecture {
    /// `e_machine`.
    pub machine: u16,
    /// 64 or 32 bit.
    pub is_64: bool,
    /// Byte order.
    pub is_big_endian: bool,
}

/// What one ELF file asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whose code it is.
    pub architecture: Architecture,
    /// `PT_INTERP`: the dynamic loader, as an absolute path.
    pub interpreter: Option<Vec<u8>>,
    /// `DT_NEEDED`, in order.
    pub libraries: Vec<Vec<u8>>,
    /// `DT_RUNPATH`, split at its colons; `$ORIGIN` and its like are as written.
    pub runpath: Vec<Vec<u8>>,
    /// `DT_RPATH`, the same; ignored by the loader where there is a runpath.
    pub rpath: Vec<Vec<u8>>,
}

/// The file has the ELF magic and then makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged ELF file: {0}")]
pub struct ElfError(&'static str);

/// Whether a file that starts with these bytes claims to be ELF.
pub fn is_elf(start: &[u8]) -> bool {
    start.starts_with(&elf::ELFMAG)
}

/// Reads what an ELF file needs from its bytes.
pub fn needs(bytes: &[u8]) -> Result<Needs, ElfError> {
    read(bytes)
}

/// Reads what an ELF file needs, with a few small reads.
pub fn needs_of_file(file: &std::fs::File) -> Result<Needs, ElfError> {
    let cache = ReadCache::new(file);
    read(&cache)
}

fn read<'data, R: ReadRef<'data>>(data: R) -> Result<Needs, ElfError> {
    let ident = data.read_bytes_at(0, 6).map_err(|()| ElfError("it is too short"))?;
    if !is_elf(ident) {
        return Err(ElfError("the magic is missing"));
    }
    match ident[4] {
        1 => read_class::<FileHeader32<Endianness>, R>(data),
        2 => read_class::<FileHeader64<Endianness>, R>(data),
        _ => Err(ElfError("it is neither 32 nor 64 bit")),
    }
}

fn read_class<'data, F, R>(data: R) -> Result<Needs, ElfError>
where
    F: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let header = F::parse(data).map_err(|_| ElfError("its header is damaged"))?;
    let endian = header.endian().map_err(|_| ElfError("its header is damaged"))?;
    let segments = header
        .program_headers(endian, data)
        .map_err(|_| ElfError("its program headers reach past its end"))?;
    let mut needs = Needs {
        architecture: Architecture {
            machine: header.e_machine(endian).0,
            is_64: header.is_type_64(),
            is_big_endian: header.is_big_endian(),
        },
        interpreter: None,
        libraries: Vec::new(),
        runpath: Vec::new(),
        rpath: Vec::new(),
    };
    for segment in segments {
        let (at, len) = (segment.p_offset(endian).into(), segment.p_filesz(endian).into());
        if segment.p_type(endian) == elf::PT_INTERP {
            if len > TEXT_LIMIT {
                return Err(ElfError("its interpreter's name is too long"));
            }
            let name = data
                .read_bytes_at(at, len)
                .map_err(|()| ElfError("its interpreter's name reaches past its end"))?;
            needs.interpreter = Some(name.split(|&b| b == 0).next().unwrap_or_default().to_vec());
        }
        if segment.p_type(endian) == elf::PT_DYNAMIC {
            if len > DYNAMIC_LIMIT {
                return Err(ElfError("its dynamic section is too large"));
            }
            let entries = segment
                .dynamic(endian, data)
                .map_err(|_| ElfError("its dynamic section reaches past its end"))?
                .unwrap_or_default();
            read_dynamic::<F, R>(data, endian, segments, entries, &mut needs)?;
        }
    }
    Ok(needs)
}

fn read_dynamic<'data, F, R>(
    data: R,
    endian: F::Endian,
    segments: &[F::ProgramHeader],
    entries: &[F::Dyn],
    needs: &mut Needs,
) -> Result<(), ElfError>
where
    F: FileHeader,
    R: ReadRef<'data>,
{
    let used = || {
        entries
            .iter()
            .map(|entry| (entry.d_tag(endian), entry.d_val(endian).into()))
            .take_while(|(tag, _)| *tag != elf::DT_NULL)
    };
    let Some((_, table)) = used().find(|(tag, _)| *tag == elf::DT_STRTAB) else {
        return Ok(());
    };
    let (start, len) = file_range::<F>(endian, segments, table)
        .ok_or(ElfError("its string table lies in no segment"))?;
    let text = |offset: u64| -> Result<&'data [u8], ElfError> {
        let available =
            len.checked_sub(offset).ok_or(ElfError("a name lies outside its segment"))?;
        let at = start.checked_add(offset).ok_or(ElfError("a name lies past its end"))?;
        let end = at.checked_add(available.min(TEXT_LIMIT));
        let end = end.ok_or(ElfError("a name lies past its end"))?;
        let end = end.min(data.len().map_err(|()| ElfError("its length cannot be known"))?);
        if at > end {
            return Err(ElfError("a name lies past its end"));
        }
        data.read_bytes_at_until(at..end, 0).map_err(|()| ElfError("a name does not end"))
    };
    for (tag, value) in used() {
        match tag {
            elf::DT_NEEDED => {
                if needs.libraries.len() >= NEEDED_LIMIT {
                    return Err(ElfError("it needs too many libraries"));
                }
                needs.libraries.push(text(value)?.to_vec());
            }
            elf::DT_RUNPATH => needs.runpath = split(text(value)?),
            elf::DT_RPATH => needs.rpath = split(text(value)?),
            _ => {}
        }
    }
    Ok(())
}

/// Where in the file an address lies, and how much of its segment is left from there.
fn file_range<F: FileHeader>(
    endian: F::Endian,
    segments: &[F::ProgramHeader],
    address: u64,
) -> Option<(u64, u64)> {
    segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).find_map(|segment| {
        let offset: u64 = segment.p_offset(endian).into();
        let inside = address.checked_sub(segment.p_vaddr(endian).into())?;
        let left = segment.p_filesz(endian).into().checked_sub(inside)?;
        (left > 0).then_some((offset.checked_add(inside)?, left))
    })
}

fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|&byte| byte == b':').filter(|part| !part.is_empty());
    parts.take(256).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests;
