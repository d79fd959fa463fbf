//! `kiln disk tree`: disks and snapshots, and what evolved from what.

mod dot;
mod forest;
mod layout;
mod svg;
mod text;

#[cfg(test)]
#[path = "../../../../../history/tests/site/cdp.rs"]
#[expect(dead_code, reason = "the pages' tests wait for scripts, of which a picture has none")]
mod cdp;
#[cfg(test)]
mod picture_tests;

use serde_json::{Value, json};

use self::forest::Forest;
use crate::arguments::Drawing;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{self, paint};

pub(super) use kiln_store::Node;

/// Draws them as it was asked for.
pub(crate) fn draw(
    session: &Session,
    nodes: Vec<Node>,
    to: Option<Drawing>,
) -> Result<Exit, Failure> {
    let forest = Forest::of(nodes);
    match to.unwrap_or(if session.json() { Drawing::Json } else { Drawing::Text }) {
        Drawing::Json => {
            session.out_json(&forest.nodes.iter().map(node_json).collect::<Vec<_>>())?;
        }
        Drawing::Dot => terminal::out(&dot::draw(&forest))?,
        Drawing::Svg => terminal::out(&svg::draw(&forest))?,
        Drawing::Text if forest.nodes.is_empty() => {
            terminal::say("no disks yet: kiln disk create NAME --size 10G");
        }
        Drawing::Text => {
            for row in text::draw(&forest, &paint) {
                terminal::out_line(&row)?;
            }
        }
    }
    Ok(Exit::Success)
}

fn node_json(node: &Node) -> Value {
    let (disk, snapshot) = match node.name.split_once('@') {
        Some((disk, snapshot)) => (disk, Some(snapshot)),
        None => (node.name.as_str(), None),
    };
    json!({
        "name": node.name, "disk": disk, "snapshot": snapshot, "origin": node.origin,
        "size": node.size, "referenced": node.referenced, "created": node.created,
        "served": node.served, "base": node.base,
    })
}
