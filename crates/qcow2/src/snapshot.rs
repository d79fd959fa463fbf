//! Snapshots inside an image.

use crate::Qcow2Error;
use crate::error::shown;
use crate::header::{Header, Place, be32, be64};

/// Bytes of all records together that are read at most.
const MAX_TABLE: u64 = 16 << 20;
const RECORD: usize = 40;

/// A snapshot inside an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// A number, as a rule.
    pub id: String,
    /// What it was called.
    pub name: String,
    /// Bytes of the disk then.
    pub size: u64,
    /// Seconds since 1970.
    pub created: u32,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u64,
}

/// All snapshots of an image, as the table has them.
pub(crate) fn read(place: &Place<'_>, header: &Header) -> Result<Vec<SnapshotInfo>, Qcow2Error> {
    let mut found = Vec::new();
    let mut at = header.snapshots_offset;
    let start = at;
    for number in 1..=header.snapshots {
        let damaged = |what: &str| place.damaged(format!("snapshot {number}: {what}"));
        let end = place.device.size().get();
        if at.checked_add(RECORD as u64).is_none_or(|record| record > end) {
            return Err(damaged("its record is behind the end of the file"));
        }
        let mut record = [0; RECORD];
        place.read(at, &mut record)?;
        let half = |at: usize| u64::from(u16::from_be_bytes([record[at], record[at + 1]]));
        let word = |at: usize| be32(&record, at);
        let (id_len, name_len, extra) = (half(12), half(14), u64::from(word(36)));
        if extra > 1024 {
            return Err(damaged("more than 1024 bytes of extra data"));
        }
        let len = extra + id_len + name_len;
        if at + RECORD as u64 + len > end || at + len - start > MAX_TABLE {
            return Err(damaged("its name is behind the end of the file, or the table too large"));
        }
        let mut rest = vec![0; usize::try_from(len).unwrap_or(0)];
        place.read(at + RECORD as u64, &mut rest)?;
        let (extra_bytes, names) = rest.split_at(usize::try_from(extra).unwrap_or(0));
        let (id, name) = names.split_at(usize::try_from(id_len).unwrap_or(0));
        let snapshot = SnapshotInfo {
            id: shown(id),
            name: shown(name),
            size: if extra >= 16 { be64(extra_bytes, 8) } else { header.size },
            created: word(16),
            l1_offset: be64(&record, 0),
            l1_entries: u64::from(word(8)),
        };
        header.check_l1(place, snapshot.l1_offset, snapshot.l1_entries, snapshot.size).map_err(
            |error| match error {
                Qcow2Error::Damaged { found, .. } => damaged(&found),
                other => other,
            },
        )?;
        found.push(snapshot);
        at += (RECORD as u64 + len).next_multiple_of(8);
    }
    Ok(found)
}
