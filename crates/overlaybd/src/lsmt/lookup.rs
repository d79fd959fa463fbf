//! Finding the segment of a sector among a million, in a few cache lines.
//!
//! The starts of all segments are the leaves of a B+ tree without pointers: nodes of sixteen keys,
//! level after level in one array, the children of a node at a place that follows from its own. A step
//! compares all sixteen keys without a branch, which compilers turn into vector instructions.

use super::segment::Segment;

/// Keys in a node: one cache line of 32-bit keys, two of 64-bit ones.
const WIDTH: usize = 16;
/// Children of an inner node.
const FAN: usize = WIDTH + 1;

/// Where segments start, arranged for searches.
#[derive(Debug)]
pub struct Lookup(Keys);

#[derive(Debug)]
enum Keys {
    /// Disks of less than 2 TiB, which is nearly all.
    Narrow(Tree<i32>),
    Wide(Tree<i64>),
}

/// A key in the form that vector units compare: signed.
trait Key: Copy + Ord {
    const LARGEST: Self;
    /// How many of a node's keys are at or below the wanted one.
    fn rank(node: &[Self; WIDTH], wanted: Self) -> usize;
}

impl Key for i32 {
    const LARGEST: i32 = i32::MAX;

    #[inline]
    fn rank(node: &[i32; WIDTH], wanted: i32) -> usize {
        let above: i32 = node.iter().map(|key| i32::from(*key > wanted)).sum();
        WIDTH - usize::try_from(above).unwrap_or(0)
    }
}

impl Key for i64 {
    const LARGEST: i64 = i64::MAX;

    #[inline]
    fn rank(node: &[i64; WIDTH], wanted: i64) -> usize {
        let above: i64 = node.iter().map(|key| i64::from(*key > wanted)).sum();
        WIDTH - usize::try_from(above).unwrap_or(0)
    }
}

/// The order of `u32` in an `i32`.
fn narrow(sector: u32) -> i32 {
    (sector ^ 1 << 31).cast_signed()
}

#[derive(Debug)]
struct Tree<K> {
    nodes: Vec<[K; WIDTH]>,
    /// Where each level starts in `nodes`, the root first, the leaves last.
    levels: Vec<usize>,
}

impl<K: Key> Tree<K> {
    fn new(keys: &[K]) -> Tree<K> {
        let mut sizes = vec![keys.len().div_ceil(WIDTH).max(1)];
        while let Some(&size) = sizes.last()
            && size > 1
        {
            sizes.push(size.div_ceil(FAN));
        }
        sizes.reverse();
        let mut levels = Vec::with_capacity(sizes.len());
        let mut nodes = Vec::with_capacity(sizes.iter().sum());
        for (level, size) in sizes.iter().enumerate() {
            levels.push(nodes.len());
            // A key of an inner node is the smallest below its right-hand child, so many leaves on.
            let leaves = (level + 1..sizes.len()).fold(1usize, |leaves, below| {
                if below + 1 == sizes.len() { leaves } else { leaves * FAN }
            });
            let is_leaf = level + 1 == sizes.len();
            for node in 0..*size {
                nodes.push(std::array::from_fn(|slot| {
                    let at = if is_leaf {
                        node * WIDTH + slot
                    } else {
                        (node * FAN + slot + 1) * leaves * WIDTH
                    };
                    keys.get(at).copied().unwrap_or(K::LARGEST)
                }));
            }
        }
        Tree { nodes, levels }
    }

    /// How many keys are at or below the wanted one, which is smaller than the largest.
    #[inline]
    fn rank(&self, wanted: K) -> usize {
        let mut node = 0;
        let mut found = 0;
        for (level, start) in self.levels.iter().enumerate() {
            let rank = K::rank(&self.nodes[start + node], wanted);
            found = node * WIDTH + rank;
            if level + 1 < self.levels.len() {
                node = node * FAN + rank;
            }
        }
        found
    }
}

impl Lookup {
    /// Arranges the starts of segments that are sorted.
    pub fn new(segments: &[Segment]) -> Lookup {
        let last = segments.last().map_or(0, |segment| segment.start);
        Lookup(if last < u64::from(u32::MAX) {
            let key = |segment: &Segment| narrow(u32::try_from(segment.start).unwrap_or(u32::MAX));
            Keys::Narrow(Tree::new(&segments.iter().map(key).collect::<Vec<_>>()))
        } else {
            let key = |segment: &Segment| i64::try_from(segment.start).unwrap_or(i64::MAX);
            Keys::Wide(Tree::new(&segments.iter().map(key).collect::<Vec<_>>()))
        })
    }

    /// How many segments start at that sector or before it.
    #[inline]
    pub fn rank(&self, sector: u64) -> usize {
        match &self.0 {
            Keys::Narrow(tree) => {
                // The largest key stands for places without a segment, so it is never asked for.
                let sector = u32::try_from(sector).unwrap_or(u32::MAX).min(u32::MAX - 1);
                tree.rank(narrow(sector))
            }
            Keys::Wide(tree) => {
                tree.rank(i64::try_from(sector).unwrap_or(i64::MAX).min(i64::MAX - 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sector_is_found_whatever_the_size_of_the_index() {
        let counts = [0, 1, 2, 15, 16, 17, 271, 272, 273, 289, 4623, 4624, 4625, 80_000];
        for count in counts {
            for scale in [3, 1 << 20] {
                let segments: Vec<Segment> = (0..count)
                    .map(|i| Segment {
                        start: i * scale + 1,
                        stored_at: 8,
                        len: 1,
                        source: 0,
                        zeroed: false,
                    })
                    .collect();
                let lookup = Lookup::new(&segments);
                let step = (count / 1000).max(1);
                for index in (0..count + 2).step_by(usize::try_from(step).unwrap()) {
                    for sector in [index * scale, index * scale + 1, index * scale + 2] {
                        let wanted = segments.partition_point(|segment| segment.start <= sector);
                        assert_eq!(lookup.rank(sector), wanted, "{sector} among {count}");
                    }
                }
                assert_eq!(lookup.rank(u64::MAX), segments.len());
            }
        }
    }
}
