//! What dpkg wrote down: stanzas of fields (`deb822(5)`), and relations between packages (`deb-control(5)`).

/// The fields of one stanza: names as they are written, values with their continuation lines.
pub(super) struct Stanza<'t>(Vec<(&'t str, String)>);

impl Stanza<'_> {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter();
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The stanzas of a file, one after the other. Lines that are no field are passed over.
pub(super) fn stanzas(text: &str) -> impl Iterator<Item = Stanza<'_>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let mut fields: Vec<(&str, String)> = Vec::new();
        for line in lines.by_ref() {
            if line.trim().is_empty() {
                if fields.is_empty() {
                    continue;
                }
                break;
            }
            match (line.starts_with([' ', '\t']), fields.last_mut(), line.split_once(':')) {
                (true, Some((_, value)), _) => {
                    value.push(' ');
                    value.push_str(line.trim());
                }
                (false, _, Some((name, value))) => fields.push((name, value.trim().to_owned())),
                _ => {}
            }
        }
        (!fields.is_empty()).then_some(Stanza(fields))
    })
}

/// One package that would do, as `NAME`, `NAME:ARCH` or `NAME (RELATION VERSION)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) version: Option<(Relation, String)>,
}

/// How a version has to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Earlier,
    EarlierOrEqual,
    Equal,
    LaterOrEqual,
    Later,
}

impl Relation {
    pub(super) fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Relation::Earlier => order.is_lt(),
            Relation::EarlierOrEqual => order.is_le(),
            Relation::Equal => order.is_eq(),
            Relation::LaterOrEqual => order.is_ge(),
            Relation::Later => order.is_gt(),
        }
    }
}

/// A list of relations: all are wanted, of each any alternative will do.
pub(super) fn relations(text: &str) -> Vec<Vec<Wanted>> {
    let alternatives = |one: &str| one.split('|').filter_map(wanted).collect::<Vec<_>>();
    text.split(',').map(alternatives).filter(|any| !any.is_empty()).collect()
}

/// One alternative; none if it says nothing.
pub(super) fn wanted(text: &str) -> Option<Wanted> {
    // Restrictions to architectures and build profiles are for sources only.
    let text = text.split(['[', '<']).next().filter(|_| !text.contains('(')).unwrap_or(text);
    let (name, version) = match text.split_once('(') {
        Some((name, rest)) => (name, rest.split(')').next().and_then(version)),
        None => (text, None),
    };
    let name = name.trim().split(':').next().unwrap_or_default();
    (!name.is_empty()).then(|| Wanted { name: name.to_owned(), version })
}

fn version(text: &str) -> Option<(Relation, String)> {
    let text = text.trim();
    let digits = text.find(|c: char| !"<>=".contains(c))?;
    let relation = match &text[..digits] {
        "<<" => Relation::Earlier,
        "<=" | "<" => Relation::EarlierOrEqual,
        "=" => Relation::Equal,
        ">=" | ">" => Relation::LaterOrEqual,
        ">>" => Relation::Later,
        _ => return None,
    };
    Some((relation, text[digits..].trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_have_fields_with_continuations() {
        let text = "\nPackage: a\nDepends: b,\n c (>= 1)\nnonsense\n\n\nPackage: d\n";
        let found: Vec<_> = stanzas(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].get("depends"), Some("b, c (>= 1)"));
        assert_eq!(found[1].get("Package"), Some("d"));
        assert_eq!(found[1].get("Depends"), None);
    }

    #[test]
    fn relations_have_alternatives_and_versions() {
        let found = relations("a:any (>= 1:2.0), b | c (<< 3) , , d (= 4)");
        let text: Vec<Vec<String>> = found
            .iter()
            .map(|any| any.iter().map(|w| format!("{} {:?}", w.name, w.version)).collect())
            .collect();
        assert_eq!(
            text,
            [
                vec!["a Some((LaterOrEqual, \"1:2.0\"))"],
                vec!["b None", "c Some((Earlier, \"3\"))"],
                vec!["d Some((Equal, \"4\"))"]
            ]
        );
    }

    #[test]
    fn what_is_no_relation_is_no_panic() {
        for text in ["(", ")", "a (", "a (>=", "a ()", "|", ":", " (>= 1)", "é (ü)"] {
            drop(relations(text));
        }
    }
}
