//! The tar around a layer, without which registries would not take it for one.
//!
//! Written: a pax header whose one record is the payload's size, a ustar header, the payload, zeros to
//! 512 bytes, two zero blocks. Read: that, or a single ustar header (`docs/formats/overlaybd.md`).

use std::io::{self, Write};

use crate::{Input, LayerError};

/// Size of a header, and what everything is padded to.
const BLOCK: usize = 512;
/// Where the payload starts in a tar we write.
pub(crate) const PAYLOAD_AT: u64 = 1536;

/// The payload, if the input is a tar; the input itself if it is not.
pub(crate) fn unwrap(input: &Input) -> Result<Input, LayerError> {
    if input.len() < BLOCK as u64 {
        return Ok(input.clone());
    }
    let mut header = [0u8; BLOCK];
    input.read(0, &mut header, "the tar header")?;
    if !is_header(&header) {
        return Ok(input.clone());
    }
    let (payload_at, size) = if header[156] == b'x' {
        let mut record = [0u8; BLOCK];
        input.read(BLOCK as u64, &mut record, "the pax record")?;
        let used = number(&header[124..136])
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| *size <= BLOCK)
            .ok_or_else(|| input.damaged(124, "the pax record is larger than 512 bytes"))?;
        input.read(2 * BLOCK as u64, &mut header, "the tar header")?;
        if !is_header(&header) {
            return Err(input.damaged(1024, "after the pax record there is no tar header"));
        }
        let size = pax_size(&record[..used]).map_err(|rule| input.damaged(512, rule))?;
        (PAYLOAD_AT, size.or_else(|| number(&header[124..136])))
    } else {
        (BLOCK as u64, number(&header[124..136]))
    };
    let at = payload_at - BLOCK as u64 + 124;
    let size = size.ok_or_else(|| input.damaged(at, "the tar member's size is not a number"))?;
    match payload_at.checked_add(size) {
        Some(end) if end <= input.len() => Ok(input.window(payload_at, size)),
        _ => {
            // A cut tar stays readable as far as it goes: the layer in it says what it needs.
            Ok(input.window(payload_at, input.len().saturating_sub(payload_at)))
        }
    }
}

fn is_header(block: &[u8; BLOCK]) -> bool {
    block[257..262] == *b"ustar"
        && block[263..265] == *b"00"
        && number(&block[148..156]) == Some(checksum(block))
}

/// The sum of a header's bytes, those of the sum itself counted as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    let own: u64 = block[148..156].iter().map(|byte| u64::from(*byte)).sum();
    sum - own + 8 * u64::from(b' ')
}

/// An octal number between spaces and NULs, or a binary one marked by its top bit.
fn number(field: &[u8]) -> Option<u64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        return field[1..].iter().try_fold(u64::from(first & 0x7f), |value, byte| {
            value.checked_mul(256).map(|value| value | u64::from(*byte))
        });
    }
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| *byte != b' ' && *byte != 0)
        .collect();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, digit| {
        matches!(digit, b'0'..=b'7')
            .then(|| value.checked_mul(8).map(|value| value + u64::from(digit - b'0')))
            .flatten()
    })
}

/// The size among the records of a pax header, each `LENGTH KEY=VALUE\n`.
fn pax_size(mut records: &[u8]) -> Result<Option<u64>, String> {
    while records.first().is_some_and(|byte| *byte != 0) {
        let space = records.iter().take(8).position(|byte| *byte == b' ');
        let len = space
            .and_then(|space| std::str::from_utf8(&records[..space]).ok())
            .and_then(|text| text.parse::<usize>().ok());
        let (Some(space), Some(len)) = (space, len) else {
            return Err("a pax record starts with no length".to_owned());
        };
        let record = records
            .get(space + 1..len)
            .and_then(|record| record.strip_suffix(b"\n"))
            .ok_or_else(|| format!("a pax record of {len} bytes does not end in a newline"))?;
        if let Some(value) = record.strip_prefix(b"size=") {
            let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            return size.map(Some).ok_or_else(|| "the pax size is not a number".to_owned());
        }
        records = &records[len..];
    }
    Ok(None)
}

/// The three blocks before a payload of `size` bytes.
pub(crate) fn header(size: u64) -> [u8; 1536] {
    let mut blocks = [0u8; 1536];
    let record = pax_record(size);
    blocks[BLOCK..BLOCK + record.len()].copy_from_slice(record.as_bytes());
    {
        let (pax, _) = blocks.split_at_mut(BLOCK);
        put(pax, 0, b"overlaybd.pax");
        put(pax, 124, format!("{:>11o} ", record.len()).as_bytes());
        seal(pax, b'x');
    }
    let member = &mut blocks[2 * BLOCK..];
    put(member, 0, b"overlaybd.commit");
    put(member, 100, b"100644 \0");
    put(member, 108, b"     0 \0");
    put(member, 116, b"     0 \0");
    put(member, 124, b"          0 ");
    put(member, 136, b"          0 ");
    put(member, 265, b"root");
    put(member, 297, b"root");
    seal(member, b'0');
    blocks
}

/// What comes before and behind the bytes of a layer that is to be in a tar, whose size is known.
pub fn around_layer(size: u64) -> (Vec<u8>, Vec<u8>) {
    let padding = size.next_multiple_of(BLOCK as u64) - size;
    (header(size).to_vec(), vec![0; usize::try_from(padding).unwrap_or(0) + 2 * BLOCK])
}

/// A tar with one small file in it.
pub(crate) fn around_file(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut tar = vec![0; BLOCK];
    put(&mut tar, 0, name.as_bytes());
    put(&mut tar, 100, b"0000444\0");
    put(&mut tar, 108, b"0000000\0");
    put(&mut tar, 116, b"0000000\0");
    put(&mut tar, 124, format!("{:011o}\0", bytes.len()).as_bytes());
    put(&mut tar, 136, b"00000000000\0");
    seal(&mut tar, b'0');
    tar.extend(bytes);
    tar.resize(tar.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
    tar
}

/// `LENGTH size=SIZE\n`, whose length counts its own digits.
fn pax_record(size: u64) -> String {
    let rest = format!(" size={size}\n");
    let mut len = rest.len() + 1;
    while len != rest.len() + len.to_string().len() {
        len = rest.len() + len.to_string().len();
    }
    format!("{len}{rest}")
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Type, magic and, last of all, the checksum.
fn seal(block: &mut [u8], kind: u8) {
    block[156] = kind;
    put(block, 257, b"ustar\x0000");
    put(block, 148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(block, 148, format!("{sum:>6o} \0").as_bytes());
}

/// What follows a payload of `size` bytes.
pub(crate) fn write_end(out: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = usize::try_from(size.next_multiple_of(512) - size).unwrap_or(0);
    out.write_all(&[0u8; 3 * BLOCK][..padding + 2 * BLOCK])
}
