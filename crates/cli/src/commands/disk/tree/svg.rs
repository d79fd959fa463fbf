//! A forest as a picture: time goes right, from each snapshot to what evolved from it. One file without scripts, for
//! a browser, a page or a mail; it is dark where its reader's screen is.

use kiln_block::ByteLen;
use maud::{Markup, PreEscaped, html};
use unicode_width::UnicodeWidthStr as _;

use super::forest::{Forest, disk_of};
use super::layout;
use crate::hostile;
use crate::reporter::rows::mebibytes;

/// Boxes drawn at most; how many more there are is said below them.
pub(super) const MOST: usize = 10_000;
/// Snapshots in a row from which nothing else evolved, of which the middle ones are one box from this many on.
const ROW_OF: usize = 5;
/// Columns of the longest name shown whole; the whole of a longer one appears under the pointer.
const WIDEST: usize = 32;

const HEIGHT: i64 = 34;
const ROW: i64 = 44;
const GAP: i64 = 36;
const MARGIN: i64 = 16;
/// Of a character of the larger font, in tenths.
const CHARACTER: i64 = 75;
const SMALL_CHARACTER: i64 = 63;

const STYLE: &str = "\
svg{--back:#fbfaf8;--box:#fff;--ink:#23201c;--dim:#6b645b;--line:#b5aca0;--disk:#1f6f5c;--soft:#e5f1ed;color-scheme:light dark}\
@media(prefers-color-scheme:dark){svg{--back:#1a1917;--box:#24221f;--ink:#ece7df;--dim:#a39b90;--line:#5b554d;--disk:#6cc7ae;--soft:#1d332d}}\
.back{fill:var(--back)}path{fill:none;stroke:var(--line);stroke-width:1.5}\
rect{fill:var(--box);stroke:var(--line)}.disk rect{fill:var(--soft);stroke:var(--disk);stroke-width:1.5}\
.fold rect{stroke-dasharray:4 3}text{fill:var(--ink);font:12px ui-monospace,DejaVu Sans Mono,Menlo,monospace}\
.disk text:first-of-type{font-weight:bold}.small{fill:var(--dim);font-size:10px}";

/// A box.
struct Shown {
    class: &'static str,
    name: String,
    about: String,
    /// All of it, however long.
    title: String,
}

/// The picture.
pub(super) fn draw(forest: &Forest) -> String {
    let (shown, parents) = boxes(forest);
    let left_out = shown.len().saturating_sub(MOST);
    let shown = &shown[..shown.len().min(MOST)];
    let parents = &parents[..shown.len()];
    let places = layout::places(parents, ROW);
    // Columns are as wide as their widest box.
    let mut levels = Vec::with_capacity(shown.len());
    let mut widths: Vec<i64> = Vec::new();
    for (shown, parent) in shown.iter().zip(parents) {
        let level = parent.map_or(0, |parent| levels[parent] + 1);
        levels.push(level);
        widths.resize(widths.len().max(level + 1), 0);
        widths[level] = widths[level].max(shown.width());
    }
    let mut lefts = Vec::with_capacity(widths.len());
    let mut right = MARGIN;
    for width in &widths {
        lefts.push(right);
        right += width + GAP;
    }
    let width = (right - GAP + MARGIN).max(240);
    let bottom = places.iter().max().map_or(0, |place| place + ROW) + MARGIN;
    let height = bottom + if left_out > 0 || shown.is_empty() { 24 } else { 0 };
    let note = match (left_out, shown.is_empty()) {
        (_, true) => "no disks yet".to_owned(),
        (0, false) => String::new(),
        (left_out, false) => format!("and {left_out} more: --to text shows all"),
    };
    let edge = |at: usize, parent: usize| {
        let (from, to) = (levels[parent], lefts[levels[at]]);
        let (begin, bend) = (lefts[from] + shown[parent].width(), lefts[from] + widths[from]);
        let [y1, y2] = [parent, at].map(|at| MARGIN + places[at] + HEIGHT / 2);
        let middle = (bend + to) / 2;
        html! { path d={ "M" (begin) " " (y1) "H" (bend) "C" (middle) " " (y1) " " (middle) " " (y2) " " (to) " " (y2) } {} }
    };
    html! {
        svg xmlns="http://www.w3.org/2000/svg" width=(width) height=(height)
            viewBox={ "0 0 " (width) " " (height) } role="img" aria-label="Disks and snapshots" {
            title { "Disks and snapshots" }
            style { (PreEscaped(STYLE)) }
            rect.back width=(width) height=(height) stroke="none" {}
            @for (at, parent) in parents.iter().enumerate() {
                @if let Some(parent) = parent { (edge(at, *parent)) }
            }
            @for (at, shown) in shown.iter().enumerate() {
                (shown.draw(lefts[levels[at]], MARGIN + places[at]))
            }
            @if !note.is_empty() { text.small x=(MARGIN) y=(height - MARGIN) { (note) } }
        }
    }
    .into_string()
        + "\n"
}

/// What is drawn: rows of snapshots that nothing else evolved from become one box between their ends.
fn boxes(forest: &Forest) -> (Vec<Shown>, Vec<Option<usize>>) {
    let only_child = |at: usize| {
        let parent = forest.parents[at].filter(|parent| forest.children[*parent].len() == 1);
        parent.is_some_and(|parent| {
            disk_of(&forest.nodes[parent].name) == disk_of(&forest.nodes[at].name)
        })
    };
    let plain = |at: usize| {
        let node = &forest.nodes[at];
        let snapshot = node.name.contains('@') && !node.served;
        snapshot && forest.children[at].len() == 1 && only_child(at)
    };
    let mut places = vec![0; forest.nodes.len()];
    let mut shown = Vec::new();
    let mut parents = Vec::new();
    let mut at = 0;
    while at < forest.nodes.len() {
        // The last one stays: it is the newest.
        let row = (at..forest.nodes.len()).take_while(|at| plain(*at)).count().saturating_sub(1);
        let end = if row >= ROW_OF { at + row } else { at + 1 };
        parents.push(forest.parents[at].map(|parent| places[parent]));
        places[at..end].fill(shown.len());
        shown.push(match end - at {
            1 => Shown::node(forest, at),
            count => {
                let [first, last] = [at, end - 1].map(|at| visible(&forest.nodes[at].name));
                let about = format!("{count} snapshots");
                Shown {
                    class: "fold",
                    name: "…".to_owned(),
                    title: format!("{about}, {first} to {last}"),
                    about,
                }
            }
        });
        at = end;
    }
    (shown, parents)
}

impl Shown {
    fn node(forest: &Forest, at: usize) -> Shown {
        let node = &forest.nodes[at];
        let name = visible(&node.name);
        let served = if node.served { ", served" } else { "" };
        let about =
            format!("{}, {} used{served}", ByteLen::new(node.size), mebibytes(node.referenced));
        let class = if node.name.contains('@') { "snapshot" } else { "disk" };
        let title = format!("{name}: {about}");
        Shown { class, name: hostile::cut(&name, WIDEST).into_owned(), about, title }
    }

    fn width(&self) -> i64 {
        let columns = |text: &str| i64::try_from(text.width()).unwrap_or(0);
        let widest = (columns(&self.name) * CHARACTER).max(columns(&self.about) * SMALL_CHARACTER);
        widest / 10 + 20
    }

    fn draw(&self, x: i64, y: i64) -> Markup {
        html! {
            g class=(self.class) {
                title { (self.title) }
                rect x=(x) y=(y) width=(self.width()) height=(HEIGHT) rx="5" {}
                text x=(x + 10) y=(y + 15) { (self.name) }
                text.small x=(x + 10) y=(y + 28) { (self.about) }
            }
        }
    }
}

/// A name fit for XML, which knows no control characters and no two others.
fn visible(name: &str) -> String {
    hostile::line(name).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}
