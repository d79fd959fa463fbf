//! Places for the nodes of a forest, after Reingold and Tilford: a parent in the middle of its children, subtrees
//! as close to each other as their outlines allow, equal ones drawn equal.

/// Where each node stands, in the unit of `row`: from the first tree's topmost node at zero. `parents` come before
/// their children, whose order is kept. Takes time and memory in proportion to the nodes.
pub(super) fn places(parents: &[Option<usize>], row: i64) -> Vec<i64> {
    let mut children = vec![Vec::new(); parents.len()];
    for (at, parent) in parents.iter().enumerate() {
        if let Some(parent) = parent {
            children[*parent].push(at);
        }
    }
    // From the leaves up: how far each is from its parent.
    let mut place = vec![0; parents.len()];
    let mut shapes: Vec<Option<Shape>> = parents.iter().map(|_| None).collect();
    for at in (0..parents.len()).rev() {
        let mut whole: Option<Shape> = None;
        let mut last = 0;
        for child in &children[at] {
            let Some(shape) = shapes[*child].take() else { continue };
            (whole, last) = match whole {
                None => (Some(shape), 0),
                Some(above) => {
                    let (whole, moved) = above.with_below(shape, row);
                    (Some(whole), moved)
                }
            };
            place[*child] = last;
        }
        let middle = last / 2;
        children[at].iter().for_each(|child| place[*child] -= middle);
        shapes[at] = Some(Shape::below_a_root(whole, middle));
    }
    // From the roots down. Trees keep apart altogether, so that nothing of one is among another's.
    let mut free = 0;
    for at in 0..parents.len() {
        match (parents[at], &shapes[at]) {
            (Some(parent), _) => place[at] += place[parent],
            (None, Some(shape)) => {
                place[at] = free - shape.top();
                free = place[at] + shape.bottom() + row;
            }
            (None, None) => {}
        }
    }
    place
}

/// The outline of a tree, level by level, against its root.
struct Shape {
    upper: Edge,
    lower: Edge,
}

/// One side of an outline. The deepest level comes first, so that a root is put in front at no cost.
struct Edge {
    levels: Vec<i64>,
    /// What all levels have moved since they were stored.
    moved: i64,
}

impl Edge {
    /// So many levels below the top.
    fn at(&self, level: usize) -> i64 {
        self.levels[self.levels.len() - 1 - level] + self.moved
    }

    fn set(&mut self, level: usize, to: i64) {
        let last = self.levels.len() - 1;
        self.levels[last - level] = to - self.moved;
    }
}

impl Shape {
    fn below_a_root(children: Option<Shape>, middle: i64) -> Shape {
        let empty = || Edge { levels: Vec::new(), moved: 0 };
        let mut shape = children.unwrap_or_else(|| Shape { upper: empty(), lower: empty() });
        for edge in [&mut shape.upper, &mut shape.lower] {
            edge.moved -= middle;
            edge.levels.push(-edge.moved);
        }
        shape
    }

    fn depth(&self) -> usize {
        self.upper.levels.len()
    }

    fn top(&self) -> i64 {
        self.upper.levels.iter().min().map_or(0, |top| top + self.upper.moved)
    }

    fn bottom(&self) -> i64 {
        self.lower.levels.iter().max().map_or(0, |bottom| bottom + self.lower.moved)
    }

    /// Both, and how far the second had to be moved. Costs what the shallower one has levels.
    fn with_below(mut self, mut other: Shape, row: i64) -> (Shape, i64) {
        let common = self.depth().min(other.depth());
        let needs = |level| self.lower.at(level) + row - other.upper.at(level);
        let moved = (0..common).map(needs).max().unwrap_or(0);
        other.upper.moved += moved;
        other.lower.moved += moved;
        if self.depth() >= other.depth() {
            for level in 0..common {
                self.lower.set(level, other.lower.at(level));
            }
            return (self, moved);
        }
        for level in 0..common {
            other.upper.set(level, self.upper.at(level));
        }
        (other, moved)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn levels(parents: &[Option<usize>]) -> Vec<usize> {
        let mut levels: Vec<usize> = Vec::new();
        for parent in parents {
            levels.push(parent.map_or(0, |parent| levels[parent] + 1));
        }
        levels
    }

    #[test]
    fn a_small_tree_stands_as_one_would_draw_it() {
        // 0 ─┬─ 1 ─┬─ 3
        //    │     └─ 4
        //    └─ 2, and 5 by itself.
        let parents = [None, Some(0), Some(0), Some(1), Some(1), None];
        assert_eq!(places(&parents, 2), [2, 1, 3, 0, 2, 5]);
    }

    #[test]
    fn ten_thousand_in_a_line_or_side_by_side_are_placed() {
        let line: Vec<_> = (0..10_000_usize).map(|n| n.checked_sub(1)).collect();
        assert!(places(&line, 10).iter().all(|place| *place == 0));
        let fan: Vec<_> = (0..10_000_usize).map(|n| (n > 0).then_some(0)).collect();
        let placed = places(&fan, 10);
        assert_eq!((placed[0], placed[1], placed[9_999]), (49_990, 0, 99_980));
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_parents_stand_in_the_middle(seeds in prop::collection::vec(any::<u32>(), 1..80)) {
            let parent = |(at, seed): (usize, &u32)| {
                let seed = usize::try_from(*seed).unwrap();
                (at > 0 && !seed.is_multiple_of(7)).then(|| seed / 7 % at)
            };
            let parents: Vec<Option<usize>> = seeds.iter().enumerate().map(parent).collect();
            let placed = places(&parents, 10);
            let mut by_level: HashMap<usize, Vec<i64>> = HashMap::new();
            for (level, place) in levels(&parents).into_iter().zip(&placed) {
                by_level.entry(level).or_default().push(*place);
            }
            for places in by_level.values_mut() {
                places.sort_unstable();
                prop_assert!(places.windows(2).all(|two| two[1] - two[0] >= 10), "{places:?}");
            }
            prop_assert_eq!(placed.iter().min(), Some(&0));
            for at in 0..parents.len() {
                let below: Vec<i64> =
                    (0..parents.len()).filter(|n| parents[*n] == Some(at)).map(|n| placed[n]).collect();
                if let (Some(first), Some(last)) = (below.first(), below.last()) {
                    prop_assert!((placed[at] * 2 - first - last).abs() <= 1);
                    prop_assert!(below.is_sorted());
                }
            }
        }
    }
}
