//! Names as people write them: `NAME` is a disk, `NAME@SNAP` a snapshot of it.

/// How the names of temporary disks begin. Whoever opens a pool removes those that its last owner left;
/// nobody else may use such a name.
pub const TEMPORARY: &str = ".tmp-";

/// `NAME` or `NAME@SNAP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'a> {
    /// The disk.
    pub disk: &'a str,
    /// Its snapshot, if one is meant.
    pub snapshot: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// Takes a name apart; whether it exists is the pool's to say.
    pub fn of(text: &'a str) -> Name<'a> {
        match text.split_once('@') {
            Some((disk, snapshot)) => Name { disk, snapshot: Some(snapshot) },
            None => Name { disk: text, snapshot: None },
        }
    }
}
