//! A forest in lines: time goes down, a line that branches off goes right.

use unicode_width::UnicodeWidthStr as _;

use super::forest::Forest;
use crate::hostile;
use crate::reporter::rows::{Paint, mebibytes};
use crate::terminal::Tone;

/// Columns of branches drawn; of those further right, only the last are.
const DEEPEST: usize = 24;
/// Columns names are aligned in; a longer one moves its own row only.
const WIDEST: usize = 48;

/// A row for each, with its size and what its map reaches.
pub(super) fn draw(forest: &Forest, paint: Paint<'_>) -> Vec<String> {
    let mut depths = Vec::with_capacity(forest.nodes.len());
    let mut rows = Vec::with_capacity(forest.nodes.len());
    for (at, node) in forest.nodes.iter().enumerate() {
        let parent = forest.parents[at];
        let carries_on = parent.is_some_and(|parent| forest.children[parent].last() == Some(&at));
        let depth = match parent {
            Some(parent) if carries_on => depths[parent],
            Some(parent) => depths[parent] + 1,
            None => 0,
        };
        depths.push(depth);
        let mark = match (parent, carries_on, forest.children[at].is_empty()) {
            (_, true, false) => "├",
            (_, true, true) => "└",
            (None, false, false) => "┌",
            (Some(_), false, false) => "┬",
            (_, false, true) => "─",
        };
        let lines = depth.min(DEEPEST);
        let cut = if depth > DEEPEST { "… " } else { "" };
        // A line that others branch off goes on below them, always.
        let branch = match carries_on || lines == 0 {
            true => "│ ".repeat(lines),
            false => format!("{}├─", "│ ".repeat(lines - 1)),
        };
        rows.push((format!("{cut}{branch}{mark} "), hostile::line(&node.name)));
    }
    let width = |(tree, name): &(String, std::borrow::Cow<'_, str>)| tree.width() + name.width();
    let column = rows.iter().map(width).filter(|width| *width <= WIDEST).max().unwrap_or(0);
    let row = |(at, row): (usize, &(String, std::borrow::Cow<'_, str>))| {
        let node = &forest.nodes[at];
        let is_disk = !node.name.contains('@');
        let name = paint(if is_disk { Tone::Bold } else { Tone::Plain }, &row.1);
        let padding = " ".repeat(column.saturating_sub(width(row)));
        let size = kiln_block::ByteLen::new(node.size).to_string();
        let used = mebibytes(node.referenced);
        let served = if node.served { paint(Tone::Good, "  served") } else { String::new() };
        // What all of a line is on is said where the line begins.
        let inherited = forest.parents[at].and_then(|parent| forest.nodes[parent].base.as_ref());
        let base = node.base.as_ref().filter(|base| inherited != Some(*base));
        let base = base.map(|base| paint(Tone::Dim, &format!("  on {}", hostile::line(base))));
        let base = base.unwrap_or_default();
        let branch = paint(Tone::Dim, &row.0);
        format!("{branch}{name}{padding} {size:>8} {used:>11} used{base}{served}")
    };
    rows.iter().enumerate().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::super::forest::tests::nodes;
    use super::*;

    fn drawn(named: &[(&str, &str)]) -> String {
        let rows = draw(&Forest::of(nodes(named)), &|_, text| text.to_owned());
        rows.join("\n")
    }

    #[test]
    fn an_image_that_disks_are_on_is_named_where_their_line_begins() {
        let mut nodes = nodes(&[("base@ready", ""), ("base", "base@ready"), ("own", "")]);
        for node in &mut nodes[..2] {
            node.base = Some("layers/config.v1.json".to_owned());
        }
        let rows = draw(&Forest::of(nodes), &|_, text| text.to_owned());
        let named = |row: &String| row.ends_with("used  on layers/config.v1.json");
        assert_eq!(rows.iter().map(named).collect::<Vec<_>>(), [true, false, false]);
    }

    #[test]
    fn a_line_goes_down_and_what_branches_off_goes_right() {
        let named = [
            ("base@monday", ""),
            ("base@tuesday", "base@monday"),
            ("base", "base@tuesday"),
            ("scratch", ""),
            ("vm-1@crash", "base@monday"),
            ("vm-1", "vm-1@crash"),
            ("again", "vm-1@crash"),
            ("vm-2", "base@tuesday"),
            ("vm-3", "base@tuesday"),
        ];
        insta::assert_snapshot!(drawn(&named), @r"
        ┌ base@monday       10G     3.0 MiB used
        ├─┬ vm-1@crash      10G     3.0 MiB used
        │ ├── again         10G     3.0 MiB used
        │ └ vm-1            10G     3.0 MiB used
        ├ base@tuesday      10G     3.0 MiB used
        ├── vm-2            10G     3.0 MiB used
        ├── vm-3            10G     3.0 MiB used
        └ base              10G     3.0 MiB used
        ─ scratch           10G     3.0 MiB used
        ");
    }

    #[test]
    fn a_name_cannot_forge_a_row_or_a_branch() {
        let shown = drawn(&[("a\n└ b", ""), ("\u{202e}x\x1b[2J", ""), ("漢字", "")]);
        assert_eq!(shown.lines().count(), 3);
        assert!(shown.contains("a\\n└ b") && shown.contains("\\u{202e}x\\x1b[2J"), "{shown}");
    }

    #[test]
    fn clones_of_clones_of_clones_stay_within_the_margin() {
        let mut named = vec![("d0@s".to_owned(), String::new())];
        for n in 1..2000 {
            named.push((format!("d{n}@s"), format!("d{}@s", n - 1)));
            named.push((format!("d{n}"), format!("d{n}@s")));
        }
        let named: Vec<_> = named.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let shown = drawn(&named);
        assert_eq!(shown.lines().count(), named.len());
        assert!(shown.lines().all(|row| row.width() < 100), "{shown}");
    }
}
