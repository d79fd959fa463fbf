//! Everything that can be checked about one sealed layer.

use std::fmt;

use crate::{Input, Layer, LayerError, OpenOptions};

/// Something wrong with a layer.
#[derive(Debug)]
pub enum Flaw {
    /// It cannot be opened.
    Unreadable(LayerError),
    /// A part of its content is lost.
    Lost(kiln_block::DeviceError),
    /// It reads, and others may stumble over it.
    Odd(String),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Unreadable(error) => fmt::Display::fmt(error, f),
            Flaw::Lost(error) => fmt::Display::fmt(error, f),
            Flaw::Odd(what) => f.write_str(what),
        }
    }
}

/// Checks every rule and every block of a layer; returns at most about `limit` flaws.
pub fn check(input: Input, options: &OpenOptions, limit: usize) -> Vec<Flaw> {
    let layer = match Layer::open(input, options) {
        Ok(layer) => layer,
        Err(error) => return vec![Flaw::Unreadable(error)],
    };
    check_layer(&layer, limit)
}

/// Checks every block of a layer that is open, and so keeps the rules of its index.
pub fn check_layer(layer: &Layer, limit: usize) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    if let Some(zfile) = layer.zfile() {
        flaws.extend(zfile.damaged_blocks(limit).into_iter().map(Flaw::Lost));
        if !zfile.has_checksums() {
            flaws.push(Flaw::Odd(
                "its blocks carry no CRC, damage to them may go unseen".to_owned(),
            ));
        }
    }
    let sectors = layer.virtual_size().div_ceil(512);
    let beyond = layer.segments().iter().filter(|segment| segment.end() > sectors).count();
    if sectors > 0 && beyond > 0 {
        let what = format!("{beyond} index entries reach past the disk's {sectors} sectors");
        flaws.push(Flaw::Odd(what));
    }
    if layer.was_sealed_in_place() {
        let what = "it was sealed in place, so it carries data that was overwritten; commit it";
        flaws.push(Flaw::Odd(what.to_owned()));
    }
    flaws
}
