//! Disks and snapshots as a forest: each below the snapshot it evolved from.

use std::collections::HashMap;

use super::Node;

/// Nodes, each after the one it evolved from, in the order in which they are drawn.
#[derive(Debug, Default)]
pub(super) struct Forest {
    pub(super) nodes: Vec<Node>,
    /// Where each one's parent stands.
    pub(super) parents: Vec<Option<usize>>,
    /// Where each one's children stand. The one that carries on its line comes last.
    pub(super) children: Vec<Vec<usize>>,
}

impl Forest {
    /// Orders nodes by what each says it evolved from. An origin that is not among them counts as none, and so
    /// does one that would close a circle.
    pub(super) fn of(nodes: Vec<Node>) -> Forest {
        let places: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(at, node)| (node.name.as_str(), at)).collect();
        let parent = |node: &Node| node.origin.as_ref().and_then(|name| places.get(name.as_str()));
        let parents: Vec<Option<usize>> = nodes.iter().map(|node| parent(node).copied()).collect();
        let mut children = vec![Vec::new(); nodes.len()];
        for (at, parent) in parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[*parent].push(at);
            }
        }
        let current = on_the_way_to_a_disk(&nodes, &parents);
        for (at, below) in children.iter_mut().enumerate() {
            // After a rollback, several carry on the same disk; the one that is the disk today is its line.
            let carries_on = |child: &usize| {
                let same = disk_of(&nodes[*child].name) == disk_of(&nodes[at].name);
                (same && current[*child], same)
            };
            below.sort_by_key(carries_on);
        }
        let mut forest = Forest::default();
        let mut left: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
        let roots = parents.iter().enumerate().filter(|(_, parent)| parent.is_none());
        let mut next: Vec<(usize, Option<usize>)> = roots.map(|(at, _)| (at, None)).collect();
        next.reverse();
        let mut circles = 0;
        loop {
            while let Some((at, parent)) = next.pop() {
                if let Some(node) = left[at].take() {
                    let place = forest.add(node, parent);
                    next.extend(children[at].iter().rev().map(|child| (*child, Some(place))));
                }
            }
            match left[circles..].iter().position(Option::is_some) {
                Some(further) => circles += further,
                None => return forest,
            }
            next.push((circles, None));
        }
    }

    fn add(&mut self, node: Node, parent: Option<usize>) -> usize {
        let place = self.nodes.len();
        self.nodes.push(node);
        self.parents.push(parent);
        self.children.push(Vec::new());
        if let Some(parent) = parent {
            self.children[parent].push(place);
        }
        place
    }
}

/// The disk in `NAME` or `NAME@SNAP`.
pub(super) fn disk_of(name: &str) -> &str {
    name.split('@').next().unwrap_or(name)
}

/// Whether each is a disk, or a snapshot from which that disk evolved into what it is today.
fn on_the_way_to_a_disk(nodes: &[Node], parents: &[Option<usize>]) -> Vec<bool> {
    let mut on_the_way = vec![false; nodes.len()];
    for (at, node) in nodes.iter().enumerate().filter(|(_, node)| !node.name.contains('@')) {
        let mut here = Some(at);
        while let Some(place) = here {
            if on_the_way[place] || disk_of(&nodes[place].name) != node.name {
                break;
            }
            on_the_way[place] = true;
            here = parents[place];
        }
    }
    on_the_way
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Nodes by their names and those of their origins.
    pub(in super::super) fn nodes(named: &[(&str, &str)]) -> Vec<Node> {
        let node = |(name, origin): &(&str, &str)| Node {
            name: (*name).to_owned(),
            origin: (!origin.is_empty()).then(|| (*origin).to_owned()),
            base: None,
            size: 10 << 30,
            referenced: 3 << 20,
            created: 0,
            served: false,
        };
        named.iter().map(node).collect()
    }

    fn shown(named: &[(&str, &str)]) -> Vec<String> {
        let forest = Forest::of(nodes(named));
        let name = |(at, node): (usize, &Node)| match forest.parents[at] {
            Some(parent) => format!("{}<{}", forest.nodes[parent].name, node.name),
            None => node.name.clone(),
        };
        forest.nodes.iter().enumerate().map(name).collect()
    }

    #[test]
    fn a_parent_comes_before_its_descendants_and_its_own_line_last() {
        let named = [
            ("a", "b@2"),
            ("b@1", ""),
            ("b@2", "b@1"),
            ("b", "b@2"),
            ("c", "gone@1"),
            ("z", "b@1"),
        ];
        assert_eq!(shown(&named), ["b@1", "b@1<z", "b@1<b@2", "b@2<a", "b@2<b", "c"]);
    }

    #[test]
    fn after_a_rollback_the_line_leads_to_the_disk_of_today() {
        let named = [
            ("b@1", ""),
            ("b@2", "b@1"),
            ("b@3", "b@2"),
            ("b", "b@4"),
            ("b@4", "b@1"),
            ("v", "b@1"),
        ];
        assert_eq!(shown(&named), ["b@1", "b@1<v", "b@1<b@2", "b@2<b@3", "b@1<b@4", "b@4<b"]);
    }

    #[test]
    fn a_circle_is_no_reason_to_run_for_ever_or_to_lose_one() {
        assert_eq!(
            shown(&[("a@1", "b@1"), ("b@1", "a@1"), ("c", ""), ("d", "d")]),
            ["c", "a@1", "a@1<b@1", "d"]
        );
    }
}
