//! What a manifest wants left out.

use kiln_model::wildcard;

/// Whether a path, or a directory above it, matches one of the patterns, in which `*` also stands for `/`.
pub(crate) fn is_excluded(patterns: &[String], path: &[u8]) -> bool {
    if patterns.is_empty() {
        return false;
    }
    let text = String::from_utf8_lossy(path);
    patterns.iter().any(|pattern| {
        let ends = text.match_indices('/').map(|(at, _)| at).skip(1).chain([text.len()]);
        ends.into_iter().any(|end| wildcard::matches(pattern, &text[..end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_something_excluded_is_excluded_and_its_neighbour_is_not() {
        let patterns = ["/usr/share/doc".to_owned(), "*.pyc".to_owned()];
        for (path, expected) in [
            ("/usr/share/doc", true),
            ("/usr/share/doc/bash/README", true),
            ("/usr/share/docs", false),
            ("/usr/share", false),
            ("/opt/a.pyc", true),
            ("/opt/a.py", false),
        ] {
            assert_eq!(is_excluded(&patterns, path.as_bytes()), expected, "{path}");
        }
        assert!(!is_excluded(&[], b"/usr"));
    }
}
