//! The memo of a request: which files were looked at, and which image that led to. A later request
//! looks at them again and is done, if nothing has changed.
//!
//! A memo is a hint. Whatever is wrong with one, it is the same as having none.
//!
//! | field   | form                                                         |
//! |---------|--------------------------------------------------------------|
//! | magic   | `kiln image memo 2` and a newline                            |
//! | key     | 64 hexadecimal digits and a newline                          |
//! | witness | of everything that was looked at ([`witness`])               |

use std::io::Read;
use std::path::Path;

use crate::closure::host::Input;
use crate::witness;

const MAGIC: &[u8] = b"kiln image memo 2\n";
/// A million paths; larger memos are somebody else's.
const SIZE_LIMIT: u64 = 256 << 20;

/// The key a memo leads to, if all it looked at is as it was.
pub(super) fn recall(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.by_ref().take(SIZE_LIMIT).read_to_end(&mut bytes).ok()?;
    let (key, rest) = bytes.strip_prefix(MAGIC)?.split_at_checked(64)?;
    let key = String::from_utf8(key.to_vec()).ok()?;
    witness::holds(rest.strip_prefix(b"\n")?).then_some(key)
}

/// The text of a memo.
pub(super) fn write(key: &str, inputs: &[Input]) -> Vec<u8> {
    let mut text = MAGIC.to_vec();
    text.extend_from_slice(key.as_bytes());
    text.push(b'\n');
    witness::write(inputs, &mut text);
    text
}
