//! Which of two versions is newer, by the rules of Debian's version numbers. They order kernel
//! releases well, too: `6.1.10` after `6.1.9`, `6.2~rc1` before `6.2`.

use std::cmp::Ordering;

/// Compares two version strings: an optional `EPOCH:` first, then alternating runs of other
/// characters and of digits.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, rest_a) = epoch(a);
    let (epoch_b, rest_b) = epoch(b);
    by_number(epoch_a, epoch_b).then_with(|| runs(rest_a, rest_b))
}

fn epoch(version: &str) -> (&str, &str) {
    match version.split_once(':') {
        Some((epoch, rest)) if epoch.bytes().all(|b| b.is_ascii_digit()) => (epoch, rest),
        _ => ("", version),
    }
}

fn runs(mut a: &str, mut b: &str) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let (text_a, rest_a) = a.split_at(a.find(|c: char| c.is_ascii_digit()).unwrap_or(a.len()));
        let (text_b, rest_b) = b.split_at(b.find(|c: char| c.is_ascii_digit()).unwrap_or(b.len()));
        let order = by_text(text_a, text_b);
        let cut = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number_a, rest_a) = rest_a.split_at(cut(rest_a));
        let (number_b, rest_b) = rest_b.split_at(cut(rest_b));
        let order = order.then_with(|| by_number(number_a, number_b));
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

/// `~` sorts before the end, the end before letters, letters before the rest.
fn by_text(a: &str, b: &str) -> Ordering {
    let rank = |c: Option<&u8>| match c {
        Some(b'~') => (0, 0),
        None => (1, 0),
        Some(&c) if c.is_ascii_alphabetic() => (2, c),
        Some(&c) => (3, c),
    };
    let (a, b) = (a.as_bytes(), b.as_bytes());
    (0..a.len().max(b.len()))
        .map(|at| rank(a.get(at)).cmp(&rank(b.get(at))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Numbers of any length, without their leading zeros.
fn by_number(a: &str, b: &str) -> Ordering {
    let (a, b) = (a.trim_start_matches('0'), b.trim_start_matches('0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_debian_sorts_them() {
        let sorted = [
            "5.10.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.9.10",
            "6.12~rc1",
            "6.12",
            "6.12.100+deb12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.12.117-1~deb12u1",
            "6.12.117-1",
            "1:2.0",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
        assert_eq!(compare("", ""), Ordering::Equal);
        assert_eq!(compare("0:1", "1"), Ordering::Equal);
    }
}
