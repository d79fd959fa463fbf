//! Finding the segment of a sector among a million, in a few cache lines.
//!
//! Two structures over the same sorted starts. *Buckets* of equal width remember how many segments start before
//! each; the few that start within one are counted by comparing eight keys at once, without a branch. That is two
//! places in memory for each search, however many segments there are, as long as they are spread over the disk.
//!
//! A bucket in which eight or more start is divided into buckets of its own, narrow enough for one each if they are
//! spread evenly within it: segments come in clusters, for that is how files are written. Where that does not help
//! either, a *tree* decides, which does not care how they are spread. Its leaves are the starts: nodes of sixteen keys,
//! level after level in one array, the children of a node at a place that follows from its own. A step
//! compares all sixteen keys without a branch, which compilers turn into vector instructions. Processors
//! with AVX2 compare 32-bit keys in two of them; whether it is there is asked once for each index.

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
    Narrow(Buckets<i32>, Tree<i32>),
    /// The same where the processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    NarrowAvx2(Buckets<i32>, Tree<i32>),
    Wide(Buckets<i64>, Tree<i64>),
}

/// Keys that are compared at once in a bucket.
const WINDOW: usize = 8;

/// In the place of a number of segments: the rest is the number of a [`Dense`]. Indexes are much shorter than that.
const DENSE: u32 = 1 << 31;

/// The first guess: how many segments start before each bucket, and where those behind it start.
#[derive(Debug)]
struct Buckets<K> {
    /// Where the last segment starts; all of them start before what lies behind.
    last: u64,
    /// A bucket has two to this sectors.
    shift: u32,
    /// First those of all buckets, then those of the buckets within dense ones.
    before: Box<[u32]>,
    dense: Box<[Dense]>,
    /// All starts, and a window of the largest key behind them.
    keys: Box<[K]>,
}

/// A bucket with buckets of its own.
#[derive(Debug, Clone, Copy)]
struct Dense {
    /// Where theirs begin in `before`.
    first: u32,
    /// Each has two to this sectors.
    shift: u32,
    /// How many there are, less one: a power of two, less one.
    mask: u32,
}

impl<K: Key> Buckets<K> {
    /// One or two segments to a bucket, if they are spread evenly.
    fn new(segments: &[Segment], key: impl Fn(&Segment) -> K) -> Buckets<K> {
        let last = segments.last().map_or(0, |segment| segment.start);
        let wanted = (segments.len() as u64).max(1);
        let mut shift = 0;
        while last >> shift >= wanted {
            shift += 1;
        }
        let mut before = Vec::new();
        for (rank, segment) in (0u32..DENSE).zip(segments) {
            // Buckets up to the segment's own start behind all segments before it.
            let bucket = usize::try_from(segment.start >> shift).unwrap_or(0);
            while before.len() <= bucket {
                before.push(rank);
            }
        }
        if before.is_empty() {
            before.push(0);
        }
        let dense = divide(segments, shift, &mut before);
        let keys = segments.iter().map(key).chain([K::LARGEST; WINDOW]).collect();
        Buckets { last, shift, before: before.into(), dense: dense.into(), keys }
    }

    /// How many segments start at the sector or before it, which is `wanted` as a key; `None` where the
    /// bucket holds too many to say.
    #[inline(always)]
    fn rank(&self, sector: u64, wanted: K) -> Option<usize> {
        if sector >= self.last {
            return Some(self.keys.len() - WINDOW);
        }
        let bucket = usize::try_from(sector >> self.shift).ok()?;
        let mut before = *self.before.get(bucket)?;
        if before & DENSE != 0 {
            let dense = self.dense.get((before ^ DENSE) as usize)?;
            let within = (sector >> dense.shift) & u64::from(dense.mask);
            before = *self.before.get(dense.first as usize + usize::try_from(within).ok()?)?;
        }
        let before = before as usize;
        let within = K::count(self.keys.get(before..)?.first_chunk::<WINDOW>()?, wanted);
        (within < WINDOW).then_some(before + within)
    }
}

/// Divides the buckets of two to `shift` sectors in which too many segments start, and appends what the new ones say
/// of `before`.
fn divide(segments: &[Segment], shift: u32, before: &mut Vec<u32>) -> Vec<Dense> {
    let mut dense = Vec::new();
    let buckets = before.len();
    for bucket in 0..buckets {
        let start = before[bucket];
        // Those behind this one are numbers of segments still.
        let end = if bucket + 1 < buckets { before[bucket + 1] as usize } else { segments.len() };
        let within = &segments[start as usize..end];
        let (Ok(first), Ok(number)) = (u32::try_from(before.len()), u32::try_from(dense.len()))
        else {
            break;
        };
        if within.len() < WINDOW {
            continue;
        }
        let mut bits = 0;
        while bits < shift.min(31) && 1 << bits < within.len() {
            bits += 1;
        }
        let inner = Dense { first, shift: shift - bits, mask: (1 << bits) - 1 };
        let mut ranks = (start..).zip(within).peekable();
        let mut rank = start;
        for own in 0..=inner.mask {
            before.push(rank);
            let is_own = |segment: &Segment| {
                segment.start >> inner.shift & u64::from(inner.mask) == u64::from(own)
            };
            while let Some((found, _)) = ranks.next_if(|(_, segment)| is_own(segment)) {
                rank = found + 1;
            }
        }
        before[bucket] = DENSE | number;
        dense.push(inner);
    }
    dense
}

/// A key in the form that vector units compare: signed.
trait Key: Copy + Ord {
    const LARGEST: Self;
    /// How many of the keys are at or below the wanted one.
    fn count<const COUNT: usize>(keys: &[Self; COUNT], wanted: Self) -> usize;
}

impl Key for i32 {
    const LARGEST: i32 = i32::MAX;

    #[inline(always)]
    fn count<const COUNT: usize>(keys: &[i32; COUNT], wanted: i32) -> usize {
        let above: i32 = keys.iter().map(|key| i32::from(*key > wanted)).sum();
        COUNT - usize::try_from(above).unwrap_or(0)
    }
}

impl Key for i64 {
    const LARGEST: i64 = i64::MAX;

    #[inline(always)]
    fn count<const COUNT: usize>(keys: &[i64; COUNT], wanted: i64) -> usize {
        let above: i64 = keys.iter().map(|key| i64::from(*key > wanted)).sum();
        COUNT - usize::try_from(above).unwrap_or(0)
    }
}

/// The order of `u32` in an `i32`.
fn narrow(sector: u32) -> i32 {
    (sector ^ 1 << 31).cast_signed()
}

/// The key of a sector that is looked for. The largest stands for places without a segment, so it is
/// never asked for.
fn asked(sector: u64) -> i32 {
    narrow(u32::try_from(sector).unwrap_or(u32::MAX).min(u32::MAX - 1))
}

/// A node lies in as few cache lines as it can.
#[derive(Debug)]
#[repr(align(64))]
struct Node<K>([K; WIDTH]);

#[derive(Debug)]
struct Tree<K> {
    nodes: Vec<Node<K>>,
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
                nodes.push(Node(std::array::from_fn(|slot| {
                    let at = if is_leaf {
                        node * WIDTH + slot
                    } else {
                        (node * FAN + slot + 1) * leaves * WIDTH
                    };
                    keys.get(at).copied().unwrap_or(K::LARGEST)
                })));
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
            let rank = K::count(&self.nodes[start + node].0, wanted);
            found = node * WIDTH + rank;
            if level + 1 < self.levels.len() {
                node = node * FAN + rank;
            }
        }
        found
    }
}

#[cfg(target_arch = "x86_64")]
impl Tree<i32> {
    /// As [`rank`](Tree::rank), in the instructions of AVX2.
    #[target_feature(enable = "avx2,popcnt")]
    fn rank_avx2(&self, wanted: i32) -> usize {
        use std::arch::x86_64::{
            _mm256_cmpgt_epi32, _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_packs_epi32,
            _mm256_set1_epi32,
        };
        let wanted = _mm256_set1_epi32(wanted);
        let (mut node, mut found) = (0, 0);
        let last = self.levels.len() - 1;
        for (level, start) in self.levels.iter().enumerate() {
            let (low, high) = self.nodes[start + node].0.split_at(WIDTH / 2);
            // SAFETY: the first half is 32 bytes long, and the load asks for no alignment.
            let low = unsafe { _mm256_loadu_si256(low.as_ptr().cast()) };
            // SAFETY: so is the second half.
            let high = unsafe { _mm256_loadu_si256(high.as_ptr().cast()) };
            let (low, high) = (_mm256_cmpgt_epi32(low, wanted), _mm256_cmpgt_epi32(high, wanted));
            // Two bits of the mask for each key; their order is mixed up, their number is not.
            let above = _mm256_movemask_epi8(_mm256_packs_epi32(low, high)).count_ones() / 2;
            let rank = WIDTH - above as usize;
            found = node * WIDTH + rank;
            if level < last {
                node = node * FAN + rank;
            }
        }
        found
    }
}

/// The same code as elsewhere, which compilers turn into one comparison of eight keys here.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn rank_avx2(buckets: &Buckets<i32>, tree: &Tree<i32>, sector: u64) -> usize {
    let wanted = asked(sector);
    match buckets.rank(sector, wanted) {
        Some(rank) => rank,
        None => tree.rank_avx2(wanted),
    }
}

/// Whether this processor has the instructions of `rank_avx2`.
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
}

impl Lookup {
    /// Arranges the starts of segments that are sorted.
    pub fn new(segments: &[Segment]) -> Lookup {
        let last = segments.last().map_or(0, |segment| segment.start);
        Lookup(if last < u64::from(u32::MAX) {
            let key = |segment: &Segment| narrow(u32::try_from(segment.start).unwrap_or(u32::MAX));
            let buckets = Buckets::new(segments, key);
            let tree = Tree::new(&buckets.keys[..segments.len()]);
            #[cfg(target_arch = "x86_64")]
            if has_avx2() {
                return Lookup(Keys::NarrowAvx2(buckets, tree));
            }
            Keys::Narrow(buckets, tree)
        } else {
            let key = |segment: &Segment| i64::try_from(segment.start).unwrap_or(i64::MAX);
            let buckets = Buckets::new(segments, key);
            let tree = Tree::new(&buckets.keys[..segments.len()]);
            Keys::Wide(buckets, tree)
        })
    }

    /// How many segments start at that sector or before it.
    #[inline]
    pub fn rank(&self, sector: u64) -> usize {
        match &self.0 {
            Keys::Narrow(buckets, tree) => {
                let wanted = asked(sector);
                buckets.rank(sector, wanted).unwrap_or_else(|| tree.rank(wanted))
            }
            #[cfg(target_arch = "x86_64")]
            Keys::NarrowAvx2(buckets, tree) => {
                // SAFETY: this variant is made only where the processor has these instructions.
                unsafe { rank_avx2(buckets, tree, sector) }
            }
            Keys::Wide(buckets, tree) => {
                let wanted = i64::try_from(sector).unwrap_or(i64::MAX).min(i64::MAX - 1);
                buckets.rank(sector, wanted).unwrap_or_else(|| tree.rank(wanted))
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
                        #[cfg(target_arch = "x86_64")]
                        if let Keys::NarrowAvx2(_, tree) = &lookup.0 {
                            let plain = tree.rank(asked(sector));
                            assert_eq!(plain, wanted, "{sector} among {count}, without AVX2");
                            // SAFETY: this variant is made only where there is AVX2.
                            let quick = unsafe { tree.rank_avx2(asked(sector)) };
                            assert_eq!(quick, wanted, "{sector} among {count}, with AVX2");
                        }
                    }
                }
                assert_eq!(lookup.rank(u64::MAX), segments.len());
            }
        }
    }

    /// Buckets help nothing here: nearly all segments are in one of them, or far from each other.
    #[test]
    fn segments_are_found_however_unevenly_they_are_spread() {
        for far in [1 << 20, 1 << 31, 1 << 40] {
            for dense in [1u64, 7, 8, 9, 1000] {
                let start =
                    |i: u64| if i < dense { far + 2 * i } else { 2 * far + (i - dense) * far / 64 };
                let segments: Vec<Segment> = [3]
                    .into_iter()
                    .chain((0..dense + 40).map(start))
                    .map(|start| Segment { start, stored_at: 8, len: 1, source: 0, zeroed: false })
                    .collect();
                let lookup = Lookup::new(&segments);
                for segment in &segments {
                    for sector in segment.start - 1..=segment.start + 1 {
                        let wanted = segments.partition_point(|segment| segment.start <= sector);
                        assert_eq!(lookup.rank(sector), wanted, "{sector}, {dense} at {far}");
                    }
                }
                assert_eq!((lookup.rank(0), lookup.rank(u64::MAX)), (0, segments.len()));
            }
        }
    }
}
