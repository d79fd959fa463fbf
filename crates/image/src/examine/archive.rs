//! An initramfs, member by member.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, SeekFrom};

use super::{Bytes, Content, Entry, ExamineError, Examined, Form, read};
use crate::newc::{Member, Reader};

/// What is read at once.
const CHUNK: usize = 1 << 20;
/// A link says no more than this.
const LONGEST_TARGET: u64 = 4096;

/// [`Bytes`] as a stream.
struct Stream<'i> {
    image: &'i dyn Bytes,
    at: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.image.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        self.image.read(self.at, &mut buffer[..count])?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Stream<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.image.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(self.at)
    }
}

pub(super) fn examine(image: &dyn Bytes) -> Result<Examined, ExamineError> {
    let mut examined =
        Examined { form: Form::Initramfs, entries: BTreeMap::new(), faults: Vec::new() };
    // Names of one file: the last of them carries its bytes.
    let mut linked: HashMap<u32, Vec<Vec<u8>>> = HashMap::new();
    for member in Reader::new(Stream { image, at: 0 })? {
        let member = match member {
            Ok(member) => member,
            Err(error) => {
                examined.faults.push(error.to_string());
                break;
            }
        };
        let entry = entry(image, &member)?;
        let name = member.name.strip_prefix(b"/").unwrap_or(&member.name).to_vec();
        let name = if name == b"." { Vec::new() } else { name };
        let parent = name.iter().rposition(|byte| *byte == b'/').map(|at| &name[..at]);
        if let Some(parent) = parent
            && examined.entries.get(parent).is_none_or(|entry| entry.mode >> 12 != 0o04)
        {
            let (name, parent) = (name.escape_ascii(), parent.escape_ascii());
            examined.faults.push(format!("{name} comes before its directory {parent}"));
        }
        if member.links > 1 && member.mode >> 12 == 0o10 {
            let names = linked.entry(member.inode).or_default();
            if member.data_len > 0 {
                for name in names.iter() {
                    examined.entries.insert(name.clone(), entry.clone());
                }
            }
            names.push(name.clone());
        }
        if examined.entries.insert(name.clone(), entry).is_some() {
            examined.faults.push(format!("{} is there twice", name.escape_ascii()));
        }
    }
    Ok(examined)
}

fn entry(image: &dyn Bytes, member: &Member) -> Result<Entry, ExamineError> {
    let kind = member.mode >> 12;
    let mut target = Vec::new();
    let mut content = None;
    if kind == 0o12 {
        target = vec![0; usize::try_from(member.data_len.min(LONGEST_TARGET)).unwrap_or(0)];
        read(image, member.data_at, &mut target)?;
    } else if kind == 0o10 {
        let mut digest = Content::new();
        let mut buffer = vec![0; CHUNK.min(usize::try_from(member.data_len).unwrap_or(CHUNK))];
        let mut done = 0;
        while done < member.data_len {
            let left = usize::try_from(member.data_len - done).unwrap_or(CHUNK);
            let part = &mut buffer[..left.min(CHUNK)];
            read(image, member.data_at + done, part)?;
            digest.feed(done, part);
            done += part.len() as u64;
        }
        content = Some(digest.finish());
    }
    Ok(Entry {
        mode: member.mode,
        owner: member.owner,
        modified: (i64::from(member.modified), 0),
        size: if kind == 0o10 { member.data_len } else { 0 },
        device: if matches!(kind, 0o02 | 0o06) { member.device } else { (0, 0) },
        target,
        content,
    })
}
