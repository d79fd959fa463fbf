//! Finding zeros.

/// Whether all of it is zeros. As fast as memory is compared, and faster where something else comes early.
pub fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        // Each byte equals the one before it.
        [first, rest @ ..] => *first == 0 && *rest == bytes[..rest.len()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_no_zeros() {
        for len in [0, 1, 2, 63, 4096] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes), "{len}");
            for at in 0..len {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{at} of {len}");
                bytes[at] = 0;
            }
        }
    }
}
