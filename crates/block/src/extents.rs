//! [`Extents`]: stretches of a disk as they are found, neighbours of one kind joined.

use crate::{ByteLen, ByteOffset, Extent, ExtentKind};

/// Extents in the making. What is added goes on where the last ended, or lies behind it.
#[derive(Debug, Default)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// Adds a stretch of `len` bytes at byte `at`; none if `len` is zero.
    pub fn add(&mut self, at: u64, len: u64, kind: ExtentKind) {
        if len == 0 {
            return;
        }
        let (at, len) = (ByteOffset::new(at), ByteLen::new(len));
        match self.0.last_mut() {
            Some(last) if last.kind == kind && last.at.checked_add(last.len) == Some(at) => {
                last.len = ByteLen::new(last.len.get() + len.get());
            }
            _ => self.0.push(Extent { at, len, kind }),
        }
    }

    /// What was added.
    pub fn into_vec(self) -> Vec<Extent> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_kind_become_one_extent_and_others_stay_apart() {
        let mut extents = Extents::default();
        extents.add(0, 4, ExtentKind::Data);
        extents.add(4, 0, ExtentKind::Hole);
        extents.add(4, 4, ExtentKind::Data);
        extents.add(8, 4, ExtentKind::Hole);
        extents.add(16, 4, ExtentKind::Hole);
        let found = extents.into_vec();
        let found: Vec<_> = found.iter().map(|e| (e.at.get(), e.len.get(), e.kind)).collect();
        assert_eq!(
            found,
            [(0, 8, ExtentKind::Data), (8, 4, ExtentKind::Hole), (16, 4, ExtentKind::Hole)]
        );
    }
}
