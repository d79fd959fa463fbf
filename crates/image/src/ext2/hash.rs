//! The hash by which large directories are sorted: half of MD4, over names in pieces of 32 bytes.

/// The seed that is stored in the superblock. Nobody hostile chooses names to slow an image down, so
/// it is the same for every disk, which keeps the bytes the same.
pub(super) const SEED: [u32; 4] = [0x6b69_6c6e, 0x9e37_79b9, 0x7f4a_7c15, 0xf39c_c060];

/// What the superblock and a directory's root call this hash.
pub(super) const HALF_MD4: u8 = 1;

/// Marks the end of a directory for readers that walk it by hash, so no name may have it.
const END: u32 = 0x7fff_ffff << 1;

/// A name's hash. The lowest bit is clear: in an index it says that a hash continues a block.
pub(super) fn of_name(name: &[u8]) -> u32 {
    let mut state = SEED;
    let mut rest = name;
    while !rest.is_empty() {
        let words = words(rest);
        transform(&mut state, &words);
        rest = &rest[rest.len().min(32)..];
    }
    match state[1] & !1 {
        END => END - 2,
        hash => hash,
    }
}

/// Eight words of the next 32 bytes. Bytes count as signed, which is what the flag in the superblock
/// says. What is missing is filled with the length of the rest.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let pad = length | length << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        for &byte in bytes {
            let signed = i32::from(byte.cast_signed()).cast_unsigned();
            *word = signed.wrapping_add(*word << 8);
        }
    }
    words
}

fn transform(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (|x, y, z| z ^ (x & (y ^ z)), 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (|x, y, z| x ^ y ^ z, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in rounds {
        for (step, &at) in order.iter().enumerate() {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(words[at]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(shifts[step % 4]), b, c);
        }
    }
    for (word, mixed) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(mixed);
    }
}
