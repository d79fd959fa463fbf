//! What the catalog knows of bases: which there are, where they are stored, and how many states have each.
//!
//! A base takes as many records of the catalog as it needs, 224 bytes in each:
//!
//! | offset | size | field of a record |
//! |-------:|-----:|-------------------|
//! | 0 | 1 | 4 |
//! | 2 | 2 | bytes in this record |
//! | 4 | 4 | which part of the base this is |
//! | 8 | 4 | how many parts there are |
//! | 24 | 8 | number of the base |
//! | 32 | 224 | the bytes |
//!
//! | offset | size | field of a base |
//! |-------:|-----:|-----------------|
//! | 0 | 32 | identity |
//! | 32 | 8 | bytes it has |
//! | 40 | 2 + 2 + 4 | bytes of kind, name and description |
//! | 48 | | kind, name, description |

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_block::ByteLen;

use crate::PoolError;
use crate::base::{Base, Shown};
use crate::format::{get, get_u32, put};

/// What tells such a record from others.
pub(crate) const KIND: u8 = 4;
const HEAD: usize = 32;
const PART: usize = 224;
/// Bytes before kind, name and description.
const FRONT: usize = 48;
/// The longest base: more than 255 layers of a registry take to describe.
pub(crate) const LONGEST: usize = 128 << 10;
const MOST_PARTS: usize = LONGEST.div_ceil(PART);

/// A part of a base that is being read.
#[derive(Debug)]
struct Part {
    slot: u64,
    parts: usize,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Kept {
    base: Arc<Base>,
    /// Where its parts are.
    slots: Vec<u64>,
}

/// All bases, by number.
#[derive(Debug, Default)]
pub(crate) struct BaseRecords {
    known: BTreeMap<u32, Kept>,
    /// Which part of which base is where.
    by_slot: BTreeMap<u64, (u32, usize)>,
    /// How many states have each.
    users: BTreeMap<u32, u64>,
    /// What was read so far.
    arriving: BTreeMap<u32, BTreeMap<usize, Part>>,
}

fn encode(base: &Base) -> Vec<u8> {
    let mut bytes = vec![0; FRONT];
    bytes[..32].copy_from_slice(&base.identity);
    put(&mut bytes, 32, base.size.get());
    let len = |text: &str| u16::try_from(text.len()).unwrap_or(0).to_le_bytes();
    bytes[40..42].copy_from_slice(&len(&base.kind));
    bytes[42..44].copy_from_slice(&len(&base.name));
    let described = u32::try_from(base.description.len()).unwrap_or(0);
    bytes[44..48].copy_from_slice(&described.to_le_bytes());
    for text in [&base.kind, &base.name, &base.description] {
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Base> {
    let front = bytes.get(..FRONT)?;
    let mut identity = [0; 32];
    identity.copy_from_slice(&front[..32]);
    let mut at = FRONT;
    let mut text = |len: usize| {
        let found = bytes.get(at..at.checked_add(len)?)?;
        at += len;
        std::str::from_utf8(found).ok().map(str::to_owned)
    };
    let short = |place: usize| usize::from(u16::from_le_bytes([front[place], front[place + 1]]));
    let kind = text(short(40))?;
    let name = text(short(42))?;
    let description = text(usize::try_from(get_u32(front, 44)).ok()?)?;
    let size = ByteLen::new(get(front, 32));
    (at == bytes.len()).then_some(Base { kind, name, description, size, identity })
}

impl BaseRecords {
    /// Takes a record of that kind.
    pub(crate) fn load(&mut self, slot: u64, record: &[u8]) -> Result<(), &'static str> {
        const WRONG: &str = "a record of a base that cannot be";
        let len = usize::from(u16::from_le_bytes([record[2], record[3]]));
        let number = |at| usize::try_from(get_u32(record, at)).map_err(|_| WRONG);
        let (part, parts) = (number(4)?, number(8)?);
        let base = u32::try_from(get(record, 24)).map_err(|_| WRONG)?;
        let sound = (1..=PART).contains(&len)
            && (1..=MOST_PARTS).contains(&parts)
            && part < parts
            && (1..=Shown::MOST_BASES).contains(&base);
        if !sound {
            return Err(WRONG);
        }
        let bytes = record[HEAD..HEAD + len].to_vec();
        let arriving = self.arriving.entry(base).or_default();
        if arriving.contains_key(&part) {
            return Err("a part of a base that is there twice");
        }
        arriving.insert(part, Part { slot, parts, bytes });
        Ok(())
    }

    /// Puts together what was read. What is not whole is left out: its slots, and what to say of it.
    pub(crate) fn put_together(&mut self) -> Vec<(Vec<u64>, String)> {
        let mut lost = Vec::new();
        for (number, parts) in std::mem::take(&mut self.arriving) {
            let slots: Vec<u64> = parts.values().map(|part| part.slot).collect();
            let whole = parts.values().all(|part| part.parts == parts.len());
            let bytes: Vec<u8> = parts.into_values().flat_map(|part| part.bytes).collect();
            match decode(&bytes).filter(|_| whole) {
                Some(base) => self.keep(number, Arc::new(base), slots),
                None => lost.push((slots, format!("the catalog's record of base {number}"))),
            }
        }
        lost
    }

    fn keep(&mut self, number: u32, base: Arc<Base>, slots: Vec<u64>) {
        self.by_slot.extend(slots.iter().enumerate().map(|(part, slot)| (*slot, (number, part))));
        self.known.insert(number, Kept { base, slots });
    }

    /// One more state shows it, or one less.
    pub(crate) fn count(&mut self, shown: Shown, more: bool) {
        if shown.is_nothing() {
            return;
        }
        let users = self.users.entry(shown.base).or_default();
        *users = if more { *users + 1 } else { users.saturating_sub(1) };
        if *users == 0 {
            self.users.remove(&shown.base);
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Arc<Base>> {
        self.known.get(&number).map(|kept| &kept.base)
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.known.keys().copied().collect()
    }

    /// Every slot that a base takes.
    pub(crate) fn slots(&self) -> impl Iterator<Item = u64> + '_ {
        self.by_slot.keys().copied()
    }

    /// The number of a base, which is entered if there is none that is the same, with slots that `slot` gives.
    pub(crate) fn number_of(
        &mut self,
        base: Base,
        mut slot: impl FnMut() -> u64,
    ) -> Result<u32, PoolError> {
        if let Some((number, _)) = self.known.iter().find(|(_, kept)| *kept.base == base) {
            return Ok(*number);
        }
        // A number that was lost with its record is not given to another.
        let taken =
            |number: &u32| self.known.contains_key(number) || self.users.contains_key(number);
        let len = encode(&base).len();
        let short = |text: &str| text.len() <= usize::from(u16::MAX);
        let Some(number) = (1..=Shown::MOST_BASES)
            .find(|number| !taken(number))
            .filter(|_| len <= LONGEST && short(&base.kind) && short(&base.name))
        else {
            return Err(PoolError::BaseTooLong { name: base.name, most: LONGEST });
        };
        let slots = (0..len.div_ceil(PART)).map(|_| slot()).collect();
        self.keep(number, Arc::new(base), slots);
        Ok(number)
    }

    /// Forgets bases that no state has any more: their numbers, and the slots that are free now.
    pub(crate) fn forget_unused(&mut self) -> (Vec<u32>, Vec<u64>) {
        let unused: Vec<u32> =
            self.known.keys().copied().filter(|number| !self.users.contains_key(number)).collect();
        let mut free = Vec::new();
        for number in &unused {
            let slots = self.known.remove(number).map(|kept| kept.slots).unwrap_or_default();
            self.by_slot.retain(|slot, _| !slots.contains(slot));
            free.extend(slots);
        }
        (unused, free)
    }

    /// Fills a record, if it is a base's.
    pub(crate) fn encode(&self, slot: u64, record: &mut [u8]) {
        let Some((number, part)) = self.by_slot.get(&slot) else { return };
        let Some(kept) = self.known.get(number) else { return };
        let bytes = encode(&kept.base);
        let Some(bytes) = bytes.chunks(PART).nth(*part) else { return };
        let small = |value: usize| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
        record[0] = KIND;
        record[2..4].copy_from_slice(&u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
        record[4..8].copy_from_slice(&small(*part));
        record[8..12].copy_from_slice(&small(kept.slots.len()));
        put(record, 24, u64::from(*number));
        record[HEAD..HEAD + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(description: &str) -> Base {
        Base {
            kind: "layers".into(),
            name: "näme".into(),
            description: description.into(),
            size: ByteLen::mib(3),
            identity: [7; 32],
        }
    }

    fn stored(of: &BaseRecords) -> Vec<(u64, Vec<u8>)> {
        let record = |slot| {
            let mut bytes = vec![0; 256];
            of.encode(slot, &mut bytes);
            (slot, bytes)
        };
        of.slots().map(record).collect()
    }

    #[test]
    fn a_base_reads_back_from_its_records_and_not_from_a_part_of_them() {
        let long = "x".repeat(1000);
        let mut records = BaseRecords::default();
        let mut next = 4;
        let mut slot = || {
            next += 1;
            next
        };
        assert_eq!(records.number_of(base(&long), &mut slot).unwrap(), 1);
        assert_eq!(records.number_of(base("short"), &mut slot).unwrap(), 2);
        assert_eq!(records.number_of(base(&long), &mut slot).unwrap(), 1, "it is the same");
        let stored = stored(&records);
        assert_eq!(stored.len(), 5 + 1);
        let mut read = BaseRecords::default();
        for (slot, bytes) in stored.iter().rev() {
            read.load(*slot, bytes).unwrap();
        }
        assert_eq!(read.put_together(), []);
        assert_eq!(read.get(1).map(|base| &**base), Some(&base(&long)));
        assert_eq!(read.get(2).map(|base| &**base), Some(&base("short")));
        let mut partly = BaseRecords::default();
        for (slot, bytes) in &stored[1..] {
            partly.load(*slot, bytes).unwrap();
        }
        let lost = partly.put_together();
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].0.len(), 4);
        assert!(partly.get(1).is_none() && partly.get(2).is_some());
        assert!(partly.load(9, &stored[0].1).is_ok());
        assert!(partly.load(9, &stored[0].1).is_err(), "twice the same part");
    }

    #[test]
    fn a_base_goes_with_the_last_that_shows_it() {
        let mut records = BaseRecords::default();
        let number = records.number_of(base("one"), || 3).unwrap();
        let shown = Shown { base: number, blocks: 9 };
        records.count(shown, true);
        records.count(shown, true);
        records.count(shown, false);
        assert_eq!(records.forget_unused(), (vec![], vec![]));
        records.count(shown, false);
        assert_eq!(records.forget_unused(), (vec![number], vec![3]));
        assert!(records.get(number).is_none());
    }

    #[test]
    fn what_is_too_long_to_describe_is_refused() {
        let mut records = BaseRecords::default();
        let long = "x".repeat(LONGEST);
        let refused = records.number_of(base(&long), || 1).unwrap_err();
        assert!(matches!(refused, PoolError::BaseTooLong { .. }));
        assert_eq!(records.slots().count(), 0);
    }
}
