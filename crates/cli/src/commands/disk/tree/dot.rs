//! A forest as Graphviz reads it.

use std::fmt::Write as _;

use kiln_block::ByteLen;

use super::forest::Forest;
use crate::hostile;
use crate::reporter::rows::mebibytes;

/// A directed graph, from each snapshot to what evolved from it.
pub(super) fn draw(forest: &Forest) -> String {
    let mut graph = String::from(
        "digraph disks {\n  graph [rankdir=LR]\n  node [shape=box, fontname=\"monospace\"]\n",
    );
    for (at, node) in forest.nodes.iter().enumerate() {
        let style = if node.name.contains('@') { "rounded" } else { "bold" };
        let (size, used) = (ByteLen::new(node.size), mebibytes(node.referenced));
        let name = quoted(&node.name);
        let _infallible =
            writeln!(graph, "  n{at} [label=\"{name}\\n{size}, {used} used\", style={style}]");
    }
    for (at, parent) in forest.parents.iter().enumerate() {
        if let Some(parent) = parent {
            let _infallible = writeln!(graph, "  n{parent} -> n{at}");
        }
    }
    graph.push_str("}\n");
    graph
}

/// A name inside a quoted label, where a backslash begins an escape of Graphviz's, and `&` an entity.
fn quoted(name: &str) -> String {
    let mut text = String::new();
    for c in hostile::line(name).chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '&' => text.push_str("&amp;"),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::nodes;
    use super::*;

    #[test]
    fn a_graph_has_a_box_for_each_and_an_arrow_from_its_origin() {
        let named = [("base@monday", ""), ("base", "base@monday"), ("vm", "base@monday")];
        insta::assert_snapshot!(draw(&Forest::of(nodes(&named))), @r#"
        digraph disks {
          graph [rankdir=LR]
          node [shape=box, fontname="monospace"]
          n0 [label="base@monday\n10G, 3.0 MiB used", style=rounded]
          n1 [label="vm\n10G, 3.0 MiB used", style=bold]
          n2 [label="base\n10G, 3.0 MiB used", style=bold]
          n0 -> n1
          n0 -> n2
        }
        "#);
    }

    /// What Graphviz makes of a quoted string, and of a label in it.
    fn label(quoted: &str) -> String {
        let mut text = String::new();
        let mut chars = quoted.chars();
        while let Some(c) = chars.next() {
            assert_ne!(c, '"', "it ends early: {quoted}");
            text.push(match c {
                '\\' => match chars.next().expect("a backslash is followed by something") {
                    c @ ('"' | '\\') => c,
                    c => panic!("\\{c} in {quoted}"),
                },
                c => c,
            });
        }
        text.replace("&amp;", "&")
    }

    #[test]
    fn a_hostile_name_stays_inside_its_label() {
        for name in
            ["\"];evil[label=\"", "\\", "a\\\"b", "&lt;&quot;", "\\N\\G", "<b>x</b>", "x\ny"]
        {
            assert_eq!(label(&quoted(name)), hostile::line(name), "{name}");
        }
        let graph = draw(&Forest::of(nodes(&[("\"]\n}", "")])));
        assert_eq!(graph.lines().count(), 5, "{graph}");
    }
}
