//! As much of Markdown as is needed to follow its links: targets, headings, and what is code.

/// A link, with the line it stands on, counted from one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) line: usize,
    pub(crate) target: String,
}

/// Every inline link, image and reference definition outside code.
pub(crate) fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, content) in prose(text) {
        let content = without_code(content);
        if let Some(target) = reference(&content) {
            links.push(Link { line, target });
            continue;
        }
        let mut rest = content.as_str();
        while let Some(start) = rest.find("](") {
            rest = &rest[start + 2..];
            let Some(end) = rest.find(')') else { break };
            // A title may follow the target: [text](target "title").
            let target = rest[..end].split_whitespace().next().unwrap_or_default();
            let target = target.trim_start_matches('<').trim_end_matches('>');
            links.push(Link { line, target: target.to_owned() });
            rest = &rest[end..];
        }
    }
    links
}

/// The fragment every heading answers to, made as forges make it: lower case, spaces to dashes, other
/// punctuation dropped, repeats numbered.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, content) in prose(text) {
        let title = content.trim_start_matches('#');
        let level = content.len() - title.len();
        if level == 0 || level > 6 || !title.starts_with(' ') {
            continue;
        }
        let plain: String = title
            .trim()
            .chars()
            .filter_map(|c| match c {
                ' ' => Some('-'),
                '-' | '_' => Some(c),
                c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
                _ => None,
            })
            .collect();
        let numbered = (1..).map(|n| format!("{plain}-{n}"));
        let free = std::iter::once(plain.clone()).chain(numbered).find(|a| !anchors.contains(a));
        anchors.extend(free);
    }
    anchors
}

/// Lines outside fenced code, numbered from one.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let start = line.trim_start();
        match fence {
            Some(open) if start.starts_with(open) => fence = None,
            Some(_) => {}
            None if start.starts_with("```") => fence = Some("```"),
            None if start.starts_with("~~~") => fence = Some("~~~"),
            None => return Some((index + 1, line)),
        }
        None
    })
}

/// The line with its code spans blanked.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    // An unclosed backtick opens no span, so the last part is prose either way.
    parts
        .iter()
        .enumerate()
        .map(|(index, part)| if index % 2 == 0 || index + 1 == parts.len() { *part } else { "" })
        .collect()
}

/// The target of a line like `[name]: target`.
fn reference(line: &str) -> Option<String> {
    let (name, rest) = line.trim_start().strip_prefix('[')?.split_once("]:")?;
    let target = rest.split_whitespace().next()?;
    (!name.contains(']')).then(|| target.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<String> {
        links(text).into_iter().map(|link| link.target).collect()
    }

    #[test]
    fn inline_links_images_titles_and_references_are_all_found() {
        let text = "see [a](a.md) and ![b](<b.png> \"title\") or [c][c]\n\n[c]: docs/c.md#part\n";
        assert_eq!(targets(text), ["a.md", "b.png", "docs/c.md#part"]);
    }

    #[test]
    fn what_looks_like_a_link_inside_code_is_none() {
        let text =
            "`[a](a.md)` and [b](b.md)\n```\n[c](c.md)\n```\n~~~\n[d](d.md)\n~~~\n[`e`](e.md)\n";
        assert_eq!(targets(text), ["b.md", "e.md"]);
    }

    #[test]
    fn a_link_knows_its_line() {
        assert_eq!(links("\n\n[a](a.md)\n")[0].line, 3);
    }

    #[test]
    fn headings_answer_to_the_fragments_forges_give_them() {
        let text = "# Kiln: design\n## 4. Crates (down)\n## `kiln run`\n## Same\n## Same\n#hash\n";
        assert_eq!(anchors(text), ["kiln-design", "4-crates-down", "kiln-run", "same", "same-1"]);
    }
}
