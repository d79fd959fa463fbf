//! Shell wildcards, as `modules.alias` uses them: `*`, `?`, `[a-z]`, `[!0]`, and `\` for a literal.
//!
//! This is `fnmatch(3)` without flags, over bytes: a slash or a leading dot is a byte like any other.

/// Whether all of `text` matches `pattern`. Takes at most `pattern.len() * text.len()` steps, so
/// that a hostile pattern costs no more than a long one. A bracket which never closes is literal.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on after a mismatch: behind the last star, which then eats one byte more. An
    // earlier star need not be tried again: what it could give up, the last star can take.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
        } else if let Some(width) = one(&pattern[p..], text[t]) {
            p += width;
            t += 1;
        } else if let Some((after_star, eaten)) = retry {
            (p, t) = (after_star, eaten + 1);
            retry = Some((p, t));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Whether `pattern` says anything but itself.
pub fn is_literal(pattern: &str) -> bool {
    !pattern.bytes().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

/// How many bytes of `pattern` the one `byte` used up; none if they do not match.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ref rest @ ..] => match bracket(rest, byte) {
            Some((true, width)) => Some(1 + width),
            Some((false, _)) => None,
            None => (byte == b'[').then_some(1),
        },
        [b'\\', escaped, ..] => (escaped == byte).then_some(2),
        [literal, ..] => (literal == byte).then_some(1),
    }
}

/// Judges `byte` by the bracket expression whose inside starts at `rest`: the verdict, and the bytes
/// up to and with `]`. None if it never closes.
fn bracket(rest: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let first = at;
    let mut hit = false;
    loop {
        match *rest.get(at)? {
            b']' if at > first => return Some((hit != negated, at + 1)),
            low => {
                let (low, next) = literal(rest, at, low)?;
                at = next;
                if rest.get(at) == Some(&b'-') && rest.get(at + 1).is_some_and(|&b| b != b']') {
                    let (high, next) = literal(rest, at + 1, *rest.get(at + 1)?)?;
                    at = next;
                    hit |= (low..=high).contains(&byte);
                } else {
                    hit |= low == byte;
                }
            }
        }
    }
}

/// The byte meant at `at`, and where the next one starts.
fn literal(rest: &[u8], at: usize, byte: u8) -> Option<(u8, usize)> {
    if byte == b'\\' { Some((*rest.get(at + 1)?, at + 2)) } else { Some((byte, at + 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_patterns_of_real_aliases_mean_what_the_shell_means() {
        for (pattern, text, expected) in [
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF4d00001001sv00sd0bc01sc00i00", true),
            ("pci:v00001AF4d*sv*sd*bc*sc*i*", "pci:v00001AF5d00001001sv00sd0bc01sc00i00", false),
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            (
                "usb:v0B95p772Bd*dc*dsc*dp*ic*isc*ip*in*",
                "usb:v0B95p772Bd1dc2dsc3dp4ic5isc6ip7in8",
                true,
            ),
            ("usb:v05ACp821[0-9A]d*", "usb:v05ACp8217d1", true),
            ("usb:v05ACp821[0-9A]d*", "usb:v05ACp821Bd1", false),
            ("char_major_10_23[!5]", "char_major_10_236", true),
            ("char_major_10_23[!5]", "char_major_10_235", false),
            ("a[]]b", "a]b", true),
            ("a[x-]b", "a-b", true),
            ("a[b", "a[b", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a?c", "abc", true),
            ("", "", true),
            ("**", "", true),
            ("a*b*c", "a__b__b_c", true),
            ("a*b*c", "a__b__b_", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} against {text}");
        }
    }

    proptest! {
        #[test]
        fn a_literal_matches_itself_alone(text in "[a-z_:]{0,20}", other in "[a-z_:]{0,20}") {
            prop_assert!(matches(&text, &text));
            prop_assert_eq!(matches(&text, &other), text == other);
        }

        #[test]
        fn a_star_stands_for_anything(head in "[a-z]{0,5}", middle in "\\PC{0,9}", tail in "[a-z]{0,5}") {
            let pattern = format!("{head}*{tail}");
            let text = format!("{head}{middle}{tail}");
            prop_assert!(matches(&pattern, &text));
        }

        #[test]
        fn no_pattern_panics(pattern in "[a\\[\\]*?!^\\\\-]{0,24}", text in "[a\\[\\]-]{0,24}") {
            matches(&pattern, &text);
        }
    }
}
