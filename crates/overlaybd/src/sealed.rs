//! Everything that can be checked about one sealed layer.

use std::error::Error;
use std::fmt;

use crate::{Input, Layer, LayerError, OpenOptions};

/// Something wrong with a layer; shown with its causes.
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
            Flaw::Unreadable(error) => with_causes(error, f),
            Flaw::Lost(error) => with_causes(error, f),
            Flaw::Odd(what) => f.write_str(what),
        }
    }
}

/// Which rule was broken where may be what a failed read says of its cause.
fn with_causes(error: &(dyn Error + 'static), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{error}")?;
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
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
